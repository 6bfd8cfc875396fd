"""`mantra results`: the tables of a sweep, printed, filtered, or written as CSV or Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mantra_ray import terminal
from mantra_ray.errors import InputError
from mantra_ray.files import place
from mantra_ray.sweep.folder import sweep_folder
from mantra_ray.sweep.frames import Condition, frame, trial_rows, write_csv, write_parquet
from mantra_ray.sweep.options import check_writable, shown
from mantra_ray.sweep.report import print_metrics, print_summary
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.summary import DEFAULTS

WIDEST = 10_000  # characters of a table that goes to a file or a pipe
Writer = Callable[[pa.Table, Any], None]


@dataclass(frozen=True)
class ResultsOptions:
    """Print a sweep's tables; with a table's name or a filter, print or write rows of it."""

    folder: Annotated[tyro.conf.Positional[str], shown("FOLDER")]
    """Folder or address of the sweep."""
    table: Literal["configurations", "trials", "scores", "records", "curves"] = "configurations"
    """configurations: one row a configuration and split, seeds pooled; the others as they are stored."""
    where: Annotated[tuple[str, ...], shown("NAME=VALUE ...", "all rows")] = ()
    """Only rows for which all of this holds; also != < <= > >=, quoted. Names columns of the table or its trials."""
    columns: Annotated[tuple[str, ...], shown("NAME ...", "all")] = ()
    """Columns to keep, in this order."""
    beside: Annotated[tuple[str, ...], tyro.conf.arg(name="with", metavar="NAME ...", help_behavior_hint="")] = ()
    """Columns of the trials to put beside those of scores, records or curves."""
    csv: Annotated[str, shown("FILE", "none")] = ""
    """Write the rows as CSV."""
    parquet: Annotated[str, shown("FILE", "none")] = ""
    """Write the rows as Parquet."""
    failed: Annotated[bool, tyro.conf.FlagCreatePairsOff, shown("", "off")] = False
    """Print the errors of failed trials."""
    metrics: Annotated[bool, tyro.conf.FlagCreatePairsOff, shown("", "off")] = False
    """Print every metric of every arm: programs, expression, traits."""
    all: Annotated[bool, tyro.conf.FlagCreatePairsOff, shown("", "off")] = False
    """Also trials that earlier commands left in the folder."""
    limit: int = 40
    """Rows that are printed."""

    def check(self) -> None:
        """Raise InputError for a value that cannot be."""
        if self.limit < 1:
            raise InputError("options", "--limit", self.limit, "must be at least 1")
        if self.beside and self.table not in ("scores", "records", "curves"):
            raise InputError("options", "--with", self.beside[0], f"the table {self.table} has its trials' columns")
        for path in (self.csv, self.parquet):
            if path and "://" not in path:
                check_writable(Path(path).parent)

    @property
    def outputs(self) -> list[tuple[str, Writer]]:
        """Files to write, each with the function that does."""
        return [(path, write) for path, write in ((self.csv, write_csv), (self.parquet, write_parquet)) if path]


def main(args: Sequence[str]) -> int:
    """Run `mantra results ARGS`; returns the exit code."""
    options = tyro.cli(ResultsOptions, args=list(args), prog="mantra results")
    options.check()
    console = terminal.console()
    root, store, described = sweep_folder(options.folder)
    trials = None if options.all else described
    if options.failed:
        print_failures(store, trials, options.where, console)
    elif options.metrics:
        print_metrics(root, console)
    elif len(args) == 1:
        print_summary(root, console)
    else:
        rows = frame(store, options.table, trials, options.where, options.columns, options.beside)
        for path, write in options.outputs:
            write(rows, place(path))
            console.print(f"{len(rows)} rows written to {path}", highlight=False, markup=False, soft_wrap=True)
        if not options.outputs:
            print_rows(rows, options.limit, console)
    return 0


def print_failures(store: Store, trials: Sequence[str] | None, where: Sequence[str], console: Console) -> None:
    """Print each error once, with the trials that ended by it and their settings."""
    conditions = [Condition.parse(text) for text in [*where, "status=failed"]]
    by_error: dict[str, list[dict[str, Any]]] = {}
    for row in trial_rows(store, trials, conditions).to_pylist():
        by_error.setdefault((row["error"] or "no reason was given").strip(), []).append(row)
    if not by_error:
        console.print("No trial failed.")
    for error, rows in sorted(by_error.items(), key=lambda item: -len(item[1])):
        console.print(f"{len(rows)} failed: {error.splitlines()[-1]}", style="bold red", highlight=False, markup=False)
        for row in rows:
            differs = ", ".join(f"{name} {row[name]}" for name in changed(row))
            console.print(f"  {row['trial']} {row['kind']} {differs}", highlight=False, markup=False)
        console.print(error + "\n", highlight=False, markup=False, soft_wrap=True)


def changed(row: dict[str, Any]) -> list[str]:
    """Settings of a trial in which it is not the default, seed and split always."""
    plain = {name: json.dumps(value) if isinstance(value, list) else value for name, value in DEFAULTS.items()}
    differs = [name for name in plain if row.get(name) is not None and row[name] != plain[name]]
    return [*dict.fromkeys(["seed", "split.kind", *differs])]


def print_rows(rows: pa.Table, limit: int, console: Console) -> None:
    """Print the first rows of a frame; a column that is empty everywhere is left out where there are many."""
    names = rows.column_names
    if len(names) > 12:
        names = [name for name in names if rows[name].null_count < len(rows)]
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for name in names:
        number = pa.types.is_integer(rows[name].type) or pa.types.is_floating(rows[name].type)
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows.slice(0, limit).select(names).to_pylist():
        table.add_row(*(cell(row[name]) for name in names))
    if not console.is_terminal:  # as wide as it takes
        needed = console.measure(table, options=console.options.update(width=WIDEST)).maximum
        console = Console(file=console.file, width=max(console.width, needed))
    console.print(table)
    if len(rows) > limit:
        console.print(f"{limit} of {len(rows)} rows; --limit prints more, --csv FILE writes all.", highlight=False)


def cell(value: Any) -> str:
    """A value in a table."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
