"""Hands the trials of a plan to Ray Tune, and tells the display and the store what Tune does with them."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ray import tune
from ray.air.execution._internal import actor_manager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import class_cache, tune_controller
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from mantra_ray.sweep import worker
from mantra_ray.sweep.progress import Display
from mantra_ray.sweep.schedule import GAIN, Pruned
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.sweep.store import Store
from mantra_ray.training.stages import stage_key

RETRIES = 2  # of a trial whose process died: the machine may have been at fault, or another trial's memory
# Tune stops altogether when Ray's memory monitor ends a trial's process, unless that counts as a process that died.
for module in (actor_manager, tune_controller):
    module.RayActorError = (RayActorError, OutOfMemoryError)
# Tune would hand the keys of AWS to every trial by a way that Ray writes to its log; trials reach no bucket.
class_cache.ENV_VARS_TO_PROPAGATE = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")}
UNLIMITED = 10**9  # trials: the feeder says when it is over


class Feeder(Searcher):
    """Gives Tune one batch of trials after another, the next when all of one have ended."""

    def __init__(self, batches: Iterable[list[TrialSpec]]):
        super().__init__()
        self.batches, self.waiting, self.running = iter(batches), deque(), set()

    def __getstate__(self):
        return {}  # as for the watcher below

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's job; None while a batch is still running, FINISHED after the last."""
        if not self.waiting:
            if self.running:
                return None
            batch = next(self.batches, None)
            if batch is None:
                return Searcher.FINISHED
            self.waiting.extend(batch)
        self.running.add(trial_id)
        return {"job": job(self.waiting.popleft())}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """A trial ended, well or not."""
        self.running.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a sweep is resumed from its rows."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


def job(spec: TrialSpec) -> dict[str, str]:
    """A trial as Tune carries it to its actor."""
    return {"spec": spec.to_json(), "fold": stage_key(spec.config, spec.data_sha256)}


class Watcher(tune.Callback):
    """Tells the display what Tune does, and writes the row of a trial whose process died."""

    def __init__(self, display: Display, store: Store):
        self.display, self.store = display, store
        self.compute, self.first, self.count = 0.0, float("inf"), 0
        self.started: set[str] = set()
        self.unwritten: str | None = None  # why rows could not be written, a full disk say

    def __getstate__(self):
        return {}  # Tune pickles its callbacks to restore them later; we never do, and a display cannot be pickled

    def on_trial_start(self, iteration, trials, trial, **info):
        if trial.trial_id not in self.started:  # and not one that only paused
            self.started.add(trial.trial_id)
            self.display.start()

    def on_trial_complete(self, iteration, trials, trial, **info):
        result = trial.last_result
        self.count += 1
        self.compute += result["seconds"]
        self.first = min(self.first, result["started"])
        self.unwritten = result.get("unwritten") or self.unwritten
        if "status" in result:  # otherwise it was pruned
            self.display.end(failed=result["status"] == "failed", gain=result["gain"])
        else:
            self.display.end(failed=False, gain=result.get(GAIN))

    def on_trial_error(self, iteration, trials, trial, **info):
        spec = TrialSpec.from_json(trial.config["job"]["spec"])
        told = Path(trial.error_file).read_text() if trial.error_file else "no reason was given"
        self.count += 1
        try:
            self.store.write(spec, {"status": "failed", "error": f"outside the trial: {told}"})
        except OSError as error:
            self.unwritten = str(error)
        self.display.end(failed=True)


def tune_trials(
    batches: Iterator[list[TrialSpec]],
    bench: worker.Bench,
    watcher: Watcher,
    run: Callable,
    rule: TrialScheduler,
) -> None:
    """Run all batches; Tune keeps nothing of them, since trials write their own rows; `rule` may prune them."""
    # A trial with several workers only waits for them: they hold the cores. Tune wants it to hold something.
    share = {"cpu": bench.cpus, "gpu": bench.gpus} if bench.workers == 1 else {"memory": 2**20}
    trainable = tune.with_resources(tune.with_parameters(worker.trial, bench=bench, run=run), share)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=Feeder(batches),
            scheduler=rule,
            num_samples=UNLIMITED,
            # A population's members wait for each other: all of them must be there.
            max_concurrent_trials=UNLIMITED if bench.scheduler == "pbt" else bench.slots,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=bench.scratch.name,
            storage_path=str(bench.scratch.parent),
            verbose=0,
            callbacks=[watcher, Pruned(watcher.store, bench.origin)],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(bench.scratch, ignore_errors=True)
