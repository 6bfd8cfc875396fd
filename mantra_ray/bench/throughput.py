"""`mantra bench throughput`: what a sweep costs beside the compute of its trials, against plain Ray Tune.

The same trials on the built-in simulator run three ways, each in a process and a Ray of its own: as a sweep, and as
function trainables handed straight to Tune, with a new process for every trial (Tune's default) and with processes
used again. Then sweeps of many trials that only write a few canned rows show how the driver's memory, its time a
trial and the reading of results grow.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from ray import tune
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mantra_ray import terminal
from mantra_ray.bench.cells import MemoryWatch
from mantra_ray.data.catalog import load_screen
from mantra_ray.errors import InputError
from mantra_ray.files import atomic
from mantra_ray.forward import Fold
from mantra_ray.sweep.cluster import connected, slots
from mantra_ray.sweep.options import SMOKE, Options, check_writable, shown
from mantra_ray.sweep.report import print_summary
from mantra_ray.sweep.runner import run_sweep
from mantra_ray.sweep.spec import SweepSpec, TrialSpec
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.summary import read_description
from mantra_ray.sweep.trial import TrialOutcome, run_trial
from mantra_ray.training.stages import make_folds, stage_key

SEEDS = 3
REGULATORS, ROWS = 10, 40  # of a canned trial
MIB = 2**20
DESCRIPTION = "What a sweep costs beside the compute of its trials, against the same grid through plain Ray Tune."
Way = Literal["sweep", "tune", "tune-reused"]


@dataclass(frozen=True)
class BenchOptions:
    """Options of `mantra bench throughput`."""

    real: Annotated[int, shown("N", "300")] = 300
    """Trials on sim each way; 0 leaves them out."""
    ways: Annotated[tuple[Way, ...], shown("WAY ...", "all three")] = ("sweep", "tune", "tune-reused")
    """How they run: as a sweep, or by Tune alone with a new process a trial or with processes used again."""
    trials: Annotated[tuple[int, ...], shown("N ...", "none")] = ()
    """Sweeps of so many canned trials: 1000 10000."""
    smoke: Annotated[bool, tyro.conf.FlagCreatePairsOff, shown("", "off")] = False
    """Tiny data and few passes, to see that all works."""
    folder: Annotated[str, shown("FOLDER", "the system's folder for temporary files")] = ""
    """Where the sweeps' files lie while they are needed."""
    out: Annotated[str, shown("FILE.json", "none is written")] = ""
    """File of all rows."""

    def check(self) -> None:
        """Raise InputError for a value that cannot be."""
        if self.real and self.real < 2 * SEEDS:
            raise InputError("options", "--real", self.real, f"must be 0, or at least {2 * SEEDS}")
        for count in self.trials:
            if count < 2:
                raise InputError("options", "--trials", count, "must be at least 2")
        if not (self.trials or (self.real and self.ways)):
            raise InputError("options", "--trials", self.trials, "nothing to measure")
        for flag, place in (("--folder", self.folder), ("--out", self.out and str(Path(self.out).parent))):
            if place:
                check_writable(Path(place))
            if place and flag == "--folder" and not Path(place).is_dir():
                raise InputError("options", flag, place, "is no folder")
        if self.out and (Path(self.out).suffix != ".json" or Path(self.out).is_dir()):
            raise InputError("options", "--out", self.out, "must be a .json file")


def sweep_of(count: int, seeds: int, base: Options, folder: Path, name: str) -> tuple[SweepSpec, Options]:
    """A sweep over alpha of as nearly `count` trials as its seeds allow, baselines among them, on one split of sim."""
    options = replace(base, out=str(folder), seeds=seeds, splits=("seen",), name=name)
    alphas = np.linspace(0, 1, max(1, round(count / seeds) - 1))
    return options.sweep(name, [{"nexus.query_alpha": float(alpha)} for alpha in alphas]), options


