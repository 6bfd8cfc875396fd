"""One trial: train the memory on a fold (or fit the baselines) and judge the arms."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mantra_ray.baselines import baseline_predictions
from mantra_ray.evaluation.evaluate import evaluate
from mantra_ray.forward import Fold, Prediction
from mantra_ray.nexus.adapter import Memories, trimmed
from mantra_ray.sweep.held import Held, held_by
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.training.nexus import Trained
from mantra_ray.training.recursive import train_memory
from mantra_ray.training.residual import read_metrics, read_only
from mantra_ray.training.state import Keeper, OnEpoch


@dataclass
class TrialOutcome:
    """Rows of a trial for the four tables, and what its memory holds in the end, to be looked at."""

    diagnostics: dict[str, float | str]  # numbers, and the digests by which alarms compare trials
    scores: list[dict]
    records: dict[str, np.ndarray]
    curves: list[dict]
    held: tuple[Held, ...] = ()


def run_trial(
    spec: TrialSpec, fold: Fold, folder: Path, on_epoch: OnEpoch | None = None, keeper: Keeper | None = None
) -> TrialOutcome:
    """Run a trial in this process; `on_epoch(epoch, metrics)` is called as training goes on.

    `folder` is that of the fold's file, where its networks lie too. With a `keeper` an interrupted trial goes on from
    its last epoch.
    """
    config = spec.config
    if spec.kind == "baselines":
        tables = evaluate(fold, baseline_predictions(fold, config.seed), config.evaluation, config.seed)
        return TrialOutcome(dict(fold.meta.get("realism", {})), tables.scores, tables.records, [])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.perf_counter()
    trained = train_memory(fold, folder, config.nexus, config.seed, on_epoch, device, keeper)
    training = time.perf_counter() - started
    predictions, diagnostics = memory_arms(fold, trained, config.seed)
    tables = evaluate(fold, predictions, config.evaluation, config.seed)
    routes = trained.model.routes
    buckets, slots = sum(route.buckets for route in routes), sum(route.buckets * route.slots for route in routes)
    diagnostics |= {
        "buckets": float(buckets),
        "slots": slots / buckets,
        "load": len(fold.train) * len(routes) / slots,  # every manifold is offered every record
        "training_seconds": training,
    } | {name: value for kind in ("realism", "energy") for name, value in fold.meta.get(kind, {}).items()}
    return TrialOutcome(diagnostics, tables.scores, tables.records, trained.curves, held_by(fold, trained))


@torch.no_grad()
def memory_arms(fold: Fold, trained: Trained, seed: int) -> tuple[dict[str, Prediction], dict[str, float | str]]:
    """Predictions of all rows with the memory off (cleared), shuffled and on, and diagnostics of the test reads.

    Shuffled: the same weights and keys, each record's content exchanged for that of another training record. Among
    the diagnostics are digests: of the judged rows' predicted programs with the memory on and off, and of the memory
    before the first read and after the last one.
    """
    before = memory_digest(trained.memories)
    model, records = trained.model, trained.inputs.records
    device = records.record.device
    train = records.take(torch.tensor(fold.train, device=device))
    order = torch.tensor(np.random.default_rng(seed).permutation(len(train)), device=device)
    train.residual, train.base = train.residual[order], train.base[order]
    memories = {"memory_off": model.empty_memory(), "memory_shuffled": model.warm(train)[0], "memory_on": None}
    predictions = {arm: trained.predict(fold, memory) for arm, memory in memories.items()}
    read = read_only(model, trimmed(trained.memories), records.take(torch.tensor(fold.test, device=device)))
    diagnostics = trained.diagnostics | read_metrics(read)
    diagnostics |= {
        "transport": float(torch.stack([reader.transport for reader in model.readers]).mean()),
        "prediction_sha256": prediction_digest(fold, predictions["memory_on"]),
        "base_sha256": prediction_digest(fold, predictions["memory_off"]),
        "memory_sha256": before,
        "judged_memory_sha256": memory_digest(trained.memories),
    }
    return predictions, diagnostics


def prediction_digest(fold: Fold, prediction: Prediction) -> str:
    """Hash (32 hex digits of SHA-256) of the predicted programs of the judged rows, as float32."""
    judged = np.concatenate([fold.validation, fold.test])
    program = np.ascontiguousarray(prediction.program[judged], np.float32) + 0.0  # no negative zeros
    return hashlib.sha256(program.tobytes()).hexdigest()[:32]


def memory_digest(memories: Memories) -> str:
    """Hash (32 hex digits of SHA-256) of every tensor of the manifolds; slots that no bucket has filled count not."""
    hasher = hashlib.sha256()
    for memory in trimmed(memories):
        for tensor in vars(memory).values():
            hasher.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()[:32]
