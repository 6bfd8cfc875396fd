"""Rows of a sweep's tables as one frame: filtered, with columns of their trials beside them, shown or written."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from mantra_ray.errors import InputError
from mantra_ray.files import Place, atomic
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.summary import configurations

CONDITION = re.compile(r"\s*([\w.]+)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*")
COMPARE = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
SHORT = {"split": "split.kind"}  # what the other tables call a setting of the trial


@dataclass(frozen=True)
class Condition:
    """What a column must be: `nexus.buckets=512`, `value>=0.1`, `status!=done`."""

    name: str
    compare: str
    text: str

    @staticmethod
    def parse(text: str) -> Condition:
        """The condition that a text says; InputError if it says none."""
        found = CONDITION.fullmatch(text)
        if not found:
            raise InputError("options", "--where", text, "must be NAME=VALUE, or with != < <= > >= in the place of =")
        return Condition(*found.groups())

    def holds(self, rows: pa.Table) -> pa.Array:
        """Where it holds, false where the column is empty; InputError if the column cannot have that value."""
        column = rows[self.name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return pc.fill_null(COMPARE[self.compare](column, scalar(self.name, self.text, column.type)), False)


def scalar(name: str, text: str, kind: pa.DataType) -> pa.Scalar:
    """A value as its column's type; InputError if it is none."""
    try:
        if pa.types.is_boolean(kind):
            return pa.scalar({"true": True, "false": False}[text.lower()])
        return pa.scalar(text).cast(kind)
    except (KeyError, pa.ArrowException) as error:
        raise InputError("options", "--where", text, f"is no value of the column {name} ({kind})") from error


def check_names(names: Sequence[str], known: Sequence[str], option: str) -> None:
    """InputError for the first name that no column has, with the ones like it."""
    for name in names:
        if name not in known:
            like = difflib.get_close_matches(name, known, 3) or [k for k in known if k.endswith("." + name)]
            hint = f"; did you mean {' or '.join(like)}?" if like else f"; there are {', '.join(sorted(known))}"
            raise InputError("options", option, name, f"no such column{hint}")


def trial_rows(store: Store, trials: Sequence[str] | None, conditions: Sequence[Condition]) -> pa.Table:
    """Rows of the table `trials` (of all trials if None) for which all conditions hold."""
    rows = store.read("trials", trials)
    conditions = [Condition(SHORT.get(c.name, c.name), c.compare, c.text) for c in conditions]
    check_names([c.name for c in conditions], rows.column_names, "--where")
    for condition in conditions:
        rows = rows.filter(condition.holds(rows))
    return rows


def frame(
    store: Store,
    table: str,
    trials: Sequence[str] | None,
    where: Sequence[str] = (),
    columns: Sequence[str] = (),
    beside: Sequence[str] = (),
) -> pa.Table:
    """Rows of a table, or of `configurations`, as one frame.

    `where` are conditions on columns of the table or of its trials, `beside` names columns of the trials that are
    put beside the table's own, `columns` those that are kept, in this order. Raises InputError for unknown columns.
    """
    own = set() if table in ("trials", "configurations") else set(store.read(table, []).column_names)
    conditions = [Condition.parse(text) for text in where]
    of_trials = trial_rows(store, trials, [c for c in conditions if c.name not in own])
    if table == "trials":
        rows = of_trials
    elif table == "configurations":
        rows = configuration_rows(store, of_trials)
    else:
        rows = store.read(table, of_trials["trial"].to_pylist())
        for condition in (c for c in conditions if c.name in own):
            rows = rows.filter(condition.holds(rows))
        check_names(beside, of_trials.column_names, "--with")
        place = pc.index_in(rows["trial"], of_trials["trial"].combine_chunks())
        for name in (name for name in beside if name not in own):
            rows = rows.append_column(name, of_trials[name].take(place))
    check_names(columns, rows.column_names, "--columns")
    return rows.select(list(columns)) if columns else rows


def configuration_rows(store: Store, trials: pa.Table) -> pa.Table:
    """One row a configuration of the memory and split, seeds pooled: knobs, gains with interval, mean diagnostics."""
    rows = []
    for item in configurations(store, trials.to_pylist()):
        knobs = {name: json.dumps(v) if isinstance(v, (list, tuple)) else v for name, v in item.knobs.items()}
        for split, result in item.results.items():
            told = {
                "split": split,
                **knobs,
                "seeds": len({row["seed"] for row in result.trials}),
                "validation_gain": result.validation,
                "test_gain": result.test.value,
                "lower": result.test.lower,
                "upper": result.test.upper,
                "records": result.test.n,
            }
            rows.append(told | {name: mean(result.trials, name) for name in ("load", "write_density", "occupancy")})
    names = list(rows[0]) if rows else ["split", "seeds", "validation_gain", "test_gain", "lower", "upper"]
    return pa.table({name: [row[name] for row in rows] for name in names})


def mean(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    """Mean of a diagnostic over trials that have it."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else None


def write_csv(rows: pa.Table, path: Path | Place) -> None:
    """Write a frame as CSV with a header."""
    for i, field in enumerate(rows.schema):
        if pa.types.is_dictionary(field.type):
            rows = rows.set_column(i, field.name, rows[field.name].cast(field.type.value_type))
    with atomic(path) as partial:
        pyarrow.csv.write_csv(rows, partial)


def write_parquet(rows: pa.Table, path: Path | Place) -> None:
    """Write a frame as one Parquet file."""
    with atomic(path) as partial:
        pq.write_table(rows, partial, compression="zstd")
