"""`mantra train`: one memory in either mode, judged as in a sweep, with a checkpoint to explain and to go on from."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from rich.console import Console

from mantra_ray import terminal
from mantra_ray.config import ExperimentConfig, SplitKind
from mantra_ray.data.catalog import load_screen
from mantra_ray.data.controls import with_controls
from mantra_ray.data.screen import Screen
from mantra_ray.data.splits import make_split
from mantra_ray.errors import InputError
from mantra_ray.evaluation.evaluate import Tables, evaluate
from mantra_ray.evaluation.statistics import Interval
from mantra_ray.fields import replace
from mantra_ray.forward import Fold, Prediction
from mantra_ray.nexus.tokens import Vocabulary
from mantra_ray.nexus.warming import warm_in_full
from mantra_ray.provenance import code_version
from mantra_ray.sweep.cluster import connected
from mantra_ray.sweep.options import ExperimentOptions, check_writable, shown
from mantra_ray.sweep.progress import Display
from mantra_ray.sweep.runner import CODE
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.sweep.store import RECORDS, SCORES
from mantra_ray.sweep.summary import CEILING, FLOOR, Arm
from mantra_ray.sweep.tables import arm_table
from mantra_ray.sweep.trial import memory_arms, run_trial
from mantra_ray.training.checkpoint import NAME as CHECKPOINT  # put in place last: where it lies, everything lies
from mantra_ray.training.checkpoint import save
from mantra_ray.training.inputs import check_memory, make_inputs
from mantra_ray.training.nexus import Trained
from mantra_ray.training.recursive import train_memory
from mantra_ray.training.stages import files, is_done, make_folds, stage_key

DIAGNOSTICS = pa.schema(
    [
        ("scope", pa.string()),  # epoch, final, manifold or bucket
        ("manifold", pa.string()),  # of scope manifold and bucket
        ("epoch", pa.int64()),
        ("bucket", pa.int64()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)


@dataclass(frozen=True)
class TrainOptions(ExperimentOptions):
    """Train one memory, judge it beside the baselines, and keep it: see `mantra explain`."""

    mode: Annotated[Literal["residual", "language"] | None, shown("{residual,language}", "--nexus.mode")] = None
    """Mode B, regression on the residual, or Mode A, a language model of the record stream."""
    correct: Annotated[Literal["programs", "genes"] | None, shown("{programs,genes}", "--nexus.correct")] = None
    """What the memory corrects."""
    correction: Annotated[
        Literal["additive", "recursive"] | None, shown("{additive,recursive}", "--nexus.correction")
    ] = None
    """Whether the correction is added to the GNN's prediction or fed into its layers."""
    split: Annotated[str, shown("KIND", "the first that makes sense for the data")] = ""
    """What is held out: seen, strategy, context or unseen."""
    seed: int = 0
    """Seed of the split, the folds and the training."""
    out: Annotated[str, shown("FOLDER", "out/nexus")] = "out/nexus"
    """Folder of the files; networks and folds are kept under artifacts and used again."""
    address: Annotated[str, shown("ADDRESS", "start Ray on this machine")] = ""
    """Address of a Ray cluster, or auto."""
    gpus: float = 0.0
    """GPUs of each worker that trains networks; the memory trains on a GPU where there is one."""

    def check(self) -> None:
        """Raise InputError for a value that cannot be."""
        super().check()
        if self.split and self.split not in get_args(SplitKind):
            raise InputError("options", "--split", self.split, f"must be among {', '.join(get_args(SplitKind))}")
        for name in ("seed", "gpus"):
            if not getattr(self, name) >= 0:
                raise InputError("options", f"--{name}", getattr(self, name), "must be at least 0")
        check_writable(Path(self.out))

    def experiment(self, seed: int) -> ExperimentConfig:
        """The configuration that these options describe; the short ones go before those of --nexus."""
        short = {f"nexus.{name}": getattr(self, name) for name in ("mode", "correct", "correction")}
        return replace(super().experiment(seed), **{name: value for name, value in short.items() if value})


class Bars(Display):
    """The display of a sweep, with epochs in the place of trials."""

    def __init__(self, console: Console, epochs: int):
        super().__init__(console)
        self.epochs, self.known = epochs, {}

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """An epoch ended; losses and gain on validation are shown as they were last told."""
        self.known |= {name: value for name, value in metrics.items() if name.endswith(("loss", "gain"))}
        told = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in self.known.items()]
        self._show("epochs", epoch + 1, self.epochs, ", ".join(told))


def main(args: Sequence[str]) -> int:
    """Run `mantra train ARGS`; returns the exit code."""
    options = tyro.cli(TrainOptions, args=list(args), prog="mantra train")
    options.check()
    console = terminal.console()
    try:
        return run(options, console)
    except KeyboardInterrupt:
        console.print("Stopped. Finished networks and folds are kept: give the same command again to go on.")
        return 130


