"""Runs a sweep: data, folds, then every trial that is not finished yet, on Ray."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import ray
from rich.console import Console

from mantra_ray.data.catalog import load_screen
from mantra_ray.data.controls import with_controls
from mantra_ray.data.screen import Screen
from mantra_ray.data.splits import make_split
from mantra_ray.errors import InputError
from mantra_ray.fields import replace as replace_fields
from mantra_ray.files import Place, clear_unfinished, place, unfinished
from mantra_ray.forward import Fold
from mantra_ray.provenance import code_version, provenance
from mantra_ray.sweep import worker
from mantra_ray.sweep.alarms import leaks
from mantra_ray.sweep.cluster import connected, slots
from mantra_ray.sweep.description import Timing, describe
from mantra_ray.sweep.hparams import Columns
from mantra_ray.sweep.options import Options
from mantra_ray.sweep.plan import Grid, Plan, Work
from mantra_ray.sweep.power import expected, lines
from mantra_ray.sweep.progress import Display
from mantra_ray.sweep.report import print_summary
from mantra_ray.sweep.schedule import scheduler
from mantra_ray.sweep.search import SearchPlan, searches
from mantra_ray.sweep.spec import SweepSpec, TrialSpec
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.tensorboard import begin
from mantra_ray.sweep.tuning import Watcher, tune_trials
from mantra_ray.sweep.upload import upload
from mantra_ray.training.inputs import check_memory
from mantra_ray.training.stages import make_folds
from mantra_ray.training.state import clear_states

# What a trial's numbers depend on: a change elsewhere runs no trial again.
CODE = ("config", "data", "cascade", "nexus", "forward", "baselines", "evaluation", "training", "sweep.trial")


def run_sweep(spec: SweepSpec, options: Options, console: Console, run: Callable = worker.execute) -> int:
    """Run a sweep to its end and print its tables; finished trials are skipped.

    Returns the exit code: 0, 1 if a trial failed or an alarm rang, 130 if the user stopped it. `run` runs one trial.
    Raises InputError for data or options that cannot be used.
    """
    root = sweep_root(options, spec)
    store = Store(root / "results")
    clear_unfinished(root, root / ".tune", root / "artifacts", root / "artifacts" / "units", *root.glob("results/*"))
    with Display(console) as display:
        try:
            display.say(f"Sweep {spec.name}: loading {spec.base.data.data}")
            arms = [replace_fields(spec.base, **arm) for arm in (*spec.arms, {})]
            screen = with_controls(load_screen(spec.base.data), arms)
            for note in screen.notes:
                display.say(f"Note: {note}")
            check_memory(spec.base.nexus, screen.data.delta_expression is not None, bool(screen.class_names))
            spec = replace(spec, splits=spec.splits or screen.splits)
            origin = screen.sha256, code_version(*CODE)
            plan = SearchPlan(spec, options, *origin) if searches(spec, options) else Grid(spec.trials(*origin))
            configs = plan.experiments(lambda trial: True)
            for config in {(config.split, config.seed): config for config in configs}.values():
                make_split(screen.data, config.split, config.seed)  # refuses what the data cannot give, before Ray
            work = Work(plan, store, options.retry_failed, options.scheduler == "none")
            batches = iter(work)
            first = next(batches, None)
            ended = sum(not work.wanted(trial) for trial in work.trials)
            most = "" if isinstance(plan, Grid) else "at most "
            display.say(f"{most}{plan.most} trials, {ended} of them finished before")
            timing = None
            if first is not None:
                remaining = _described(root, work, itertools.chain([first], batches))
                timing = _run(remaining, work, spec, screen, options, display, run)
        except KeyboardInterrupt:
            display.say("Stopped. Finished trials are kept: give the same command again to go on.")
            return 130
    describe(root, work.trials, plan, timing)
    ended = store.ended()
    clear_states(root / "states", ".pt", {trial for trial, status in ended.items() if status != "failed"})
    sound = print_summary(root, console)
    if options.copy_to:
        copy(root, place(options.copy_to) / spec.name, console)
    return int(not (sound and all(ended.get(trial) in ("done", "pruned") for trial in work.trials)))


def _run(
    batches: Iterable[list[TrialSpec]],
    work: Work,
    spec: SweepSpec,
    screen: Screen,
    options: Options,
    display: Display,
    run: Callable,
) -> Timing:
    begun, root = time.perf_counter(), sweep_root(options, spec)
    display.say("Starting Ray" if not options.address else f"Connecting to Ray at {options.address}")
    with connected(options.address) as resources:
        count = work.plan.most - sum(not work.wanted(trial) for trial in work.trials)
        beside = min(slots(options, resources), count)
        stages = time.perf_counter()
        gpus = options.gpus_per_trial
        workers = max(1, int(min(resources["CPU"], resources.get("GPU", 0) / gpus if gpus else float("inf"))))
        experiments = work.plan.experiments(work.wanted)
        paths = make_folds(screen, experiments, root / "artifacts", workers, gpus, display.stage)
        folds = {key: Fold.load(path) for key, path in paths.items()}
        before_trials(folds.values(), work, spec, options, display)
        bench = worker.Bench(
            folds={key: worker.SharedFold(ray.put(fold), paths[key]) for key, fold in folds.items()},
            root=root,
            scratch=unfinished(root / ".tune" / f"{datetime.now(UTC):%Y%m%dT%H%M%S}"),
            slots=beside,
            provenance=provenance(),
            workers=options.workers_per_trial,
            cpus=options.cpus_per_trial,
            gpus=gpus,
            timeout=options.trial_timeout,
            scheduler=options.scheduler,
            columns=columns(spec, work.plan),
        )
        begin(root / "tensorboard", bench.columns, work.trials)
        rule = scheduler(options.scheduler, spec.space)
        rule.slots = beside
        rule.remember(work.store, work.trials)
        trials, moment = time.perf_counter(), time.time()
        display.begin(count)
        watcher = Watcher(display, Store(root / "results"))
        tune_trials(batches, bench, watcher, run, rule)
        ended = time.perf_counter()
    if watcher.unwritten:
        problem = f"rows could not be written ({watcher.unwritten}); make room and give the same command again"
        raise InputError(root, "results", watcher.count, problem)
    return Timing(
        total=ended - begun,
        stages=trials - stages,
        trials=ended - trials,
        starting=max(0.0, min(watcher.first, time.time()) - moment),
        compute=watcher.compute,
        count=watcher.count,
        slots=beside,
    )


def columns(spec: SweepSpec, plan: Plan) -> Columns:
    """The settings in which the sweep's trials differ."""
    searched = plan.searched if isinstance(plan, SearchPlan) else ()
    return Columns.of(spec.arms, spec.base, searched)


