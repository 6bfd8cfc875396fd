"""Columns of the four tables, and the way from files of earlier versions to those of today."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from mantra_ray.config import ExperimentConfig
from mantra_ray.errors import InputError
from mantra_ray.fields import flatten

VERSION = 2  # of the tables' columns; raise it, and add to MIGRATIONS, when a column changes name, type or meaning
KEY = "mantra_ray.schema"  # where a file's metadata say it; files of version 1 say nothing

# Diagnostics that every file carries (null where a trial has none), so that all files read as one table.
DIAGNOSTICS = (
    *("write_density", "primed_density", "gated_density", "occupancy", "evictions", "collisions", "hard_hit_rate"),
    *("gate_mean", "read_entropy", "records_per_second", "memory_bytes", "load", "buckets", "slots"),
)
SLICES = ("training_records", "rare", "outlier")  # of `records`: null in rows that earlier versions wrote
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
        ("training_records", pa.int64()),
        ("rare", pa.bool_()),
        ("outlier", pa.bool_()),
        ("squared_error", pa.float64()),
        ("reference_error", pa.float64()),
    ]
)
CURVES = pa.schema([*PAIRING, ("epoch", pa.int64()), ("metric", pa.string()), ("value", pa.float64())])


def column_type(value: Any) -> pa.DataType:
    """Column type of a scalar; anything but a number is text."""
    return {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}.get(type(value), pa.string())


TRIALS = pa.schema(
    [
        *((name, pa.string()) for name in ("trial", "kind", "status", "error")),
        *((name, column_type(value)) for name, value in flatten(ExperimentConfig()).items()),
        ("seconds", pa.float64()),
        ("started", pa.timestamp("us", "UTC")),
        ("ended", pa.timestamp("us", "UTC")),
        ("max_rss_bytes", pa.int64()),
        *((name, pa.float64()) for name in DIAGNOSTICS),
    ]
)
SCHEMAS = {"trials": TRIALS, "scores": SCORES, "records": RECORDS, "curves": CURVES}


def _name_origin(table: str, rows: pa.Table) -> pa.Table:
    """1 to 2: columns of provenance have the names that its other parts follow."""
    names = {"provenance.git_commit": "provenance.commit", "provenance.git_dirty": "provenance.dirty"}
    return rows.rename_columns([names.get(name, name) for name in rows.column_names]) if table == "trials" else rows


# From version n to n + 1, each given the table's name and rows of version n.
MIGRATIONS: dict[int, Callable[[str, pa.Table], pa.Table]] = {1: _name_origin}


def version_of(metadata: dict[bytes, bytes] | None, file: object) -> int:
    """Version of a file by its metadata; InputError if it comes from a later version of this package."""
    text = (metadata or {}).get(KEY.encode(), b"1").decode()
    if not text.isdigit() or not 1 <= int(text) <= VERSION:
        problem = f"is unknown here (known: 1 to {VERSION}); a newer mantra_ray reads it"
        raise InputError(file, "schema version", text, problem)
    return int(text)


def migrate(table: str, rows: pa.Table, version: int) -> pa.Table:
    """Rows of an earlier version as rows of today's; columns that came later are left out."""
    for step in range(version, VERSION):
        rows = MIGRATIONS[step](table, rows)
    return rows
