"""Results on disk: four Parquet tables, one file a trial and table, each renamed into place when complete."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from mantra_ray.config import ExperimentConfig
from mantra_ray.fields import flatten
from mantra_ray.files import atomic
from mantra_ray.sweep.spec import TrialSpec

# Diagnostics that every file carries (null where a trial has none), so that all files read as one table.
DIAGNOSTICS = (
    *("write_density", "primed_density", "gated_density", "occupancy", "evictions", "collisions", "hard_hit_rate"),
    *("gate_mean", "read_entropy", "records_per_second", "memory_bytes", "load", "buckets", "slots"),
)
PAIRING = [("trial", pa.string()), ("kind", pa.string()), ("seed", pa.int64())]
SCORES = pa.schema(
    [
        *PAIRING,
        *((name, pa.string()) for name in ("arm", "split", "part", "slice", "metric")),
        *((name, pa.float64()) for name in ("value", "lower", "upper")),
        ("n", pa.int64()),
    ]
)
RECORDS = pa.schema(
    [
        *PAIRING,
        *((name, pa.dictionary(pa.int32(), pa.string())) for name in ("split", "arm", "part")),
        ("record", pa.int64()),
        ("regulator", pa.int64()),
        ("dose", pa.float32()),
        ("state", pa.int64()),
        ("squared_error", pa.float64()),
        ("reference_error", pa.float64()),
    ]
)
CURVES = pa.schema([*PAIRING, ("epoch", pa.int64()), ("metric", pa.string()), ("value", pa.float64())])


def _type(value: Any) -> pa.DataType:
    """Column type of a scalar; anything but a number is text."""
    return {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}.get(type(value), pa.string())


TRIALS = pa.schema(
    [
        *((name, pa.string()) for name in ("trial", "kind", "status", "error")),
        *((name, _type(value)) for name, value in flatten(ExperimentConfig()).items()),
        ("seconds", pa.float64()),
        ("started", pa.timestamp("us", "UTC")),
        ("ended", pa.timestamp("us", "UTC")),
        ("max_rss_bytes", pa.int64()),
        *((name, pa.float64()) for name in DIAGNOSTICS),
    ]
)
SCHEMAS = {"trials": TRIALS, "scores": SCORES, "records": RECORDS, "curves": CURVES}


class Store:
    """The tables `trials`, `scores`, `records` and `curves` under one folder."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def write(self, spec: TrialSpec, trial: dict[str, Any], scores=(), records=None, curves=()) -> None:
        """Write a trial's rows; its row in `trials` comes last, so a trial that has one is whole.

        `trial` holds status, error, seconds, started, ended, diagnostics and provenance (names with a dot);
        `scores` and `curves` are lists of rows, `records` maps column names to arrays of one length.
        """
        pairing = {"trial": spec.id, "kind": spec.kind, "seed": spec.config.seed}
        self._put("scores", spec.id, pa.Table.from_pylist([pairing | row for row in scores], SCORES))
        length = len(records["record"]) if records else 0
        shared = pairing | {"split": spec.config.split.kind}
        columns = {name: [value] * length for name, value in shared.items()} | (
            records or dict.fromkeys(RECORDS.names, ())
        )
        self._put("records", spec.id, pa.table({f.name: _column(columns[f.name], f) for f in RECORDS}, RECORDS))
        self._put("curves", spec.id, pa.Table.from_pylist([pairing | row for row in curves], CURVES))
        config = {name: json.dumps(v) if isinstance(v, list) else v for name, v in flatten(spec.config).items()}
        row = pairing | config | trial
        extra = sorted((name, _type(row[name])) for name in row.keys() - set(TRIALS.names))
        self._put("trials", spec.id, pa.Table.from_pylist([row], pa.schema([*TRIALS, *extra])))

    def read(
        self, table: str, trials: Iterable[str] | None = None, columns: list[str] | None = None, where=None
    ) -> pa.Table:
        """Rows of a table, of the given trials (default: all) and columns, where a pyarrow expression holds."""
        names = (self.folder / table).glob("*.parquet") if trials is None else (self._file(table, t) for t in trials)
        files = sorted(str(name) for name in names if name.exists())
        if not files:
            return SCHEMAS[table].empty_table().select(columns or SCHEMAS[table].names)
        schemas = [pq.read_schema(name) for name in files] if table == "trials" else [pq.read_schema(files[0])]
        return ds.dataset(files, schema=pa.unify_schemas(schemas)).to_table(columns=columns, filter=where)

    def finished(self) -> set[str]:
        """Ids of the trials that need not run again; failed ones are not among them."""
        rows = self.read("trials", columns=["trial", "status"], where=ds.field("status") == "done")
        return set(rows["trial"].to_pylist())

    def _file(self, table: str, trial: str) -> Path:
        return self.folder / table / f"{trial}.parquet"

    def _put(self, table: str, trial: str, rows: pa.Table) -> None:
        with atomic(self._file(table, trial)) as partial:
            pq.write_table(rows, partial, compression="zstd")


def _column(values: Any, field: pa.Field) -> pa.Array:
    if pa.types.is_dictionary(field.type):
        return pa.array(values, pa.string()).dictionary_encode()
    return pa.array(values, field.type)
