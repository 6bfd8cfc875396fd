"""What runs in a trial's actor: load the fold, run the trial, write its rows, report one line."""

from __future__ import annotations

import faulthandler
import functools
import math
import os
import resource
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train, tune
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from mantra_ray.forward import Fold
from mantra_ray.provenance import device_name
from mantra_ray.sweep.hparams import FINAL, Columns
from mantra_ray.sweep.population import history
from mantra_ray.sweep.schedule import attach
from mantra_ray.sweep.spec import Scheduler, TrialSpec
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.tensorboard import TrialBoard
from mantra_ray.sweep.trial import TrialOutcome, run_trial
from mantra_ray.training.distributed import RETRIES
from mantra_ray.training.state import Keeper, OnEpoch


@dataclass(frozen=True)
class SharedFold:
    """One fold in the object store and on disk."""

    reference: ray.ObjectRef
    path: Path


@dataclass(frozen=True)
class Bench:
    """What all trials of a sweep share."""

    folds: dict[str, SharedFold]  # by stage key
    root: Path  # the sweep's folder
    scratch: Path  # of this run, removed at its end
    slots: int  # trials that run side by side
    provenance: dict[str, str | bool]  # of the command that runs the sweep
    workers: int
    cpus: float  # of each worker
    gpus: float
    timeout: float = 0.0  # seconds after which a trial is ended; 0 waits for ever
    scheduler: Scheduler = "none"
    columns: Columns = field(default_factory=Columns)  # in which trials differ, for the names of TensorBoard's runs

    @property
    def origin(self) -> dict[str, str | bool]:
        """Provenance as columns of a trial's row."""
        return {f"provenance.{name}": value for name, value in self.provenance.items()}

    def board(self, spec: TrialSpec) -> TrialBoard:
        """Where TensorBoard finds a trial."""
        return TrialBoard(self.root / "tensorboard" / self.columns.run(spec))


def execute(spec: TrialSpec, fold: SharedFold, bench: Bench, on_epoch: OnEpoch, keeper: Keeper) -> TrialOutcome:
    """Run a trial in this process, or a memory's on several Ray Train workers if the bench has more than one."""
    if bench.workers == 1 or spec.kind == "baselines":
        return run_trial(spec, ray.get(fold.reference), fold.path.parent, on_epoch, keeper)
    resources = {"CPU": bench.cpus} | ({"GPU": bench.gpus} if bench.gpus else {})
    trainer = TorchTrainer(
        _rank,
        train_loop_config={
            "spec": spec.to_json(),
            "fold": fold.path,
            "on_epoch": on_epoch,
            "keeper": keeper,
            "board": bench.board(spec),
            "threads": threads(bench),
        },
        scaling_config=train.ScalingConfig(
            num_workers=bench.workers, use_gpu=bench.gpus > 0, resources_per_worker=resources
        ),
        # NCCL refuses ranks that share a GPU
        torch_config=TorchConfig(backend="nccl" if bench.gpus >= 1 else "gloo"),
        run_config=train.RunConfig(
            name=spec.id,
            storage_path=str(bench.scratch / "train"),
            failure_config=train.FailureConfig(max_failures=RETRIES),
        ),
    )
    return trainer.fit().return_value


def _rank(config: dict[str, Any]) -> TrialOutcome:
    """One worker of a distributed trial: all run it together, and Ray Train hands over what rank 0 returns."""
    first = train.get_context().get_world_rank() == 0
    if first:
        config["board"].clear()  # of a worker that died: this one tells of all epochs
    torch.set_num_threads(config["threads"])
    if get_device().type == "cuda":
        torch.cuda.set_device(get_device())
    spec, fold = TrialSpec.from_json(config["spec"]), Fold.load(config["fold"])
    on_epoch = config["on_epoch"] if first else None
    return run_trial(spec, fold, config["fold"].parent, on_epoch, config["keeper"])


def threads(bench: Bench) -> int:
    """Threads of a trial's process."""
    return int(max(1, bench.cpus))


@functools.cache
def wait_for_slots(scratch: Path, slots: int, patience: float = 60.0) -> None:
    """Hold this process's first trial until every slot has a process.

    Tune hands a waiting trial to whichever actor comes free and cancels the actor that was starting for it. With
    trials shorter than an actor's start, one actor would do all the work while the others never came up.
    """
    arrived = scratch / "slots"
    arrived.mkdir(parents=True, exist_ok=True)
    (arrived / uuid.uuid4().hex).touch()
    deadline = time.monotonic() + patience
    while len(list(arrived.iterdir())) < slots and time.monotonic() < deadline:
        time.sleep(0.02)


