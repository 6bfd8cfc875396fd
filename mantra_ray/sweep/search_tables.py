"""What a search prints: its best configurations or its Pareto front, who was stopped and why, the winner's re-run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mantra_ray.evaluation.statistics import Interval
from mantra_ray.sweep.knobs import words
from mantra_ray.sweep.paired import compare, errors, shared
from mantra_ray.sweep.power import counted
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.summary import Arm, read_arms, read_description

SHOWN = 10  # configurations of a search at most
ARM = "memory_on"


def search_tables(root: Path, store: Store, console: Console) -> None:
    """Print what the search of a sweep's folder found, if it was one; InputError if it is no sweep's folder."""
    log = read_description(root).get("search")
    if not log:
        return

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False)

    rows = sorted(log["rows"], key=lambda row: -row["gain"])
    if rows and log["search"] == "multi":
        front = [row for row in rows if row["best"]]
        say(f"\nPareto front on validation, {len(front)} of {len(rows)} configurations; rates are measured", "bold")
        console.print(front_table(front))
    elif rows and log["search"] == "tpe":
        say(f"\nSearch by TPE: best of {len(rows)} configurations on validation, mean over splits", "bold")
        console.print(table(("configuration", "gain"), ((words(r["configuration"]), points(r["gain"])) for r in rows)))
    if log["ended"]:
        say(f"The search ended early: {log['ended']}.")
    if log["racing"]:
        say("\nStopped by racing: behind on validation where both ran, points of gain, and p (one-sided)", "bold")
        say(f"A comparison stops at p < {log['level']:.2g}, {log['confidence']:.0%} confidence over all of them.")
        console.print(racing_table(log["racing"]))
    elif log["level"] is not None:
        say("\nRacing stopped no configuration.", "bold")
    for split, found in log["confirmed"].items():
        confirmation(store, split, found, console)


def table(labels: Sequence[str], rows: Any) -> Table:
    """A narrow table of the first rows; configurations stand on the left."""
    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for label in labels:
        made.add_column(label, justify="left" if label in ("configuration", "behind") else "right")
    for row in list(rows)[:SHOWN]:
        made.add_row(*row)
    return made


def front_table(front: Sequence[dict[str, Any]]) -> Table:
    """One row a configuration of the front, the highest gain first."""
    cells = (
        (
            *(words(row["configuration"]), points(row["gain"])),
            *(f"{row['write_density']:.1%}", f"{row['records_per_second']:.3g}"),
        )
        for row in front
    )
    return table(("configuration", "gain", "write density", "records/s"), cells)


def racing_table(stopped: Sequence[dict[str, Any]]) -> Table:
    """One row a configuration that got no more seeds."""
    cells = (
        (
            *(words(row["configuration"]), str(row["seeds"]), words(row["rival"])),
            *(f"{100 * row['behind']:.1f}", f"{row['p_value']:.2g}"),
        )
        for row in stopped
    )
    return table(("configuration", "after seeds", "behind", "by", "p"), cells)


def confirmation(store: Store, split: str, found: dict[str, Any], console: Console) -> None:
    """The winner and the default of a split: validation on the seeds of the search, and validation and test on fresh
    ones, which chose nothing. (Fresh seeds split the same records anew: they confirm the choice, not the data.)"""
    trials = {
        name: [row for row in store.read("trials", found[name]).to_pylist() if row["status"] == "done"]
        for name in ("searched", "fresh", "default_searched", "default")
    }
    validation = {name: arm(store, rows, "validation") for name, rows in trials.items()}
    test = {name: arm(store, trials[name], "test") for name in ("fresh", "default")}
    fresh = counted(len(found["fresh"]), "fresh seed")
    console.print(f"\n{split}: chosen on validation, run again on {fresh}", style="bold")
    rows = [
        (words(found["winner"]), validation["searched"], validation["fresh"], test["fresh"]),
        ("default", validation["default_searched"], validation["default"], test["default"]),
    ]
    same = found["fresh"] == found["default"]
    labels = ("configuration", "validation, search", "validation, fresh", "test, fresh")
    console.print(table(labels, ((name, *map(span, results)) for name, *results in rows[: 2 - same])))
    fell = {
        name: validation[searched].gain.value - validation[fresh].gain.value
        for name, searched, fresh in (("chosen", "searched", "fresh"), ("default", "default_searched", "default"))
        if validation[searched] and validation[fresh]
    }
    if "chosen" in fell:
        text = f"Optimism (gain on validation, search less fresh seeds): {points(fell['chosen'])} points"
        beside = (
            f"; the default's, which was not chosen: {points(fell['default'])}"
            if "default" in fell and not same
            else ""
        )
        console.print(f"{text}{beside}.", highlight=False, markup=False)
    if not same and trials["fresh"] and trials["default"]:
        mine, theirs = shared(*(errors(store, trials[name], ARM, "test") for name in ("fresh", "default")))
        judging = trials["fresh"][0]["evaluation.bootstrap"], trials["fresh"][0]["evaluation.confidence"]
        if len(mine["seed"]):
            difference, *_, p_value = compare(mine, theirs, *judging)
            text = f"Against the default on test, same records: {interval(difference)} points, p {p_value:.2g}."
            console.print(text, highlight=False, markup=False)


def arm(store: Store, trials: Sequence[dict[str, Any]], part: str) -> Arm | None:
    """The memory on in a part of the trials' records; None where nothing is."""
    return read_arms(store, trials, part, (ARM,)).get(ARM)


def points(gain: float) -> str:
    """A gain in percent, or points."""
    return f"{round(100 * gain, 1) + 0.0:+.1f}"


def interval(found: Interval) -> str:
    """A gain with its interval, in percent."""
    return f"{points(found.value)} [{100 * found.lower:.1f}, {100 * found.upper:.1f}]"


def span(found: Arm | None) -> str:
    """An arm's gain with its interval."""
    return "-" if found is None else interval(found.gain)
