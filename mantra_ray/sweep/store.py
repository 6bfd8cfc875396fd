"""Results on disk: four Parquet tables, one file a trial and table, each put into place when complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mantra_ray.errors import InputError
from mantra_ray.fields import flatten
from mantra_ray.files import Place, Stamp, atomic, place
from mantra_ray.secrets import scrubbed
from mantra_ray.sweep import schema, seal
from mantra_ray.sweep.rowfiles import (
    TRIALS_KEY,
    CompactFile,
    TableFiles,
    attempt,
    choose,
    decode,
    each,
    inspect,
    join,
    opened,
)
from mantra_ray.sweep.schema import CURVES, RECORDS, SCHEMAS, SCORES, SLICES, TRIALS, column_type
from mantra_ray.sweep.spec import TrialSpec

# A trial's row has 120 columns and more: dictionaries, statistics and a second copy of the schema would make its
# file more than twice as large, and three times as slow to write and to read.
ROW = {"compression": "none", "use_dictionary": False, "write_statistics": False, "store_schema": False}
ROWS = {"compression": "zstd"}
METADATA = {schema.KEY: str(schema.VERSION)} | seal.METADATA
CHUNK = 512  # files that are read together before their rows become one table
LISTINGS = 5  # of a folder whose files are being compacted while it is read


class Store:
    """The tables `trials`, `scores`, `records` and `curves` under one folder or address (`s3://...`).

    A file that cannot be read counts as not there, with a warning. A store remembers what it has seen of files that
    did not change, so asking again is cheap.
    """

    def __init__(self, folder: str | Place):
        try:
            self.folder = place(folder)
        except ValueError as error:
            raise InputError("options", "folder", str(folder), str(error)) from error
        self._seen: dict[str, tuple[Stamp, Any]] = {}

    def write(self, spec: TrialSpec, trial: dict[str, Any], scores=(), records=None, curves=()) -> None:
        """Write a trial's rows; its row in `trials` comes last, so a trial that has one is whole.

        `trial` holds status, error (stored without secrets), seconds, started, ended, diagnostics and provenance (names
        with a dot); `scores` and `curves` are lists of rows, `records` maps column names to arrays of one length,
        of which those in `SLICES` may be missing.
        """
        if trial.get("error"):
            trial = trial | {"error": scrubbed(trial["error"])}
        pairing = {"trial": spec.id, "kind": spec.kind, "seed": spec.config.seed}
        length = len(records["record"]) if records else 0
        shared = pairing | {"split": spec.config.split.kind}
        columns = {name: [value] * length for name, value in (dict.fromkeys(SLICES) | shared).items()}
        columns |= records or dict.fromkeys(RECORDS.names, ())
        tables = {
            "scores": pa.Table.from_pylist([pairing | row for row in scores], SCORES),
            "records": pa.table({f.name: _column(columns[f.name], f) for f in RECORDS}, RECORDS),
            "curves": pa.Table.from_pylist([pairing | row for row in curves], CURVES),
        }
        for name, rows in tables.items():
            self._put(name, spec.id, rows)
        config = {name: json.dumps(v) if isinstance(v, list) else v for name, v in flatten(spec.config).items()}
        row = pairing | config | trial
        extra = sorted(
            (name, column_type(row[name])) for name in row.keys() - set(TRIALS.names) if row[name] is not None
        )
        self._put("trials", spec.id, pa.Table.from_pylist([row], pa.schema([*TRIALS, *extra])))

    def read(
        self, table: str, trials: Iterable[str] | None = None, columns: list[str] | None = None, where=None
    ) -> pa.Table:
        """Rows of a table, by trial, of the given trials (default: all) and columns, where a pyarrow expression holds.

        Raises InputError for a column that no file has.
        """
        trials = None if trials is None else set(trials)
        return self._settled(lambda: self._read(table, trials, columns, where))

    def ended(self) -> dict[str, str]:
        """Status (done, failed, pruned) of every trial whose files are all there and whole, by trial."""
        return self._settled(self._ended)

    def finished(self) -> set[str]:
        """Ids of the trials that are done; neither failed nor pruned ones are among them, nor damaged ones."""
        return {trial for trial, status in self.ended().items() if status == "done"}

    def files(self, table: str) -> TableFiles:
        """The files of a table as they are now."""
        return TableFiles.find(self.folder / table, table, self._seen)

    def _settled(self, read: Callable[[], Any]) -> Any:
        for _ in range(LISTINGS):
            try:
                return read()
            except FileNotFoundError as error:  # compacted since it was listed
                gone = error
        raise gone

    def _read(self, table: str, trials: set[str] | None, columns: list[str] | None, where: Any) -> pa.Table:
        files = self.files(table)
        own, compact = files.shares(trials)
        later = table == "trials" and where is not None  # columns differ by file: first all, then what holds
        early = None if later or columns is None else [*dict.fromkeys([*columns, "trial"])]

        def load(trial: str) -> pa.Table | None:
            path, some = files.path(trial), None if where is not None else early
            return attempt(lambda: decode(path.read_bytes(), table, path, some), path)

        parts = []
        for begin in range(0, len(own), CHUNK):
            chunk = [rows for rows in each(load, own[begin : begin + CHUNK]) if rows is not None]
            if chunk:
                rows = join(table, chunk).combine_chunks()  # thousands of one-row arrays take much more memory
                parts.append(rows if where is None or later else choose(rows, early, where))
        for file, mine in compact:
            rows = attempt(lambda f=file, m=mine: f.rows(m, early, None if later else where), file.path)
            parts += [] if rows is None else [rows]
        rows = join(table, parts)
        if columns is not None:
            unknown = [name for name in columns if name not in rows.column_names]
            if unknown:
                raise InputError(self.folder / table, "column", unknown[0], f"no trial has it in the table {table}")
        if compact and len(own) + len(compact) > 1:
            rows = rows.sort_by("trial")  # as if each trial had a file of its own
        if later:
            return choose(rows, columns, where)
        return rows if columns is None else rows.select(columns)

    def _ended(self) -> dict[str, str]:
        files = self.files("trials")
        own, compact = files.shares(None)
        statuses = dict(zip(own, self._each("trials", files, own, self._status), strict=True))
        for file, mine in compact:
            told = self._compact(file, files, lambda data, f=file: f.rows(f.trials, ["trial", "status"]))
            if told is not None:
                columns = (told[name].to_pylist() for name in ("trial", "status"))
                statuses |= {trial: status for trial, status in zip(*columns, strict=True) if trial in mine}
        statuses = {trial: status for trial, status in statuses.items() if status is not None}
        for table in SCHEMAS.keys() - {"trials"}:
            whole = self._whole(table, statuses)
            statuses = {trial: status for trial, status in statuses.items() if trial in whole}
        return statuses

    def _status(self, data: bytes, path: Place, trial: str) -> str | None:
        rows = decode(data, "trials", path, ["trial", "status"]).to_pylist()
        if len(rows) != 1 or rows[0].get("trial") != trial:
            raise ValueError("it is not the row of its trial")
        return rows[0]["status"]

    def _whole(self, table: str, trials: Iterable[str]) -> set[str]:
        """Those of the trials whose rows of a table are there."""
        files = self.files(table)
        own, compact = files.shares(trials)

        def look(data: bytes, path: Place, trial: str) -> bool:
            inspect(data, table, path)
            return True

        found = {trial for trial, whole in zip(own, self._each(table, files, own, look), strict=True) if whole}
        return found.union(*(mine for file, mine in compact if self._compact(file, files, lambda data: True)))

    def _compact(self, file: CompactFile, files: TableFiles, look: Callable) -> Any:
        """`look(bytes)` of a compact file whose bytes are those that were written, or None with a warning."""
        key, stamp = f"{file.table}/{file.path.name}:content", files.stamps[file.path.name]

        def read() -> Any:
            with opened(file.path) as data:
                inspect(data, file.table, file.path)
                return look(data)

        if self._seen.get(key, (None,))[0] != stamp:
            self._seen[key] = stamp, attempt(read, file.path)
        return self._seen[key][1]

    def _each(self, table: str, files: TableFiles, trials: list[str], look: Callable) -> list[Any]:
        """`look(bytes, path, trial)` of trials' own files, None of damaged ones; unchanged files are not read again."""

        def one(trial: str) -> Any:
            key, stamp = f"{table}/{trial}", files.loose[trial]
            if self._seen.get(key, (None,))[0] != stamp:
                path = files.path(trial)
                self._seen[key] = stamp, attempt(lambda: look(path.read_bytes(), path, trial), path)
            return self._seen[key][1]

        return each(one, trials)

    def _put(self, table: str, trial: str, rows: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, rows.schema, **(ROW if table == "trials" else ROWS)) as writer:
            writer.write_table(rows)
            writer.add_key_value_metadata(METADATA | {TRIALS_KEY: json.dumps([trial])})
        with atomic(self.folder / table / f"{trial}.parquet") as partial:
            partial.write_bytes(seal.sealed(sink.getvalue().to_pybytes()))


def _column(values: Any, field: pa.Field) -> pa.Array:
    if pa.types.is_dictionary(field.type):
        return pa.array(values, pa.string()).dictionary_encode()
    return pa.array(values, field.type)