def trial(config: dict[str, dict[str, str]], bench: Bench, run: Callable[..., TrialOutcome]) -> None:
    """The Tune trainable: run `config["job"]`, write its rows, report status and validation gain.

    A trial that raises gets a row with its error, and the sweep goes on.
    """
    wait_for_slots(bench.scratch, bench.slots)
    job = config["job"]
    spec = TrialSpec.from_json(job["spec"])
    torch.set_num_threads(threads(bench))
    if not bench.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray shows every GPU to an actor that asked for none
    board = bench.board(spec)
    board.clear()
    started, clock = datetime.now(UTC), time.perf_counter()
    outcome, error = None, None
    states = (bench.root / "states", bench.scratch / "states")
    trained, on_epoch, keeper = attach(bench.scheduler, config, spec, board.epoch, *states)
    try:
        with ended_after(bench.timeout, bench.scratch / "attempts" / spec.id):
            outcome = finite(run(trained, bench.folds[job["fold"]], bench, on_epoch, keeper))
    except Exception:
        outcome, error = None, traceback.format_exc()
    seconds = time.perf_counter() - clock
    own = {"code": spec.code, "data_sha256": spec.data_sha256, "device": device_name()}
    own |= {"threads": threads(bench), "workers": bench.workers, "actor": ray.get_runtime_context().get_actor_id()}
    row = {
        "status": "failed" if error else "done",
        "error": error,
        "seconds": seconds,
        "started": started,
        "ended": datetime.now(UTC),
        "max_rss_bytes": peak_memory(),
    }
    row |= bench.origin | {f"provenance.{name}": value for name, value in own.items()} | history(config)
    store, unwritten = Store(bench.root / "results"), None
    try:
        if outcome is None:
            store.write(spec, row)
            board.close()
        else:
            store.write(spec, row | outcome.diagnostics, outcome.scores, outcome.records, outcome.curves)
            board.finish(spec, final_numbers(outcome), outcome.held)
            keeper.remove()
    except OSError as problem:  # a full disk: another process would fare no better
        unwritten = str(problem)
    told = {"status": "failed" if unwritten else row["status"], "unwritten": unwritten, "seconds": seconds}
    tune.report(told | {"started": started.timestamp(), "gain": validation_gain(outcome)})


@contextmanager
def ended_after(seconds: float, note: Path) -> Iterator[None]:
    """End this process if the block takes longer; where it was then is left in the file `note`.

    A trial that hangs in compiled code can be ended in no other way. Tune starts it once more in another process,
    where the note becomes a TimeoutError.
    """
    if not seconds:
        yield
        return
    where = note.read_text() if note.exists() else ""
    if where:
        raise TimeoutError(f"took longer than {seconds:g} s (--trial-timeout); it was at\n{where}")
    note.parent.mkdir(parents=True, exist_ok=True)
    with note.open("w") as file:
        faulthandler.dump_traceback_later(seconds, exit=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def finite(outcome: TrialOutcome) -> TrialOutcome:
    """The outcome as it is; ValueError if an error of the memory is not a finite number."""
    for row in outcome.scores:
        if row["metric"] == "program_mse" and not math.isfinite(row["value"]):
            raise ValueError(f"the error of {row['arm']} on {row['part']} is {row['value']}")
    return outcome


def peak_memory() -> int:
    """Peak resident bytes of this process; trials that share an actor share its peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def gains(outcome: TrialOutcome) -> dict[str, float]:
    """Gain over the GNN of the warmed memory, by part."""
    wanted = {"arm": "memory_on", "slice": "all", "metric": "program_mse_gain"}
    return {row["part"]: row["value"] for row in outcome.scores if wanted.items() <= row.items()}


def validation_gain(outcome: TrialOutcome | None) -> float | None:
    """What the progress display calls best: choices are made on validation, never on test."""
    return gains(outcome).get("validation") if outcome else None


def final_numbers(outcome: TrialOutcome) -> dict[str, float]:
    """What TensorBoard's HParams tab compares."""
    numbers = {f"{part}_gain": value for part, value in gains(outcome).items()}
    return numbers | {name: outcome.diagnostics[name] for name in FINAL if name in outcome.diagnostics}
