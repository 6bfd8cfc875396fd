"""Ridge regression on headers, solved over groups, so that time and memory grow as records x columns.

Columns of regulators, and of (regulator, state) pairs, are one-hot, so that the smoother of these columns alone, B,
acts within one regulator and needs sums over groups and nothing else. The few other columns U are shared by all
records and come in by the Schur complement: with Z = (I - B) U and S = U' Z + penalty I the whole smoother is
H = B + Z S^-1 Z'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse

from mantra_ray.baselines.headers import Headers, codes
from mantra_ray.baselines.smoothers import Smoother

# From most to least shrunk: a tie goes to the safer setting.
PENALTIES = (300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
BLOCK = 2**22  # entries of the largest temporary table


@dataclass(frozen=True)
class Features:
    """Columns of a ridge besides those of state and strategy, which it always has, one-hot."""

    regulator: bool = False  # one-hot
    interaction: bool = False  # one-hot columns of (regulator, state) pairs besides
    dose: bool = False  # the columns above are multiplied by dose
    embedding: np.ndarray | None = None  # [R, d], of the regulator


class Design:
    """The columns of n queries and m training rows, and what a penalty makes of them."""

    def __init__(self, query: Headers, memory: Headers, features: Features):
        self.features, shared = features, []
        for name in ("state", "strategy"):
            asked, held, size = codes(query, memory, name)
            shared.append((np.eye(size)[asked], np.eye(size)[held]))
        if features.embedding is not None:
            shared.append(tuple(features.embedding[headers.regulator] for headers in (query, memory)))
        self.asked, self.held = (np.hstack(parts) for parts in zip(*shared, strict=True))  # U
        fine = ("regulator", "state") if features.interaction else ("regulator",)
        self.regulator, self.fine = codes(query, memory, "regulator"), codes(query, memory, *fine)
        used = float(features.regulator)
        self.strength = [
            used * (headers.dose.astype(float) if features.dose else np.ones(len(headers.dose)))
            for headers in (query, memory)
        ]
        self.power = np.bincount(self.fine[1], self.strength[1] ** 2, minlength=self.fine[2])
        self.owner = np.zeros(self.fine[2], np.int64)  # the regulator of each pair
        for side in (0, 1):
            self.owner[self.fine[side]] = self.regulator[side]


class Fit:
    """The ridge of one design and penalty."""

    def __init__(self, design: Design, penalty: float):
        self.design, features = design, design.features
        self.weight = 1 / (design.power + penalty)
        share = np.bincount(design.owner, design.power * self.weight, minlength=design.regulator[2])
        # With interactions a regulator's own coefficient takes what its pairs have in common.
        self.common = penalty / (1 + share) if features.interaction else np.zeros(len(share))
        self.penalty = penalty
        self.left = design.held - self.block(design.held)  # Z
        self.inner = np.linalg.inv(design.held.T @ self.left + penalty * np.eye(design.held.shape[1]))  # S^-1

    def coefficients(self, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients of regulators and of pairs, per record's strength, fitted to target [m, K]."""
        design = self.design
        code, size = design.fine[1], design.fine[2]
        sums = totals(code, design.strength[1][:, None] * target, size) * self.weight[:, None]
        scale = (self.common / self.penalty)[:, None]
        regulator = scale * totals(design.owner, sums, design.regulator[2])
        pair = sums - (self.weight * design.power)[:, None] * regulator[design.owner]
        return regulator, pair

    def block(self, target: np.ndarray, side: int = 1) -> np.ndarray:
        """Predictions by the one-hot columns alone: of the training rows (B target), or of the queries."""
        regulator, pair = self.coefficients(target)
        design = self.design
        return design.strength[side][:, None] * (regulator[design.regulator[side]] + pair[design.fine[side]])

    def predict(self, target: np.ndarray) -> np.ndarray:
        """Predictions of the queries [n, K] from target [m, K]."""
        shared = self.inner @ (self.left.T @ target)
        return self.block(target - self.design.held @ shared, side=0) + self.design.asked @ shared

    def left_out_residuals(self, target: np.ndarray, group: np.ndarray) -> np.ndarray:
        """Residuals [m, K] of the ridge fitted without a row's own group, exactly.

        The residual of a group g is (I - H_gg)^-1 ((I - H) y)_g (block form of the leave-one-out identity; Rasmussen
        and Williams 2006, section 5.4.2). Groups lie within one regulator.
        """
        residual = target - self.block(target) - self.left @ (self.inner @ (self.left.T @ target))
        sizes = np.unique(group, return_counts=True)[1]
        members, member_sizes = np.argsort(group, kind="stable"), np.repeat(sizes, sizes)
        for size in np.unique(sizes):  # groups of one size are solved as one batch
            rows = members[member_sizes == size].reshape(-1, size)
            for part in np.array_split(rows, -(-rows.size * size // BLOCK)):
                own = np.eye(size) - self.smoother_within(part)
                residual[part] = np.linalg.solve(own, residual[part])
        return residual

    def smoother_within(self, rows: np.ndarray) -> np.ndarray:
        """H between the rows of each group [groups, size] of one regulator, [groups, size, size]."""
        design = self.design
        strength, pair = design.strength[1][rows], design.fine[1][rows]
        weight = self.weight[pair]
        same = (pair[:, :, None] == pair[:, None, :]) * weight[:, :, None]
        common = self.common[design.regulator[1][rows]][:, :1, None]
        block = same + common * weight[:, :, None] * weight[:, None, :]
        left = self.left[rows]
        return strength[:, :, None] * strength[:, None, :] * block + left @ self.inner @ left.transpose(0, 2, 1)


def totals(code: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """Sums of values [m, K] by code [m], [size, K]."""
    indicator = sparse.csr_array((np.ones(len(code)), (code, np.arange(len(code)))), shape=(size, len(code)))
    return indicator @ values


def ridge(
    query: Headers, memory: Headers, target: np.ndarray, judged: np.ndarray, choices: Sequence[Features]
) -> Smoother:
    """The ridge whose features and penalty predict left-out groups of `memory` [m, K] best.

    `judged` [m] marks the rows on which the choice is made.
    """
    best = np.inf
    for features in choices:
        design = Design(query, memory, features)
        for penalty in PENALTIES:
            fit = Fit(design, penalty)
            error = np.square(fit.left_out_residuals(target, memory.group)[judged]).mean()
            if error < best * (1 - 1e-9):
                best, chosen = error, fit
    return chosen.predict