def canned(spec: TrialSpec, *_: Any, **__: Any) -> TrialOutcome:
    """In the place of a trial: rows of a small one, at once."""
    arms = ("gnn", "zero") if spec.kind == "baselines" else ("memory_off", "memory_shuffled", "memory_on")
    rng = np.random.default_rng(int(spec.id, 16))
    parts, length = ("validation", "test"), len(arms) * 2 * ROWS
    records = {
        "arm": np.repeat(arms, 2 * ROWS),
        "part": np.tile(np.repeat(parts, ROWS), len(arms)),
        "record": np.tile(np.arange(2 * ROWS), len(arms)),
        "regulator": np.arange(length) % REGULATORS,
        "dose": np.full(length, 0.5, np.float32),
        "state": np.zeros(length, np.int64),
        "training_records": np.full(length, 3),
        "rare": np.arange(length) % REGULATORS == 0,
        "outlier": np.arange(length) % REGULATORS == 1,
        "squared_error": rng.random(length),
        "reference_error": np.ones(length),
    }
    where = {"split": "seen", "slice": "all", "metric": "program_mse_gain", "lower": -1.0, "upper": 1.0, "n": ROWS}
    scores = [{"arm": arm, "part": part, "value": rng.random(), **where} for arm in arms for part in parts]
    curves = [{"epoch": epoch, "metric": "loss", "value": rng.random()} for epoch in range(3)]
    return TrialOutcome({"write_density": 0.5, "load": 1.0}, scores, records, curves)


def in_tune(config: dict[str, dict[str, str]], folds: dict[str, Fold], folder: Path) -> None:
    """A trial as one writes it for Tune alone: the fold comes with the function, the gain goes into the report."""
    begun, job = time.perf_counter(), config["job"]
    outcome = run_trial(TrialSpec.from_json(job["spec"]), folds[job["fold"]], folder)
    tune.report({"gains": gains(outcome.scores), "seconds": time.perf_counter() - begun})


def gains(scores: Sequence[dict[str, Any]]) -> list[float]:
    """Gains of the warmed memory on test, ascending, from rows of the table `scores`."""
    wanted = {"arm": "memory_on", "part": "test", "slice": "all", "metric": "program_mse_gain"}
    return sorted(row["value"] for row in scores if wanted.items() <= row.items())


def by_sweep(count: int, seeds: int, base: Options, folder: Path, run: Callable | None = None) -> dict[str, Any]:
    """Run a sweep in this process; its timing, the gain of each trial and how long its results take to read."""
    spec, options = sweep_of(count, seeds, base, folder, f"sweep{count}")
    with MemoryWatch() as memory:
        run_sweep(spec, options, Console(file=io.StringIO()), **({} if run is None else {"run": run}))
    root = folder / spec.name
    timing, results = read_description(root)["timing"], root / "results"
    row = {name: timing[name] for name in ("count", "slots", "compute", "starting")} | {"wall": timing["trials"]}
    status = Store(results).read("trials", columns=["status"])["status"].to_pylist()
    row |= {"driver_bytes": memory.own, "bytes": memory.proportional, "failed": row["count"] - status.count("done")}
    for name, read in {
        "read_finished": lambda: Store(results).finished(),
        "read_trials": lambda: Store(results).read("trials"),
        "read_records": lambda: Store(results).read("records"),
        "read_summary": lambda: print_summary(root, Console(file=io.StringIO())),
    }.items():
        begun = time.perf_counter()
        read()
        row[name] = time.perf_counter() - begun
    return row | {"gains": gains(Store(results).read("scores").to_pylist())}


def by_tune(count: int, seeds: int, base: Options, folder: Path, reuse: bool) -> dict[str, Any]:
    """Run the trials of `by_sweep` by Tune alone, with its own loggers; the same numbers."""
    spec, options = sweep_of(count, seeds, base, folder, f"sweep{count}")
    screen = load_screen(spec.base.data)
    trials = spec.trials(screen.sha256, "")
    artifacts = folder / spec.name / "artifacts"
    with connected("") as resources:
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "0"
        paths = make_folds(screen, [trial.config for trial in trials], artifacts, int(resources["CPU"]), 0)
        jobs = [{"spec": t.to_json(), "fold": stage_key(t.config, t.data_sha256)} for t in trials]
        with MemoryWatch() as memory:
            folds = {key: Fold.load(path) for key, path in paths.items()}
            begun = time.perf_counter()
            results = tune.Tuner(
                tune.with_resources(tune.with_parameters(in_tune, folds=folds, folder=artifacts), {"cpu": 1}),
                param_space={"job": tune.grid_search(jobs)},
                tune_config=tune.TuneConfig(reuse_actors=reuse),
                run_config=tune.RunConfig(name=f"tune-{reuse}", storage_path=str(folder / "tune"), verbose=0),
            ).fit()
            wall = time.perf_counter() - begun
        beside = slots(options, resources)
    told = [result.metrics for result in results if result.error is None]
    return {
        "count": len(trials),
        "slots": beside,
        "wall": wall,
        "compute": sum(metrics["seconds"] for metrics in told),
        "driver_bytes": memory.own,
        "bytes": memory.proportional,
        "failed": len(trials) - len(told),
        "gains": sorted(gain for metrics in told for gain in metrics["gains"]),
    }


