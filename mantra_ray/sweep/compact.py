"""Many small files of results become few; and the results of several sweeps become those of one."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pyarrow.parquet as pq

from mantra_ray.files import Place, atomic, listing
from mantra_ray.sweep import seal
from mantra_ray.sweep.rowfiles import COMPACT, TRIALS_KEY, join
from mantra_ray.sweep.schema import SCHEMAS
from mantra_ray.sweep.store import METADATA, ROWS, Store

TRIALS_A_GROUP = 256  # trials whose rows are read and written together, as row groups
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Compaction:
    """How many files a store had, and has."""

    trials: int
    before: int
    after: int


def compact(store: Store, on_progress: Progress | None = None) -> Compaction:
    """Put the rows of all trials into one file a table, `compact-*.parquet`, sorted by trial.

    The new files are written whole before the first old one goes, and readers take one file a trial, so nothing is
    lost or doubled wherever this is cut short; the next compaction clears up. Trials without a row in `trials`,
    damaged files and files that changed meanwhile stay as they are. May run while a sweep does.
    """
    before = count(store)
    trials = sorted(store.ended())
    found = {table: store.files(table) for table in SCHEMAS}
    # One source of rows for all: nothing to gain.
    if all(not files.loose.keys() & trials and len(files.compact) < 2 for files in found.values()):
        return Compaction(len(trials), before, before)
    written = {table: _write(store, table, [(store, trials)], on_progress) for table in SCHEMAS}
    for table, files in found.items():
        now = listing(store.folder / table)
        old = {f"{trial}.parquet": files.loose[trial] for trial in trials if trial in files.loose}
        gone = {trial for file in files.compact for trial in file.trials} <= set(trials)
        old |= files.stamps if gone else {}
        for name, stamp in old.items():
            if now.get(name) == stamp and name != written[table].name:
                (store.folder / table / name).unlink(missing_ok=True)
    return Compaction(len(trials), before, count(store))


def merge(shares: Iterable[tuple[Store, list[str]]], out: Store, on_progress: Progress | None = None) -> None:
    """Write the rows of some trials of each store into one; what was written goes again if that fails."""
    shares, written = list(shares), []
    try:
        for table in reversed(SCHEMAS):  # trials last: who has a row there is whole
            written.append(_write(out, table, shares, on_progress))
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def count(store: Store) -> int:
    """Files of a store."""
    return sum(name.endswith(".parquet") for table in SCHEMAS for name in listing(store.folder / table))


def _write(out: Store, table: str, shares: list[tuple[Store, list[str]]], on_progress: Progress | None = None) -> Place:
    """Write one compact file; each trial's rows come from one store."""
    folder = out.folder / table
    owner = {trial: store for store, trials in shares for trial in trials}
    order, number = sorted(owner), 1 + max((int(m[1]) for m in map(COMPACT.fullmatch, listing(folder)) if m), default=0)
    # Trials differ in their columns, so they are read and written at once; they are few beside the others' rows.
    step = len(order) if table == "trials" else TRIALS_A_GROUP
    path, writer = folder / f"compact-{number:06d}-{uuid.uuid4().hex[:8]}.parquet", None
    with atomic(path) as partial:
        for begin in range(0, len(order) or 1, step or 1):
            chosen = order[begin : begin + step]
            rows = join(table, [store.read(table, [t for t in chosen if owner[t] is store]) for store, _ in shares])
            rows = rows.sort_by("trial") if len(shares) > 1 else rows
            writer = writer or pq.ParquetWriter(partial, rows.schema, **ROWS)
            writer.write_table(rows)
            if on_progress is not None:
                on_progress(min(begin + step, len(order)), len(order), table)
        writer.add_key_value_metadata(METADATA | {TRIALS_KEY: json.dumps(order)})
        writer.close()
        seal.seal(partial)
    return path
