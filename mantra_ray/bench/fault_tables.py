"""What a disturbed sweep left, held against an undisturbed one: rows lost, doubled or wrong, and files left over."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mantra_ray.sweep.schema import SCHEMAS
from mantra_ray.sweep.store import Store

# What tells one row from all others of its table.
KEYS = {
    "trials": ("trial",),
    "scores": ("trial", "arm", "split", "part", "slice", "metric"),
    "records": ("trial", "arm", "split", "part", "record"),
    "curves": ("trial", "epoch", "metric"),
}
# What may differ from run to run: times, memory of the process, origin.
RUNNING = re.compile(r"seconds|training_seconds|started|ended|max_rss_bytes|records_per_second|provenance\..*")
EVENTS = re.compile(r"events\.out\.tfevents\..*")  # TensorBoard puts time and process into the name

Rows = dict[tuple[Hashable, ...], Counter]  # key: how often each content of such a row is there


@dataclass
class Difference:
    """How tables differ from those they should equal."""

    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    examples: list[str] = field(default_factory=list)  # a few of them, in words


def rows_of(results: Path, table: str) -> Rows:
    """Rows of a table by key, bit for bit: floats as hexadecimal digits, so that NaN equals NaN."""
    read = Store(results).read(table)
    names = [name for name in read.column_names if not RUNNING.fullmatch(name)]
    found: Rows = defaultdict(Counter)
    for row in read.to_pylist():
        content = tuple((name, exact(row[name])) for name in sorted(names) if row[name] is not None)
        found[tuple(row[name] for name in KEYS[table])][content] += 1
    return found


def exact(value: Any) -> Hashable:
    """A value that equals another's only if both have the same bits."""
    return value.hex() if isinstance(value, float) else value


def compare(results: Path, expected: Path, prunes: bool = False) -> Difference:
    """Hold the four tables under `results` against those under `expected`.

    With `prunes`, trials may have been stopped early: each must have its one row that says so, and nothing but the
    curves up to there.
    """
    found = Difference()
    ends = pruned_epochs(results) if prunes else {}
    for table in SCHEMAS:
        wanted, got = rows_of(expected, table), rows_of(results, table)
        if ends:
            wanted = as_pruned(wanted, got, table, ends)
        for key in wanted.keys() | got.keys():
            want, have = wanted.get(key, Counter()), got.get(key, Counter())
            surplus = have.total() - want.total()
            same = (want & have).total()
            lost, doubled = max(0, -surplus), max(0, surplus) if want else 0
            wrong = have.total() - same - doubled  # rows that no undisturbed run has are wrong too
            found.lost, found.doubled, found.wrong = found.lost + lost, found.doubled + doubled, found.wrong + wrong
            if (lost or doubled or wrong) and len(found.examples) < 5:
                told = {name: value for row in have for name, value in set(row) - set(next(iter(want), ()))}
                found.examples.append(f"{table} {key}: {lost} lost, {doubled} doubled, {wrong} wrong {told}"[:400])
    return found


def pruned_epochs(results: Path) -> dict[str, int]:
    """The epoch at which each pruned trial was stopped."""
    read = Store(results).read("trials").to_pylist()
    return {row["trial"]: row["pruned_epoch"] for row in read if row["status"] == "pruned"}


def as_pruned(wanted: Rows, got: Rows, table: str, ends: dict[str, int]) -> Rows:
    """The wanted rows as they must be where the trials in `ends` were stopped at these epochs."""
    kept = {key: rows for key, rows in wanted.items() if key[0] not in ends}
    stopped = {key: rows for key, rows in wanted.items() if key[0] in ends}
    if table == "trials":  # what the row says besides depends on the moment
        kept |= {key: Counter(list(got.get(key, rows))[:1]) for key, rows in stopped.items()}
    elif table == "curves":
        kept |= {key: rows for key, rows in stopped.items() if key[1] <= ends[key[0]]}
    return kept


def files_of(root: Path) -> Counter:
    """Files and empty folders of a sweep, by their path in it; TensorBoard's without what changes in their names."""
    found = Counter()
    for path in root.rglob("*"):
        if not path.is_dir() or not any(path.iterdir()):
            found[str(path.parent.relative_to(root) / EVENTS.sub("events", path.name))] += 1
    return found


def leftovers(root: Path, expected: Path) -> list[str]:
    """Files that an undisturbed run does not leave."""
    return sorted((files_of(root) - files_of(expected)).elements())
