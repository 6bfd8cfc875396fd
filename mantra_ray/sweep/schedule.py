"""Schedulers: which trials are stopped early, or go on from another's state, by their validation gain so far."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from mantra_ray.fields import replace
from mantra_ray.sweep.knobs import Knob
from mantra_ray.sweep.spec import Scheduler, TrialSpec
from mantra_ray.sweep.store import Store
from mantra_ray.training.state import TIMED, Keeper, OnEpoch

PASSES, GAIN = "passes", "validation_gain"  # of a report: passes over the training fold so far, and what came of them
GRACE = 2  # passes before a trial may be stopped: the gain after the first is mostly that of the start
REDUCTION = 3  # ASHA: the best third goes on from each rung (Li et al. 2020 use 3 or 4)
LONGEST = 10_000  # passes: rungs beyond those of a trial do nothing
SAMPLES = 3  # trials that a median needs
WORST = -1e9  # stands for a gain that is no number


def scheduler(kind: Scheduler, space: Sequence[Knob] = ()) -> Patient:
    """The scheduler of a sweep; `none` runs every trial to its end.

    `asha`: asynchronous successive halving (Li et al. 2020, MLSys). `median`: the median stopping rule (Golovin et
    al. 2017, KDD). `pbt`: population-based training (Jaderberg et al. 2017) of the nuisance knobs in `space`.
    Each compares trials of one seed and split alone. Raises InputError if there is nothing for `pbt` to explore.
    """
    if kind == "pbt":
        from mantra_ray.sweep.population import Population

        return Population(space)
    rule = {"metric": GAIN, "mode": "max", "time_attr": PASSES, "grace_period": GRACE}
    if kind == "asha":
        asha = {"max_t": LONGEST, "reduction_factor": REDUCTION, "stop_last_trials": False}
        return Paired(lambda: AsyncHyperBandScheduler(**rule, **asha))
    if kind == "median":
        # It pauses a trial that has too few to compare with, unless that is put off for ever.
        return Paired(
            lambda: MedianStoppingRule(**rule, min_samples_required=SAMPLES, min_time_slice=math.inf)  # type: ignore
        )
    return Patient()


class Patient(FIFOScheduler):
    """Runs trials in their order, and keeps as many processes as there are slots while a plan's next batch is awaited.

    Tune ends all idle processes but one when no trial waits; starting them again takes longer than a small trial.
    """

    slots = 0
    _kept = False

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        cache = getattr(tune_controller, "_actor_cache", None)  # Tune has no public word for it
        if not self._kept and cache is not None:
            cache.increase_max(trial.placement_group_factory, by=self.slots)
            self._kept = True
        super().on_trial_add(tune_controller, trial)

    def remember(self, store: Store, trials: Mapping[str, TrialSpec]) -> None:
        """Nothing: no trial depends on others."""


class Ended:
    """Stands for a trial of an earlier run."""

    def __init__(self, trial_id: str):
        self.trial_id = trial_id


class Paired(Patient):
    """One scheduler for every seed and split, so that only trials that differ in their configuration compete.

    Trials without gains (baselines) are never stopped.
    """

    _supports_buffered_results = False

    def __init__(self, make: Callable[[], TrialScheduler]):
        super().__init__()
        self.make = make
        self.inner: dict[Any, TrialScheduler] = {}
        self.groups: dict[str, Any] = {}  # by Tune's trial id
        self.last: dict[str, dict[str, Any]] = {}  # report with a gain, by Tune's trial id

    def group(self, spec: TrialSpec) -> Any:
        """What trials must have in common to compete; None competes with nobody."""
        return None if spec.kind == "baselines" else (spec.config.seed, spec.config.split.kind)

    def remember(self, store: Store, trials: Mapping[str, TrialSpec]) -> None:
        """Take the trials, by id, that an earlier run ended into account."""
        named = [name for name, status in store.ended().items() if status != "failed" and name in trials]
        rows = store.read("curves", named, ["trial", "epoch", "value"], ds.field("metric") == GAIN)
        curves: dict[str, list[tuple[int, float]]] = {}
        for row in rows.to_pylist():
            curves.setdefault(row["trial"], []).append((row["epoch"], row["value"]))
        for name, curve in curves.items():
            inner, ended = self._of(self.group(trials[name])), Ended(name)
            inner.on_trial_add(None, ended)
            reports = [{PASSES: passes, GAIN: number(gain)} for passes, (_, gain) in enumerate(sorted(curve))]
            for report in reports:
                inner.on_trial_result(None, ended, report)
            inner.on_trial_complete(None, ended, reports[-1])

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        group = self.groups[trial.trial_id] = self.group(TrialSpec.from_json(trial.config["job"]["spec"]))
        if inner := self._of(group):
            inner.on_trial_add(self.within(tune_controller, trial), trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        inner = self._of(self.groups[trial.trial_id])
        if inner is None or GAIN not in result:
            return self.CONTINUE
        self.last[trial.trial_id] = result
        return inner.on_trial_result(self.within(tune_controller, trial), trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """The last report with a gain stands for the final one, which has none."""
        inner, last = self._of(self.groups[trial.trial_id]), self.last.pop(trial.trial_id, None)
        if inner and last is not None:
            inner.on_trial_complete(self.within(tune_controller, trial), trial, last)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self.last.pop(trial.trial_id, None)
        if inner := self._of(self.groups[trial.trial_id]):
            inner.on_trial_error(self.within(tune_controller, trial), trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        if inner := self._of(self.groups[trial.trial_id]):
            inner.on_trial_remove(self.within(tune_controller, trial), trial)

    def debug_string(self) -> str:
        return f"{type(self).__name__} of {len(self.inner)} groups"

    def within(self, tune_controller: Any, trial: Trial) -> Any:
        """The controller as the inner scheduler of a trial sees it."""
        return tune_controller

    def _of(self, group: Any) -> TrialScheduler | None:
        if group is not None and group not in self.inner:
            self.inner[group] = self.make()
        return self.inner.get(group)


def number(gain: float) -> float:
    """A gain that can be ranked."""
    return gain if math.isfinite(gain) else WORST


class Reporter:
    """Listens to a trial's epochs in its actor and reports each to Tune, which may end the trial there.

    It ends by SystemExit in the trial's thread, as soon as Tune wants the actor back: nothing may catch that. Give
    the `keeper` (of every epoch, in a folder of its own) where others may go on from the trial's state, and with
    `behind` the number of epochs that were reported before.
    """

    def __init__(self, listener: OnEpoch, keeper: Keeper | None = None, behind: int = 0):
        self.listener, self.keeper, self.behind = listener, keeper, behind
        self.passes, self.started = 0, time.time()

    def __call__(self, epoch: int, metrics: dict[str, float]) -> None:
        self.listener(epoch, metrics)
        told = {"epoch": epoch, "metrics": metrics, "started": self.started, "seconds": time.time() - self.started}
        if GAIN in metrics:
            told |= {PASSES: self.passes, GAIN: number(metrics[GAIN])}
            self.passes += 1
        if epoch >= self.behind:
            kept = tune.Checkpoint.from_directory(self.keeper.path.parent) if self.keeper else None
            tune.report(told, checkpoint=kept)


def attach(
    kind: Scheduler, config: Mapping[str, Any], spec: TrialSpec, listener: OnEpoch, states: Path, scratch: Path
) -> tuple[TrialSpec, OnEpoch, Keeper]:
    """What a trial's actor trains, by what Tune gave it: the trial with its knobs of now, its listener and its keeper.

    States lie in `states`, from which a later run goes on; those of a population in `scratch`, since without the
    others' states a member is none. The rows are those of `spec`, whatever its knobs have become.
    """
    if kind != "pbt" or spec.kind == "baselines":
        return spec, listener if kind == "none" else Reporter(listener), Keeper(states / f"{spec.id}.pt", spec.id)
    keeper = Keeper(scratch / spec.id / "state.pt", config["population"], seconds=0)
    trained = dataclasses.replace(spec, config=replace(spec.config, **config["knobs"]))
    return trained, Reporter(listener, keeper, take_state(keeper)), keeper


def take_state(keeper: Keeper) -> int:
    """Put the state that Tune wants this trial to go on from where the keeper looks; epochs that it has behind it."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        keeper.remove()
        return 0
    with checkpoint.as_directory() as folder:
        keeper.path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(folder) / keeper.path.name, keeper.path)
    return 1 + max((row["epoch"] for row in keeper.load().get("rows", ())), default=-1)


