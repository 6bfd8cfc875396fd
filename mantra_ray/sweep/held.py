"""What the memory of a trained model holds in the end, and how near its reads come: what TensorBoard draws of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mantra_ray.forward import Fold
from mantra_ray.nexus.adapter import trimmed
from mantra_ray.nexus.cam import EMPTY
from mantra_ray.training.nexus import Trained
from mantra_ray.training.residual import read_only


@dataclass(frozen=True)
class Held:
    """One manifold of a final memory; B buckets, S slots."""

    name: str
    priority: np.ndarray  # [B, S] float32, NaN where a slot is empty
    similarity: dict[str, np.ndarray]  # sim_max [n] of the reads of the training and of the validation records


@torch.no_grad()
def held_by(fold: Fold, trained: Trained) -> tuple[Held, ...]:
    """Each manifold of the memory that the final weights warmed; no record reads its own slot."""
    model, records, memories = trained.model, trained.inputs.records, trimmed(trained.memories)
    parts = {"training": fold.train, "validation": fold.validation}
    rows = {part: torch.tensor(of, device=records.record.device) for part, of in parts.items() if len(of)}
    found = {part: read_only(model, memories, records.take(of)).found for part, of in rows.items()}
    return tuple(
        Held(
            route.name,
            memory.priority.float().masked_fill(memory.record == EMPTY, torch.nan).cpu().numpy(),
            {part: reads[number].sim_max.float().cpu().numpy() for part, reads in found.items()},
        )
        for number, (route, memory) in enumerate(zip(model.routes, trained.memories, strict=True))
    )
