"""`mantra status`: how far a sweep is, what runs, how long it takes still, and what went wrong last."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro

from mantra_ray import terminal
from mantra_ray.files import Place, Remote
from mantra_ray.sweep.folder import sweep_folder
from mantra_ray.sweep.options import shown
from mantra_ray.sweep.progress import clock
from mantra_ray.sweep.store import Store

COLUMNS = ["trial", "status", "error", "seconds", "started", "ended"]
RECENT = 50  # trials that ended last, by which the time left is judged


@dataclass(frozen=True)
class StatusOptions:
    """How far a sweep is: trials by status, those that run, time left, the last error."""

    folder: Annotated[tyro.conf.Positional[str], shown("FOLDER")]
    """Folder or address of the sweep."""


@dataclass(frozen=True)
class Status:
    """How far a sweep is."""

    counts: dict[str, int]  # by status, among them damaged and missing
    begun: int  # trials without rows that have begun to write to TensorBoard
    quiet: float | None  # seconds since the last of these wrote, or the last trial ended
    left: float | None  # seconds, at the pace of the trials that ended last
    error: tuple[str, str] | None  # trial and text of the last failure


def status_of(root: Place, store: Store, trials: Sequence[str]) -> Status:
    """The status of a sweep's trials."""
    whole = store.ended()
    rows = {row["trial"]: row for row in store.read("trials", trials, COLUMNS).to_pylist()}
    states = {t: whole.get(t) or ("damaged" if t in rows else "missing") for t in trials}
    waiting = [trial for trial, state in states.items() if state in ("missing", "damaged")]
    signs = {} if isinstance(root, Remote) else last_signs(root / "tensorboard", waiting)
    ended = [row["ended"].timestamp() for row in rows.values() if row["ended"] is not None]
    last = max([*signs.values(), *ended], default=None)
    failed = [row for trial, row in rows.items() if states[trial] == "failed"]
    failed.sort(key=lambda row: row["ended"] or datetime.min.replace(tzinfo=UTC))
    return Status(
        counts=Counter({state: 0 for state in ("done", "failed", "pruned", "missing")}) + Counter(states.values()),
        begun=len(signs),
        quiet=None if last is None else max(0.0, time.time() - last),
        left=time_left(list(rows.values()), len(waiting)),
        error=(failed[-1]["trial"], (failed[-1]["error"] or "").strip()) if failed else None,
    )


def last_signs(board: Path, trials: Sequence[str]) -> dict[str, float]:
    """When those of the trials that have begun wrote to TensorBoard last, in seconds since 1970."""
    runs = {path.name.rpartition("_")[2]: path for path in board.glob("*")}  # a run's name ends with its trial
    files = {trial: list(runs[trial].glob("events.out.tfevents.*")) for trial in trials if trial in runs}
    return {trial: max(file.stat().st_mtime for file in found) for trial, found in files.items() if found}


def time_left(rows: Sequence[dict[str, Any]], waiting: int) -> float | None:
    """Seconds for the waiting trials at the pace of those that ended last; None where none tells."""
    timed = sorted((row["ended"], row["started"]) for row in rows if row["ended"] and row["started"])[-RECENT:]
    if not waiting or not timed:
        return 0.0 if not waiting else None
    span = (timed[-1][0] - min(started for _, started in timed)).total_seconds()
    return span / len(timed) * waiting


def main(args: Sequence[str]) -> int:
    """Run `mantra status ARGS`; returns the exit code."""
    options = tyro.cli(StatusOptions, args=list(args), prog="mantra status")
    console = terminal.console()
    root, store, trials = sweep_folder(options.folder)
    found = status_of(root, store, trials)

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False)

    say(f"{root}: " + ", ".join(f"{count} {state}" for state, count in found.counts.items()) + f" of {len(trials)}")
    if found.begun:
        say(f"{found.begun} begun and not ended; the last sign of life was {clock(found.quiet)} ago")
    elif found.quiet is not None and found.left != 0.0:
        say(f"none is known to run; the last trial ended {clock(found.quiet)} ago")
    if found.left:
        say(f"about {clock(found.left)} left, at the pace of the trials that ended last")
    if found.error is not None:
        trial, error = found.error
        say(f"last error, of {trial}: {error.splitlines()[-1] if error else 'no reason was given'}", "red")
        say(f"  all of them: mantra results {options.folder} --failed")
    return 0