class Pruned(tune.Callback):
    """Writes the row of each trial that a scheduler stopped: status, the epoch where it ended, and its curves.

    The driver does it, from what was reported: the trial's own thread ends only when its actor is needed again.
    `origin` are columns that all rows share.
    """

    def __init__(self, store: Store, origin: Mapping[str, Any]):
        self.store, self.origin = store, origin
        self.curves: dict[str, dict[int, dict[str, float]]] = {}

    def __getstate__(self):
        return {}  # Tune pickles its callbacks to restore them later; we never do

    def on_trial_result(self, iteration, trials, trial, result, **info):
        if "metrics" in result:
            self.curves.setdefault(trial.trial_id, {})[result["epoch"]] = result["metrics"]

    def on_trial_complete(self, iteration, trials, trial, **info):
        epochs, last = self.curves.pop(trial.trial_id, {}), trial.last_result
        if "status" not in last:
            spec = TrialSpec.from_json(trial.config["job"]["spec"])
            self.store.write(spec, {**self.origin, **pruned_row(spec, last)}, curves=rows(epochs))

    def on_trial_error(self, iteration, trials, trial, **info):
        self.curves.pop(trial.trial_id, None)


def pruned_row(spec: TrialSpec, last: Mapping[str, Any]) -> dict[str, Any]:
    """What the table `trials` says of a trial whose last report was `last`."""
    row = {"status": "pruned", "pruned_epoch": int(last["epoch"]), "seconds": float(last["seconds"])}
    return row | {"provenance.code": spec.code, "provenance.data_sha256": spec.data_sha256}


def rows(epochs: Mapping[int, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Curves as rows of epoch, metric and value."""
    told: Iterable[tuple[int, Mapping[str, float]]] = sorted(epochs.items())
    return [
        {"epoch": epoch, "metric": name, "value": value}
        for epoch, of in told
        for name, value in of.items()
        if name not in TIMED
    ]