def run(options: TrainOptions, console: Console) -> int:
    """Train, judge, write and print what the options describe; InputError for data that cannot be used."""
    out, experiment = Path(options.out), options.experiment(options.seed)
    with Bars(console, count_epochs(experiment)) as bars:
        screen = with_controls(load_screen(experiment.data), [experiment])
        for note in screen.notes:
            bars.say(f"Note: {note}")
        experiment = replace(experiment, **{"split.kind": options.split or screen.splits[0]})
        if experiment.nexus.correction == "recursive" and screen.data.delta_expression is None:
            raise InputError("options", "--correction", "recursive", "the data has no changes of expression")
        path = make_fold(screen, experiment, options, bars)
        fold = Fold.load(path)
        check_vocabulary(out, make_inputs(fold, experiment.nexus).vocabulary)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        trained = train_memory(fold, path.parent, experiment.nexus, options.seed, bars.epoch, device)
        bars.say("Judging")
        predictions, trained.diagnostics = memory_arms(fold, trained, options.seed)
        tables = judge(fold, path.parent, predictions, experiment, screen.sha256)
    write(out, trained, fold, path.parent, experiment, screen, tables)
    report(tables, trained, fold, experiment, out, console)
    return 0


def count_epochs(experiment: ExperimentConfig) -> int:
    """Epochs that training tells of: those of each part, and the judging of the start or of the end."""
    config = experiment.nexus
    language = config.language_epochs if config.mode == "language" else 0
    return language + (config.epochs + 1) * (2 if config.correction == "recursive" else 1)


def make_fold(screen: Screen, experiment: ExperimentConfig, options: TrainOptions, display: Display) -> Path:
    """The fold's file under the folder `artifacts`; Ray is started only if it has to be made."""
    artifacts, key = Path(options.out).resolve() / "artifacts", stage_key(experiment, screen.sha256)
    if is_done(screen, artifacts, key):
        return files(artifacts, key)[0]
    check_memory(experiment.nexus, screen.data.delta_expression is not None, bool(screen.class_names))
    make_split(screen.data, experiment.split, experiment.seed)  # refuses what the data cannot give, before Ray
    display.say(f"Connecting to Ray at {options.address}" if options.address else "Starting Ray")
    with connected(options.address) as resources:
        if options.gpus > resources["GPU"]:
            raise InputError("options", "--gpus", options.gpus, f"the cluster has {resources['GPU']:g}")
        workers = min(resources["CPU"], resources["GPU"] / options.gpus if options.gpus else np.inf)
        made = make_folds(screen, [experiment], artifacts, max(1, int(workers)), options.gpus, display.stage)
    return made[key]


def judge(
    fold: Fold, folder: Path, memory: dict[str, Prediction], experiment: ExperimentConfig, data_sha256: str
) -> Tables:
    """Scores and records of the baselines and of the memory's arms, as two trials of a sweep would write them."""
    spec = TrialSpec("baselines", experiment, data_sha256, code_version(*CODE))
    baselines = run_trial(spec, fold, folder)
    own = evaluate(fold, memory, experiment.evaluation, experiment.seed)
    scores = baselines.scores + [row for row in own.scores if row["arm"] in memory]  # the noise ceiling once
    columns = {name: np.concatenate([column, own.records[name]]) for name, column in baselines.records.items()}
    return Tables(scores, columns)


def check_vocabulary(out: Path, vocabulary: Vocabulary) -> None:
    """InputError if the folder holds tokens of another vocabulary, whose vocab.json would be lost."""
    path = out / "vocab.json"
    if not (out / "example_index.parquet").exists() or not path.exists():
        return
    try:
        same = Vocabulary.load(path) == vocabulary
    except ValueError:
        same = False
    if not same:
        raise InputError(path, "vocabulary", str(out), "belongs to the tokens that lie there; choose another --out")


def bucket_rows(trained: Trained, fold: Fold) -> list[dict[str, Any]]:
    """Diagnostics of each manifold and of each of its buckets, from the final warming pass done once more."""
    model, records = trained.model, trained.inputs.records
    train = records.take(torch.tensor(fold.train, device=records.record.device))
    rows = []
    for reader, memory, stream in zip(model.readers, model.empty_memory(), model.streams(train), strict=True):
        route = reader.route
        config = dataclasses.replace(model.config, regret_gamma=route.gamma)
        warmed = warm_in_full(memory, stream, config, reader.decode)
        load = len(train) / (route.buckets * route.slots)
        shape = {"buckets": route.buckets, "slots": route.slots, "load": load}
        rows += [
            {"scope": "manifold", "manifold": route.name, "metric": name, "value": float(value)}
            for name, value in (shape | warmed.diagnostics).items()
        ]
        for name, counts in vars(warmed.buckets).items():
            rows += [
                {"scope": "bucket", "manifold": route.name, "bucket": bucket, "metric": name, "value": float(count)}
                for bucket, count in enumerate(counts.tolist())
            ]
    return rows


