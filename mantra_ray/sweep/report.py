"""What a sweep prints at its end: its tables, the findings in words, alarms, cost and paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mantra_ray.sweep.alarms import alarms
from mantra_ray.sweep.paired import against_default
from mantra_ray.sweep.progress import clock
from mantra_ray.sweep.scorecard import print_scorecards
from mantra_ray.sweep.search_tables import search_tables
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.summary import (
    CEILING,
    MEMORY,
    Arm,
    Configuration,
    arms_by_split,
    best_on_validation,
    chosen_on_validation,
    configurations,
    read_description,
)
from mantra_ray.sweep.tables import (
    GEOMETRY,
    NAMES,
    arm_table,
    compared_arms,
    compared_table,
    describe,
    gain,
    group_table,
    heading,
    print_by_split,
    under_load,
)


def print_summary(root: Path, console: Console) -> bool:
    """Print a sweep's tables, failures, alarms, cost and where its results lie; whether no alarm is a loud one.

    Raises InputError if it is no sweep's folder.
    """
    described, store, trials, compared = read_sweep(root)
    failed = [row for row in trials if row["status"] == "failed"]
    count, trials = len(trials), compared
    found = configurations(store, trials)
    chosen = chosen_by_split(store, trials, found)
    arms = arms_by_split(store, trials, chosen)

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False)

    if found or any(arms.values()):
        level = trials[0]["evaluation.confidence"]
        say(f"Gain over the GNN in program MSE on test records: percent [{level:.0%} interval], seeds pooled.")
    if found:
        shapes = dict.fromkeys(tuple(item.values[name] for name in GEOMETRY) for item in found)
        named = [f"{NAMES[shape]} {shape[0]}x{shape[1]}" for shape in shapes if shape in NAMES]
        say("Memory geometry, buckets x slots: " + ", ".join(named)) if len(named) > 1 else None
        say("* best on validation. Load, write density and occupancy are means over seeds and splits.")
    for loaded in (False, True):
        group = [item for item in found if under_load(item) == loaded]
        if group:
            say("\n" + heading(group), style="bold")
            print_by_split(console, list(arms), lambda splits, group=group: group_table(group, found, splits))
    for arm in compared_arms(found):
        compared = against_default(store, found, arm)
        if compared:
            say(f"\n{arm} against the default's, on the same test records: points [interval], p (Holm)", style="bold")
            say("IQM: interquartile mean over regulators and seeds; better: share of them that gain, ties count half;")
            say("equal: the default's error on every record, not counted by Holm.")
            print_by_split(console, list(arms), lambda splits, pairs=compared: compared_table(found, pairs, splits))
    if any(arms.values()):
        say("\nBaselines, and the memory as validation chooses it: program MSE, gain [interval]", style="bold")
        print_by_split(console, list(arms), lambda splits: arm_table({split: arms[split] for split in splits}))
        say("")
        for split in arms:
            say(finding(split, arms[split], found, chosen[split]))
    search_tables(root, store, console)
    found_wrong = alarms(store, trials)
    for alarm in found_wrong:
        say(f"ALARM, {alarm}." if alarm.loud else f"Note: {alarm}.", style="bold red" if alarm.loud else None)
    for row in failed[:3]:
        say(f"Failed {row['trial']}: {row['error'].strip().splitlines()[-1]}", style="red")
    print_ending(root, described["timing"], count - len(failed), len(failed), console)
    return not any(alarm.loud for alarm in found_wrong)


def print_metrics(root: Path, console: Console) -> None:
    """Print every metric of every arm, a table a split; InputError if it is no sweep's folder."""
    _, store, _, trials = read_sweep(root)
    print_scorecards(store, trials, chosen_by_split(store, trials, configurations(store, trials)), console)


def read_sweep(root: Path) -> tuple[dict[str, Any], Store, list[dict[str, Any]], list[dict[str, Any]]]:
    """Description and results of a sweep, rows of its trials in their order, and those that its tables compare."""
    described = read_description(root)
    store = Store(root / "results")
    order = {trial: i for i, trial in enumerate(described["trials"])}
    trials = sorted(store.read("trials", order).to_pylist(), key=lambda row: order[row["trial"]])
    return described, store, trials, compared_trials(trials, described.get("search"))


def chosen_by_split(
    store: Store, trials: Sequence[dict[str, Any]], found: Sequence[Configuration]
) -> dict[str, Configuration | None]:
    """The configuration that is judged on each split."""
    splits = dict.fromkeys(row["split.kind"] for row in trials)
    return {split: chosen_on_validation(store, found, split) for split in splits}


def compared_trials(trials: list[dict[str, Any]], search: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The trials that the tables compare: all of them, or those of a search's own seeds that it did not drop."""
    if not search:
        return trials
    kept = [row for row in trials if row["trial"] in set(search["trials"])]
    seeds = {row["seed"] for row in kept}
    return kept + [row for row in trials if row["kind"] == "baselines" and row["seed"] in seeds]


def finding(split: str, arms: dict[str, Arm], found: Sequence[Configuration], chosen: Configuration | None) -> str:
    """What the sweep found on one split, in words."""
    here = [item for item in found if split in item.results]
    baselines = [arm for name, arm in arms.items() if name not in (*MEMORY, CEILING, "gnn")]
    best = best_on_validation(found, split)
    said = []
    if here and all(item.results[split].is_gnn for item in here):
        said.append(f"all {len(here)} configurations of the memory equal the GNN: none gains or loses anything")
    elif chosen is not None:
        names = {"memory_on": "memory on", "memory_shuffled": "shuffled memory"}
        gains = [f"{words} {gain(arms[name])}" for name, words in names.items() if name in arms]
        said.append(", ".join(gains) + " over the GNN")
        tied = f", first of {len(best)} that tie" if len(best) > 1 else ""
        said.append(f"best by validation is {describe(best[0])}{tied}")
        if chosen not in best:
            said.append(f"that is within chance of the default, which is judged: {describe(chosen)}")
    if baselines:
        top = min(baselines, key=lambda arm: arm.error)
        said.append(f"the best baseline is {top.name} {gain(top)}")
    return f"On {split}: {'; '.join(said) or 'no trial finished'}."


def print_ending(root: Path, timing: dict[str, Any] | None, done: int, failed: int, console: Console) -> None:
    """Counts, cost, and the paths with the commands that open them."""
    console.print(f"{done} trials finished, {failed} failed.", highlight=False)
    if timing:
        share = timing["compute"] / (timing["trials"] * timing["slots"])
        console.print(
            f"Last run: {clock(timing['total'])} in all, {clock(timing['stages'])} in stages, "
            f"{clock(timing['trials'])} in {timing['count']} trials on {timing['slots']} slots; "
            f"compute {timing['compute']:.1f} s = {share:.0%} of the slots' time, "
            f"overhead {timing['overhead']:.2f} s a trial, "
            f"{timing['overhead_running']:.2f} s once all processes ran.",
            highlight=False,
        )
    results, board = root / "results", root / "tensorboard"
    lines = (
        f"Parquet:     {results}",
        f"  open with: python -c \"import pandas; print(pandas.read_parquet('{results / 'scores'}'))\"",
        f"TensorBoard: {board}",
        f"  open with: tensorboard --logdir {board}",
    )
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
