"""A sweep's numbers from its Parquet files: configurations and arms by split, seeds pooled, with intervals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from mantra_ray.config import ExperimentConfig
from mantra_ray.errors import InputError
from mantra_ray.evaluation.statistics import Interval, nested_difference, nested_gain
from mantra_ray.fields import flatten
from mantra_ray.sweep.options import ExperimentOptions
from mantra_ray.sweep.rowfiles import choose
from mantra_ray.sweep.store import Store

PAIRED = ("seed", "split.kind")
FLOOR = "noise_floor_mse"
CEILING = "noise_ceiling"
MEMORY = ("memory_off", "memory_shuffled", "memory_on")
COLUMNS = ["arm", "seed", "regulator", "squared_error", "reference_error"]
DEFAULTS = flatten(ExperimentOptions().experiment(0))
TOGETHER = 256  # configurations whose rows are read together
TIE = 1e-6  # gains that differ by less are the same


@dataclass(frozen=True)
class Arm:
    """One predictor on the test rows of one split, all seeds pooled."""

    name: str
    error: float  # mean squared error over programs and records
    gain: Interval  # over the GNN


@dataclass(frozen=True)
class Result:
    """One configuration of the memory on one split, all seeds pooled."""

    trials: list[dict[str, Any]]  # rows of the table `trials`
    validation: float  # gain on validation, on which choices are made; NaN where there is none
    test: Interval

    @property
    def is_gnn(self) -> bool:
        """Whether the memory leaves the GNN's error as it is."""
        return max(abs(self.test.value), abs(np.nan_to_num(self.validation))) <= TIE


@dataclass(frozen=True)
class Configuration:
    """One configuration of the memory on the splits where its trials finished."""

    knobs: dict[str, Any]  # the fields in which the sweep's configurations differ
    results: dict[str, Result]  # by split
    values: dict[str, Any]  # every field of the configuration

    @property
    def trials(self) -> list[dict[str, Any]]:
        """Rows of all its finished trials."""
        return [row for result in self.results.values() for row in result.trials]

    def mean(self, diagnostic: str) -> float:
        """Mean of a memory diagnostic over seeds and splits; NaN where none was written."""
        values = [row[diagnostic] for row in self.trials if row[diagnostic] is not None]
        return float(np.mean(values)) if values else float("nan")