def write(
    out: Path, trained: Trained, fold: Fold, folder: Path, experiment: ExperimentConfig, screen: Screen, tables: Tables
) -> None:
    """Write model.pt, vocab.json, diagnostics.parquet, scores.parquet and records.parquet to the folder `out`.

    `folder` is that of the fold's file. Earlier files of these names are replaced, each whole or not at all; a
    checkpoint never lies beside files of another run. The columns of scores and records are those of a sweep.
    """
    spec = TrialSpec("nexus", experiment, screen.sha256, code_version(*CODE))
    pairing = {"trial": spec.id, "kind": spec.kind, "seed": experiment.seed}
    scores = [pairing | row for row in tables.scores]
    shared = pairing | {"split": experiment.split.kind}
    count = len(tables.records["record"])
    columns = {name: [value] * count for name, value in shared.items()} | tables.records
    numbers = {name: value for name, value in trained.diagnostics.items() if not isinstance(value, str)}
    final = [{"scope": "final", "metric": name, "value": value} for name, value in numbers.items()]
    rows = [{"scope": "epoch", **row} for row in trained.curves] + final + bucket_rows(trained, fold)
    out.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".train_", dir=out))
    try:
        trained.model.vocabulary.save(partial / "vocab.json")
        pq.write_table(pa.Table.from_pylist(rows, DIAGNOSTICS), partial / "diagnostics.parquet")
        pq.write_table(pa.Table.from_pylist(scores, SCORES), partial / "scores.parquet")
        pq.write_table(pa.table(columns).select(RECORDS.names).cast(RECORDS), partial / "records.parquet")
        names = sorted(path.name for path in partial.iterdir())
        save(partial / CHECKPOINT, trained, fold, experiment, screen.class_names, folder)
        (out / CHECKPOINT).unlink(missing_ok=True)
        for name in (*names, CHECKPOINT):
            os.replace(partial / name, out / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def report(
    tables: Tables, trained: Trained, fold: Fold, experiment: ExperimentConfig, out: Path, console: Console
) -> None:
    """Print the arms, what the memory holds, and where everything lies."""

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False)

    config, told = experiment.nexus, trained.diagnostics
    level = experiment.evaluation.confidence
    what = f"mode {config.mode}, {config.correct}, {config.correction}, routing {config.routing}"
    say(f"\nSplit {fold.meta['kind']}, seed {experiment.seed}, {what}", style="bold")
    say(f"Program MSE and gain over the GNN in percent [{level:.0%} interval over regulators]")
    console.print(arm_table(arms(tables)))
    say(
        f"Memory: {told['write_density']:.1%} of {len(fold.train)} training records written "
        f"({told['primed_density']:.1%} primed, {told['gated_density']:.1%} by the gate), "
        f"occupancy {told['occupancy']:.1%}, {told['evictions']:.0f} evictions, {told['collisions']:.0f} collisions, "
        f"{told['memory_bytes'] / 2**20:.1f} MiB."
    )
    say(
        f"Test reads: {told['hard_hit_rate']:.1%} hard, gate mean {told['gate_mean']:.3f}, "
        f"entropy {told['read_entropy']:.3f} nats. Weights of epoch {told['epoch']:.0f} of the last part."
    )
    say(f"Written to {out}: {CHECKPOINT}, vocab.json, diagnostics.parquet, scores.parquet, records.parquet")
    say(f"  next: mantra explain {out} --regulator NAME --dose 0.8 --state NAME, or mantra predict the same")


def arms(tables: Tables) -> dict[str, dict[str, Arm]]:
    """Error and gain of each arm on test and on validation records, as the tables of a sweep take them."""
    found: dict[str, dict[str, Arm]] = {"test": {}, "validation": {}}
    whole = [row for row in tables.scores if row["slice"] == "all"]
    errors = {(row["part"], row["arm"]): row["value"] for row in whole if row["metric"] in ("program_mse", FLOOR)}
    for row in whole:
        if row["metric"] == "program_mse_gain":
            where, bare = (row["part"], row["arm"]), row["arm"] == CEILING
            limits = (float("nan"),) * 2 if bare else (row["lower"], row["upper"])
            found[where[0]][where[1]] = Arm(where[1], errors[where], Interval(row["value"], *limits, row["n"]))
    return {part: of_part for part, of_part in found.items() if of_part}
