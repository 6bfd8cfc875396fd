"""Projection of predicted changes on the manifold: smoothing over the graph, then a descent on the energy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mantra_ray.cascade.energy import Energy

ROWS = 512  # projected together


class Descent:
    """A few steps down the energy from the predicted state, control + change, and no further than asked.

    A step leads to the expected clean state under the energy's noise (Tweedie's formula; Efron 2011), cut back to the
    ball of radius reach * |change| around the start (in standard deviations of the genes); it is taken where it
    lowers the energy, and halved for the next try where it does not. So the energy never rises, a change of 0 stays
    0, and the projection is the identity for 0 steps or no reach.
    """

    def __init__(self, energy: Energy, steps: int, reach: float):
        self.energy, self.steps, self.reach = energy, steps, reach

    def __call__(self, change: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Projected changes [n, G] of records in states [n], log2 units; genes that no control measures stay."""
        device = self.energy.mean.device
        columns, deviation = self.energy.columns.cpu().numpy(), self.energy.deviation.cpu().numpy()
        projected = change.copy()
        for start in range(0, len(change), ROWS):
            rows = slice(start, start + ROWS)
            moved = change[rows][:, columns] / deviation
            moved = torch.as_tensor(moved, dtype=torch.float32, device=device)
            moved = self.displacement(moved, torch.as_tensor(state[rows], device=device)).cpu().numpy()
            projected[rows, columns] += moved * deviation
        return projected

    def displacement(self, change: Tensor, state: Tensor) -> Tensor:
        """How far the descent moves from changes [n, g] in standard deviations."""
        control = self.energy.controls[state]
        start = control + change
        radius = self.reach * change.norm(dim=1, keepdim=True)
        moved, rate = torch.zeros_like(start), torch.full_like(radius, float(self.energy.noise) ** 2)
        if self.steps:
            level, gradient = self.energy.gradient(start)
        for _ in range(self.steps):
            step = moved - rate * gradient
            step = step * (radius / step.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
            reached, slope = self.energy.gradient(start + step)
            lower = (reached < level)[:, None]
            moved, gradient = torch.where(lower, step, moved), torch.where(lower, slope, gradient)
            level, rate = torch.where(lower[:, 0], reached, level), torch.where(lower, rate, rate / 2)
        return moved