def measure(way: str, count: int, smoke: bool, folder: Path) -> dict[str, Any]:
    """One row: `count` trials by a way, or canned ones, in this process."""
    base = SMOKE if smoke else Options()
    if way == "canned":
        row = by_sweep(count, 1, SMOKE, folder, canned)
    elif way == "sweep":
        row = by_sweep(count, SEEDS, base, folder)
    else:
        row = by_tune(count, SEEDS, base, folder, way == "tune-reused")
    slot_seconds, running = row["wall"] * row["slots"], (row["wall"] - row.get("starting", 0)) * row["slots"]
    return {
        "way": way,
        **row,
        "overhead": (slot_seconds - row["compute"]) / row["count"],
        "overhead_running": (running - row["compute"]) / row["count"] if "starting" in row else None,
        "share": row["compute"] / slot_seconds,
    }


def run(options: BenchOptions, progress: Progress) -> Iterator[dict[str, Any]]:
    """The rows; each is measured in a process of its own, whose memory begins afresh."""
    cases = [(way, options.real) for way in options.ways if options.real]
    cases += [("canned", count) for count in options.trials]
    task = progress.add_task("throughput", total=len(cases))
    with tempfile.TemporaryDirectory(dir=options.folder or None) as folder:
        for way, count in cases:
            progress.update(task, description=f"{count:,} trials, {way}")
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                yield process.submit(measure, way, count, options.smoke, Path(folder)).result()
            progress.advance(task)


def agree(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether all ways found the same gains."""
    first, *others = [row["gains"] for row in rows if row["way"] != "canned"] or [[]]
    return all(len(gains) == len(first) and np.allclose(gains, first, atol=1e-6) for gains in others)


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """The rows as two tables, and how they were measured."""
    real, many = ([row for row in rows if (row["way"] == "canned") == kind] for kind in (False, True))
    columns = {
        "way": lambda row: row["way"],
        "trials": lambda row: f"{row['count']:,}",
        "slots": lambda row: str(row["slots"]),
        "wall s": lambda row: f"{row['wall']:.1f}",
        "compute s": lambda row: f"{row['compute']:.1f}",
        "share": lambda row: f"{row['share']:.1%}",
        "overhead s/trial": lambda row: f"{row['overhead']:.3f}",
        "once started": lambda row: "" if row["overhead_running"] is None else f"{row['overhead_running']:.3f}",
        "driver MiB": lambda row: f"{row['driver_bytes'] / MIB:,.0f}",
        "all MiB": lambda row: f"{row['bytes'] / MIB:,.0f}",
    }
    reading = {
        "trials": columns["trials"],
        "start s": lambda row: f"{row['starting']:.1f}",
        "ms/trial": lambda row: f"{1e3 * (row['wall'] - row['starting']) / row['count']:.1f}",
        "driver MiB": columns["driver MiB"],
        **{
            f"{name} s": lambda row, name=name: f"{row[f'read_{name}']:.2f}"
            for name in ("finished", "trials", "records", "summary")
        },
    }
    for title, found, of in (("Trials on sim", real, columns), ("Canned trials", many, reading)):
        if found:
            table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, title_justify="left")
            for name in of:
                table.add_column(name, justify="left" if name == "way" else "right")
            for row in found:
                table.add_row(*(cell(row) for cell in of.values()))
            console.print(table)
    told = "share: compute over slots x wall, from the first process's start to the last trial's end. "
    told += "Once started: without the time until the first trial ran. Memory: largest of the driver, and of all "
    told += "processes with shared pages once."
    if real:
        told += " All ways found the same gains." if agree(real) else " THE WAYS DIFFER IN THEIR GAINS."
    if many:
        told += " ms/trial: of wall time, once started."
        told += " finished, trials, records: seconds to read these by a store that knows nothing; summary: the tables."
    console.print("\n" + told, highlight=False)


def main(args: Sequence[str]) -> int:
    """Measure, print and save; returns 0, or 1 if a trial failed or the ways differ in what they find."""
    options = tyro.cli(BenchOptions, args=list(args), description=DESCRIPTION, prog="mantra bench throughput")
    options.check()
    console = terminal.console()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        rows = list(run(options, progress))
    show(rows, console)
    if options.out:
        with atomic(options.out) as partial:
            partial.write_text(json.dumps(rows, indent=1))
    return int(any(row["failed"] for row in rows) or not agree(rows))
