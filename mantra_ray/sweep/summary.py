"""A sweep's tables, from its Parquet files: configurations and baselines by split, with pooled intervals."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
from rich.console import Console
from rich.table import Table

from mantra_ray.config import ExperimentConfig, flatten
from mantra_ray.errors import InputError
from mantra_ray.evaluation.statistics import Interval, nested_gain
from mantra_ray.sweep.progress import clock
from mantra_ray.sweep.store import Store

PAIRED = ("seed", "split.kind")
FLOOR = "noise_floor_mse"
MEMORY = ("memory_off", "memory_shuffled", "memory_on")
COLUMNS = ["arm", "seed", "regulator", "squared_error", "reference_error"]


@dataclass(frozen=True)
class Arm:
    """One predictor on the test rows of one split, all seeds pooled."""

    name: str
    error: float  # mean squared error over programs and records
    gain: Interval  # over the GNN


@dataclass(frozen=True)
class Configuration:
    """One configuration of the memory on one split, all seeds pooled."""

    knobs: dict[str, Any]  # the fields in which the sweep's configurations differ
    split: str
    trials: list[dict[str, Any]]  # rows of the table `trials`
    validation: float  # gain on validation, on which choices are made
    test: Interval

    def mean(self, diagnostic: str) -> float:
        """Mean of a memory diagnostic over the seeds; NaN where none was written."""
        values = [row[diagnostic] for row in self.trials if row[diagnostic] is not None]
        return float(np.mean(values)) if values else float("nan")


def read_description(root: Path) -> dict[str, Any]:
    """The file sweep.json of a sweep's folder; InputError if it cannot be read."""
    try:
        return json.loads((root / "sweep.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(root, "sweep.json", type(error).__name__, "is no folder of a sweep") from error


def read_arms(store: Store, trials: list[dict[str, Any]], part: str, arms: tuple[str, ...] = ()) -> dict[str, Arm]:
    """Every arm (or those named) of the trials' records in `part`, seeds pooled; the GNN is always among them."""
    if not trials:
        return {}
    where = ds.field("part") == part
    where = where & ds.field("arm").isin(arms) if arms else where
    rows = store.read("records", [row["trial"] for row in trials], COLUMNS, where).combine_chunks()
    names = np.asarray(rows["arm"].to_pylist(), dtype=str)
    columns = {name: rows[name].to_numpy() for name in COLUMNS[1:]}
    evaluation = trials[0]["evaluation.bootstrap"], trials[0]["evaluation.confidence"]
    found = {}
    for name in dict.fromkeys(names.tolist()):
        error, reference, regulator, seed = (columns[c][names == name] for c in COLUMNS[3:] + COLUMNS[2:0:-1])
        interval = nested_gain(error, reference, regulator, seed, *evaluation, rng_seed=0)
        found[name] = Arm(name, float(np.mean(error)), interval)
        found.setdefault("gnn", Arm("gnn", float(np.mean(reference)), Interval(0.0, 0.0, 0.0, interval.n)))
    return found


def noise_ceiling(store: Store, trials: list[dict[str, Any]]) -> dict[str, Arm]:
    """The score of the true mean, mean over seeds, where the observations' noise is known."""
    where = (ds.field("arm") == "noise_ceiling") & (ds.field("part") == "test") & (ds.field("slice") == "all")
    rows = store.read("scores", [row["trial"] for row in trials], ["metric", "value", "n"], where).to_pylist()
    found = {metric: [row for row in rows if row["metric"] == metric] for metric in (FLOOR, "program_mse_gain")}
    if not all(found.values()):
        return {}
    floor, gain = (float(np.mean([row["value"] for row in values])) for values in found.values())
    interval = Interval(gain, float("nan"), float("nan"), sum(row["n"] for row in found[FLOOR]))
    return {"noise_ceiling": Arm("noise_ceiling", floor, interval)}


def configurations(store: Store, trials: list[dict[str, Any]]) -> list[Configuration]:
    """Finished Nexus trials by configuration and split, in the order of `trials`."""
    nexus = [row for row in trials if row["kind"] == "nexus" and row["status"] == "done"]
    fields = [name for name in flatten(ExperimentConfig()) if name not in PAIRED]
    swept = [name for name in fields if len({row[name] for row in nexus}) > 1]
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in nexus:
        groups.setdefault((row["split.kind"], *(row[name] for name in swept)), []).append(row)
    found = []
    for (split, *values), rows in groups.items():
        part = {name: read_arms(store, rows, name, ("memory_on",)) for name in ("validation", "test")}
        validation, test = (part[name].get("memory_on") for name in ("validation", "test"))
        if test is not None:
            chance = validation.gain.value if validation is not None else float("nan")
            knobs = dict(zip(swept, values, strict=True))
            found.append(Configuration(knobs, split, rows, chance, test.gain))
    return found


def print_summary(root: Path, console: Console) -> None:
    """Print a sweep's tables, failures, cost and where its results lie; InputError if it is no sweep's folder."""
    described = read_description(root)
    store = Store(root / "results")
    order = {trial: i for i, trial in enumerate(described["trials"])}
    trials = sorted(store.read("trials", order).to_pylist(), key=lambda row: order[row["trial"]])
    found = configurations(store, trials)
    for split in dict.fromkeys(row["split.kind"] for row in trials):
        here = [item for item in found if item.split == split]
        best = max(here, key=lambda item: np.nan_to_num(item.validation, nan=-np.inf), default=None)
        if here:
            console.print(configuration_table(split, here, best))
        done = [row for row in trials if row["split.kind"] == split and row["status"] == "done"]
        baselines = [row for row in done if row["kind"] == "baselines"]
        arms = read_arms(store, baselines, "test") | noise_ceiling(store, baselines)
        if best is not None:
            arms |= read_arms(store, best.trials, "test", MEMORY)
        if arms:
            console.print(arm_table(split, arms))
    failed = [row for row in trials if row["status"] == "failed"]
    for row in failed[:3]:
        console.print(f"Failed {row['trial']}: {row['error'].strip().splitlines()[-1]}", style="red", markup=False)
    print_ending(root, described["timing"], len(trials) - len(failed), len(failed), console)


def configuration_table(split: str, rows: list[Configuration], best: Configuration | None) -> Table:
    """Configurations on one split; `best` by validation is marked."""
    title = f"Split {split}: gain over the GNN in program MSE on test rows, seeds pooled"
    table = Table(title=title, title_justify="left", caption="* best on validation", caption_justify="left")
    geometry = {"nexus.buckets", "nexus.slots"} & rows[0].knobs.keys()
    knobs = [name for name in rows[0].knobs if name not in geometry and name != "nexus.load"]
    loads = "nexus.load" in rows[0].knobs
    heads = ["B x S"] * bool(geometry) + ["load set"] * loads + [name.removeprefix("nexus.") for name in knobs]
    numbers = ["gain", "interval", "density", "load", "occupancy", "seeds", "n"]
    for head in [*heads, *numbers]:
        table.add_column(head, justify="right", no_wrap=True)
    for item in rows:
        first, cells = item.trials[0], []
        if geometry:
            cells.append(f"{first['nexus.buckets']}x{first['nexus.slots']}")
        if loads:
            cells.append(f"{item.knobs['nexus.load']:g}" if item.knobs["nexus.load"] else "-")
        cells += [
            f"{item.knobs[name]:g}" if isinstance(item.knobs[name], float) else str(item.knobs[name]) for name in knobs
        ]
        gain = f"{item.test.value:+.1%}" + ("*" if item is best else " ")
        diagnostics = [
            f"{item.mean('write_density'):.0%}",
            f"{item.mean('load'):.2g}",
            f"{100 * item.mean('occupancy'):.2g}%",
        ]
        cells += [gain, span(item.test), *diagnostics, str(len(item.trials)), str(item.test.n)]
        table.add_row(*cells, style="bold" if item is best else None)
    return table


def arm_table(split: str, arms: dict[str, Arm]) -> Table:
    """Baselines and the chosen memory on one split, by falling error."""
    title = f"Split {split}: baselines, and the memory best on validation"
    table = Table(title=title, title_justify="left")
    for head in ("arm", "program MSE", "gain over the GNN", "interval", "n"):
        table.add_column(head, justify="left" if head == "arm" else "right", no_wrap=True)
    for arm in sorted(arms.values(), key=lambda arm: -arm.error):
        style = "bold" if arm.name == "memory_on" else None
        table.add_row(
            arm.name, f"{arm.error:.4g}", f"{arm.gain.value:+.1%}", span(arm.gain), str(arm.gain.n), style=style
        )
    return table


def span(interval: Interval) -> str:
    """An interval of gains as text; empty where there is none."""
    if np.isnan(interval.lower):
        return ""
    return f"[{interval.lower:+.1%}, {interval.upper:+.1%}]".replace("[", "\\[")


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