def copy(root: Path, target: Place, console: Console) -> None:
    """Copy the tables to `target`; InputError where that does not work."""
    try:
        console.print(f"{upload(root, target)} files of rows copied to {target}", highlight=False)
    except Exception as error:  # whatever the address's own package raises
        raise InputError("options", "--copy-to", str(target), f"{type(error).__name__}: {error}") from error


def sweep_root(options: Options, spec: SweepSpec) -> Path:
    """The sweep's folder; InputError if its name would lead out of --out."""
    if spec.name != Path(spec.name).name or spec.name in ("", ".."):
        raise InputError("recipe", "name", spec.name, "must be a plain name; --out sets the folder")
    return Path(options.out).resolve() / spec.name


def before_trials(folds: Collection[Fold], work: Work, spec: SweepSpec, options: Options, display: Display) -> None:
    """Say what the comparisons can find; InputError for a fold whose training rows share something with others."""
    for fold in folds:
        for alarm in leaks(fold):
            raise InputError(spec.base.data.data, "split", fold.meta["kind"], str(alarm))
    comparisons = max(1, (len(spec.arms) - 1) * len(spec.splits)) if isinstance(work.plan, Grid) else 1
    found = expected(folds, spec.base.evaluation, options.effect, options.power, comparisons, work.store)
    for line in lines(found):
        display.say(line)


def _described(root: Path, work: Work, batches: Iterable[list[TrialSpec]]) -> Iterator[list[TrialSpec]]:
    """The batches; before each, the trials so far are written down, so that others can see how far the sweep is."""
    for batch in batches:
        describe(root, work.trials, work.plan, None)
        yield batch
