"""One trial: train the memory on a fold (or fit the baselines) and judge the arms."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from mantra_ray.baselines import baseline_predictions
from mantra_ray.evaluation.evaluate import evaluate
from mantra_ray.forward import Fold, Prediction, predict
from mantra_ray.nexus.warming import warm
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.training.residual import OnEpoch, Trained, predict_residual, train_nexus


@dataclass
class TrialOutcome:
    """Rows of a trial for the four tables."""

    diagnostics: dict[str, float]
    scores: list[dict]
    records: dict[str, np.ndarray]
    curves: list[dict]


def run_trial(spec: TrialSpec, fold: Fold, on_epoch: OnEpoch | None = None) -> TrialOutcome:
    """Run a trial in this process; `on_epoch(epoch, metrics)` is called as training goes on."""
    config = spec.config
    if spec.kind == "baselines":
        tables = evaluate(fold, baseline_predictions(fold, config.seed), config.evaluation, config.seed)
        return TrialOutcome({}, tables.scores, tables.records, [])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.perf_counter()
    trained = train_nexus(fold, config.nexus, config.seed, on_epoch=on_epoch, device=device)
    training = time.perf_counter() - started
    predictions, diagnostics = memory_arms(fold, trained, config.seed)
    tables = evaluate(fold, predictions, config.evaluation, config.seed)
    slots = trained.memory.record.shape
    diagnostics |= {
        "buckets": float(slots[0]),
        "slots": float(slots[1]),
        "load": len(fold.train) / (slots[0] * slots[1]),
        "training_seconds": training,
    }
    return TrialOutcome(diagnostics, tables.scores, tables.records, trained.curves)


@torch.no_grad()
def memory_arms(fold: Fold, trained: Trained, seed: int) -> tuple[dict[str, Prediction], dict[str, float]]:
    """Predictions of all rows with the memory off (cleared), shuffled and on, and diagnostics of the test reads.

    Shuffled: the same weights and keys, each record's content exchanged for that of another training record.
    """
    model, records = trained.model, trained.records
    device = records.record.device
    train = records.take(torch.tensor(fold.train, device=device))
    order = torch.tensor(np.random.default_rng(seed).permutation(len(train)), device=device)
    train.residual, train.base = train.residual[order], train.base[order]
    shuffled, _ = warm(model.empty_memory(), model.stream(train), model.config, decode=model.decode)
    memories = {"memory_off": model.empty_memory(), "memory_shuffled": shuffled, "memory_on": trained.memory}
    everything, predictions = np.arange(len(records)), {}
    for arm, memory in memories.items():
        correction = predict_residual(model, memory.trim(), records) * trained.scale
        predictions[arm] = predict(fold, everything, correction.cpu().numpy())
    _, gate, found, _ = model(trained.memory.trim(), records.take(torch.tensor(fold.test, device=device)))
    diagnostics = trained.diagnostics | {
        "hard_hit_rate": float(found.hard.float().mean()),
        "gate_mean": float(gate.mean()),
        "sim_max_mean": float(found.sim_max.mean()),
        "read_entropy": float(found.entropy.mean()),
    }
    return predictions, diagnostics
