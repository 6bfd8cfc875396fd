"""Runs a sweep: data, folds, then every trial that is not finished yet, on Ray."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray import tune
from rich.console import Console

from mantra_ray.data.catalog import load_screen
from mantra_ray.data.controls import with_controls
from mantra_ray.data.splits import make_split
from mantra_ray.fields import replace as replace_fields
from mantra_ray.files import atomic
from mantra_ray.forward import Fold
from mantra_ray.provenance import code_version, provenance
from mantra_ray.sweep import worker
from mantra_ray.sweep.cluster import connected, slots
from mantra_ray.sweep.options import Options
from mantra_ray.sweep.progress import Display
from mantra_ray.sweep.report import print_summary
from mantra_ray.sweep.spec import SweepSpec, TrialSpec
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.summary import read_description
from mantra_ray.training.inputs import check_memory
from mantra_ray.training.stages import make_folds, stage_key

# What a trial's numbers depend on: a change elsewhere runs no trial again.
CODE = ("config", "data", "cascade", "nexus", "forward", "baselines", "evaluation", "training", "sweep.trial")


@dataclass(frozen=True)
class Timing:
    """Where a run's wall time went, in seconds."""

    total: float
    stages: float
    trials: float
    starting: float  # of `trials`, until the first one ran: processes start and import
    compute: float  # sum over the trials
    count: int
    slots: int

    def overhead(self, starting: bool) -> float:
        """Seconds of a slot that a trial took beyond its own compute, with or without the processes' start."""
        wall = self.trials if starting else self.trials - self.starting
        return (wall * self.slots - self.compute) / self.count


def run_sweep(spec: SweepSpec, options: Options, console: Console, run: Callable = worker.execute) -> int:
    """Run a sweep to its end and print its tables; finished trials are skipped.

    Returns the exit code: 0, 1 if a trial failed, 130 if the user stopped it. `run` runs one trial.
    Raises InputError for data or options that cannot be used.
    """
    root = Path(options.out).resolve() / spec.name
    store = Store(root / "results")
    with Display(console) as display:
        try:
            display.say(f"Sweep {spec.name}: loading {spec.base.data.data}")
            arms = [replace_fields(spec.base, **arm) for arm in (*spec.arms, {})]
            screen = with_controls(load_screen(spec.base.data), arms)
            for note in screen.notes:
                display.say(f"Note: {note}")
            check_memory(spec.base.nexus, screen.data.delta_expression is not None, bool(screen.class_names))
            trials = replace(spec, splits=spec.splits or screen.splits).trials(screen.sha256, code_version(*CODE))
            for config in {(trial.config.split, trial.config.seed): trial.config for trial in trials}.values():
                make_split(screen.data, config.split, config.seed)  # refuses what the data cannot give, before Ray
            finished = store.finished()
            pending = [trial for trial in trials if trial.id not in finished]
            display.say(f"{len(trials)} trials, {len(trials) - len(pending)} of them finished before")
            timing = _run(pending, screen, options, root, display, run) if pending else None
        except KeyboardInterrupt:
            display.say("Stopped. Finished trials are kept: give the same command again to go on.")
            return 130
    describe(root, [trial.id for trial in trials], timing)
    print_summary(root, console)
    return int(bool({trial.id for trial in trials} - store.finished()))


def _run(
    pending: list[TrialSpec], screen: Any, options: Options, root: Path, display: Display, run: Callable
) -> Timing:
    begun = time.perf_counter()
    display.say("Starting Ray" if not options.address else f"Connecting to Ray at {options.address}")
    with connected(options.address) as resources:
        beside = min(slots(options, resources), len(pending))
        stages = time.perf_counter()
        experiments = [trial.config for trial in pending]
        gpus = options.gpus_per_trial
        workers = max(1, int(min(resources["CPU"], resources.get("GPU", 0) / gpus if gpus else float("inf"))))
        paths = make_folds(screen, experiments, root / "artifacts", workers, gpus, display.stage)
        bench = worker.Bench(
            folds={key: worker.SharedFold(ray.put(Fold.load(path)), path) for key, path in paths.items()},
            root=root,
            scratch=root / ".tune" / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}",
            slots=beside,
            provenance=provenance(),
            workers=options.workers_per_trial,
            cpus=options.cpus_per_trial,
            gpus=gpus,
        )
        trials, moment = time.perf_counter(), time.time()
        display.begin(len(pending))
        watcher = _Watcher(display, Store(root / "results"))
        _tune(pending, bench, watcher, run)
        ended = time.perf_counter()
    return Timing(
        total=ended - begun,
        stages=trials - stages,
        trials=ended - trials,
        starting=max(0.0, min(watcher.first, time.time()) - moment),
        compute=watcher.compute,
        count=len(pending),
        slots=beside,
    )


def _tune(pending: Sequence[TrialSpec], bench: worker.Bench, watcher: _Watcher, run: Callable) -> None:
    """Hand the trials to Tune; it keeps nothing, since trials write their own rows."""
    # A trial with several workers only waits for them: they hold the cores. Tune wants it to hold something.
    share = {"cpu": bench.cpus, "gpu": bench.gpus} if bench.workers == 1 else {"memory": 2**20}
    jobs = [{"spec": t.to_json(), "fold": stage_key(t.config, t.data_sha256)} for t in pending]
    trainable = tune.with_resources(tune.with_parameters(worker.trial, bench=bench, run=run), share)
    tuner = tune.Tuner(
        trainable,
        param_space={"job": tune.grid_search(jobs)},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=bench.slots,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=bench.scratch.name,
            storage_path=str(bench.scratch.parent),
            verbose=0,
            callbacks=[watcher],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(bench.scratch, ignore_errors=True)


class _Watcher(tune.Callback):
    """Tells the display what Tune does, and writes the row of a trial whose process died."""

    def __init__(self, display: Display, store: Store):
        self.display, self.store = display, store
        self.compute, self.first = 0.0, float("inf")

    def __getstate__(self):
        return {}  # Tune pickles its callbacks to restore them later; we never do, and a display cannot be pickled

    def on_trial_start(self, iteration, trials, trial, **info):
        self.display.start()

    def on_trial_complete(self, iteration, trials, trial, **info):
        result = trial.last_result
        self.compute += result["seconds"]
        self.first = min(self.first, result["started"])
        self.display.end(failed=result["status"] == "failed", gain=result["gain"])

    def on_trial_error(self, iteration, trials, trial, **info):
        spec = TrialSpec.from_json(trial.config["job"]["spec"])
        told = Path(trial.error_file).read_text() if trial.error_file else "no reason was given"
        self.store.write(spec, {"status": "failed", "error": f"outside the trial: {told}"})
        self.display.end(failed=True)


def describe(root: Path, trials: list[str], timing: Timing | None) -> None:
    """Write which trials the sweep's last command was made of, in order, and what they cost, to sweep.json."""
    path = root / "sweep.json"
    cost = read_description(root)["timing"] if timing is None and path.exists() else None
    if timing is not None:
        cost = asdict(timing) | {"overhead": timing.overhead(True), "overhead_running": timing.overhead(False)}
    with atomic(path) as partial:
        partial.write_text(json.dumps({"trials": trials, "timing": cost}, indent=1))