def read_description(root: Path) -> dict[str, Any]:
    """The file sweep.json of a sweep's folder; InputError if it cannot be read."""
    try:
        return json.loads((root / "sweep.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(root, "sweep.json", type(error).__name__, "is no folder of a sweep") from error


def read_arms(store: Store, trials: Sequence[dict[str, Any]], part: str, arms: tuple[str, ...] = ()) -> dict[str, Arm]:
    """Every arm (or those named) of the trials' records in `part`, seeds pooled; the GNN is always among them."""
    if not trials:
        return {}
    where = ds.field("part") == part
    where = where & ds.field("arm").isin(arms) if arms else where
    return arms_of(store.read("records", [row["trial"] for row in trials], COLUMNS, where), trials[0])


def arms_of(rows: pa.Table, trial: dict[str, Any]) -> dict[str, Arm]:
    """Every arm of rows of the table `records`, seeds pooled, judged as the trial says."""
    rows = rows.combine_chunks()
    names = np.asarray(rows["arm"].to_pylist(), dtype=str)
    columns = {name: rows[name].to_numpy() for name in COLUMNS[1:]}
    evaluation = trial["evaluation.bootstrap"], trial["evaluation.confidence"]
    found = {}
    for name in dict.fromkeys(names.tolist()):
        error, reference, regulator, seed = (columns[c][names == name] for c in COLUMNS[3:] + COLUMNS[2:0:-1])
        interval = nested_gain(error, reference, regulator, seed, *evaluation, rng_seed=0)
        found[name] = Arm(name, float(np.mean(error)), interval)
        found.setdefault("gnn", Arm("gnn", float(np.mean(reference)), Interval(0.0, 0.0, 0.0, interval.n)))
    return found


def noise_ceiling(store: Store, trials: Sequence[dict[str, Any]]) -> dict[str, Arm]:
    """The score of the true mean, mean over seeds, where the observations' noise is known."""
    where = (ds.field("arm") == CEILING) & (ds.field("part") == "test") & (ds.field("slice") == "all")
    rows = store.read("scores", [row["trial"] for row in trials], ["metric", "value", "n"], where).to_pylist()
    found = {metric: [row for row in rows if row["metric"] == metric] for metric in (FLOOR, "program_mse_gain")}
    if not all(found.values()):
        return {}
    floor, gain = (float(np.mean([row["value"] for row in values])) for values in found.values())
    interval = Interval(gain, float("nan"), float("nan"), sum(row["n"] for row in found[FLOOR]))
    return {CEILING: Arm(CEILING, floor, interval)}


def configurations(store: Store, trials: Sequence[dict[str, Any]]) -> list[Configuration]:
    """Finished Nexus trials by configuration and split, in the order of `trials`."""
    nexus = [row for row in trials if row["kind"] == "nexus" and row["status"] == "done"]
    fields = [name for name in flatten(ExperimentConfig()) if name not in PAIRED]
    swept = [name for name in fields if len({value(row, name) for row in nexus}) > 1]
    found: dict[tuple, Configuration] = {}
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in nexus:
        groups.setdefault((row["split.kind"], *(value(row, name) for name in swept)), []).append(row)
    read = memory_on(store, list(groups.values()))
    for ((split, *values), rows), (validation, test) in zip(groups.items(), read, strict=True):
        if test is not None:
            chance = validation.gain.value if validation is not None else float("nan")
            knobs = dict(zip(swept, values, strict=True))
            settings = {name: value(rows[0], name) for name in fields}
            item = found.setdefault(tuple(values), Configuration(knobs, {}, settings))
            item.results[split] = Result(rows, chance, test.gain)
    return list(found.values())


def memory_on(store: Store, groups: Sequence[list[dict[str, Any]]]) -> Iterator[tuple[Arm | None, Arm | None]]:
    """The memory on validation and on test records of each group of trials; files are listed once for many."""
    for begin in range(0, len(groups), TOGETHER):
        some = groups[begin : begin + TOGETHER]
        trials = [row["trial"] for group in some for row in group]
        rows = store.read("records", trials, ["trial", "part", *COLUMNS], ds.field("arm") == "memory_on")
        for group in some:
            mine = choose(rows, None, ds.field("trial").isin([row["trial"] for row in group]))
            parts = (choose(mine, COLUMNS, ds.field("part") == part) for part in ("validation", "test"))
            yield tuple(arms_of(part, group[0]).get("memory_on") for part in parts)


def value(row: dict[str, Any], name: str) -> Any:
    """A trial's setting; one that came after the trial had the default."""
    return row.get(name, DEFAULTS[name])


def best_on_validation(found: Sequence[Configuration], split: str) -> list[Configuration]:
    """The configurations of highest gain on validation; several if they tie, none if validation is empty."""
    chances = {i: item.results[split].validation for i, item in enumerate(found) if split in item.results}
    top = max((chance for chance in chances.values() if not np.isnan(chance)), default=float("nan"))
    return [found[i] for i, chance in chances.items() if chance >= top - TIE]


def chosen_on_validation(store: Store, found: Sequence[Configuration], split: str) -> Configuration | None:
    """The configuration that is judged on test: the default, unless validation's best beats it by more than chance.

    The best of many on few validation records is picked from noise; it must be better than the default with the
    whole interval of the paired difference. Without the default among the configurations the best is taken.
    """
    best = best_on_validation(found, split)
    here = [item for item in found if split in item.results]
    default = next((item for item in here if item.knobs.items() <= DEFAULTS.items()), None)
    if not best or default is None or default in best:
        return default if default in best else next(iter(best), None)
    (error, regulator, seed), (other, _, _) = (
        validation_errors(store, item.results[split].trials) for item in (best[0], default)
    )
    if len(error) != len(other):  # a trial of one of them failed
        return default
    return best[0] if nested_difference(error, other, regulator, seed).upper < 0 else default


def validation_errors(store: Store, trials: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared errors with memory on, regulators and seeds [n] of the validation records, by seed and record."""
    where = (ds.field("part") == "validation") & (ds.field("arm") == "memory_on")
    columns = ["seed", "record", "regulator", "squared_error"]
    rows = store.read("records", [row["trial"] for row in trials], columns, where)
    rows = rows.sort_by([("seed", "ascending"), ("record", "ascending")])
    return tuple(rows[name].to_numpy() for name in ("squared_error", "regulator", "seed"))


def arms_by_split(
    store: Store, trials: Sequence[dict[str, Any]], chosen: dict[str, Configuration | None]
) -> dict[str, dict[str, Arm]]:
    """Baselines, noise ceiling and, of the configuration chosen on each split, the memory's arms."""
    by_split = {}
    for split, item in chosen.items():
        done = [row for row in trials if row["split.kind"] == split and row["status"] == "done"]
        baselines = [row for row in done if row["kind"] == "baselines"]
        arms = read_arms(store, baselines, "test") | noise_ceiling(store, baselines)
        if item is not None:
            arms |= read_arms(store, item.results[split].trials, "test", MEMORY)
        by_split[split] = arms
    return by_split
