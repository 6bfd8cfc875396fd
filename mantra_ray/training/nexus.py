"""Training of the memory's reader on a fold, in either mode, and what it predicts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mantra_ray.config import NexusConfig
from mantra_ray.forward import Fold, Prediction, predict
from mantra_ray.nexus.adapter import Memories, Nexus, trimmed
from mantra_ray.training.inputs import Inputs, make_inputs
from mantra_ray.training.language import fit_language
from mantra_ray.training.residual import fit_correction, read_only
from mantra_ray.training.state import Keeper, OnEpoch, Progress


@dataclass
class Trained:
    """A trained model with the memory that its final weights warmed on the training rows."""

    model: Nexus
    memories: Memories
    inputs: Inputs
    curves: list[dict]  # epoch, metric, value
    diagnostics: dict[str, float]  # of the final warming pass

    def corrections(self, memories: Memories | None = None) -> np.ndarray:
        """Corrections [N, M] of all rows, in the data's units; records never read their own slot."""
        memories = self.memories if memories is None else memories
        return read_only(self.model, trimmed(memories), self.inputs.records).value.cpu().numpy() * self.inputs.scale

    def predict(self, fold: Fold, memories: Memories | None = None) -> Prediction:
        """Predictions of all rows with the given memory (default: the warmed one)."""
        everything, correction = np.arange(len(fold.regulator)), self.corrections(memories)
        if self.model.config.correct == "genes":
            return predict(fold, everything, expression=correction)
        return predict(fold, everything, correction)


def train_nexus(
    fold: Fold,
    config: NexusConfig,
    seed: int,
    residual: np.ndarray | None = None,
    on_epoch: OnEpoch | None = None,
    device: str = "cpu",
    keeper: Keeper | None = None,
) -> Trained:
    """Train on the fold's residuals, or on others [N, M] in their place (the shuffled control).

    Mode B (`residual`): regression of the whole model. Mode A (`language`): a language model over the record
    stream, whose entropy then gates the writes, and a decoding head trained on its frozen hidden states. With a
    `keeper` the run goes on where one of the same arguments was interrupted, and tells of all epochs from the first.
    Where torch.distributed is initialised its workers train one model: all call this with the same arguments, each
    takes its share of every batch and of every warming pass, and all return the same weights and memory.
    """
    progress = Progress(seed, on_epoch, keeper)
    progress.recall()
    inputs = make_inputs(fold, config, residual, device)
    model = Nexus(inputs.vocabulary, config, inputs.routes, inputs.records.base.shape[1]).to(device).eval()
    train, held_out = (inputs.records.take(torch.tensor(rows, device=device)) for rows in (fold.train, fold.validation))
    if config.mode == "language" and not progress.past("language"):
        fit_language(model, train, held_out, progress)
    if progress.past("correction"):
        progress.restore("model", model)
        memories, diagnostics = model.warm(train)
    else:
        memories, diagnostics = fit_correction(model, train, held_out, inputs.space, progress)
    return Trained(model, memories, inputs, progress.curves, diagnostics)
