"""Slices of the judged records, and of programs, defined by the training data alone."""

from __future__ import annotations

import numpy as np

from mantra_ray.config import EvaluationConfig
from mantra_ray.evaluation.metrics import squared_error
from mantra_ray.forward import Fold

RARE_PROGRAMS = 0.2  # share of programs that count as rare


def rare_regulators(fold: Fold, most: int) -> np.ndarray:
    """Regulators with 1 to `most` training records, ascending."""
    regulator, records = np.unique(fold.regulator[fold.train], return_counts=True)
    return regulator[records <= most]


def outlier_regulators(fold: Fold, quantile: float) -> np.ndarray:
    """Regulators whose mean out-of-fold GNN error on training records exceeds its quantile over regulators."""
    regulator, index, records = np.unique(fold.regulator[fold.train], return_inverse=True, return_counts=True)
    error = squared_error(fold.base_program[fold.train], fold.delta_program[fold.train])
    error = np.bincount(index, weights=error) / records
    return regulator[error > np.quantile(error, quantile)]


def rare_programs(fold: Fold, share: float = RARE_PROGRAMS) -> np.ndarray:
    """The `share` of programs (at least one) that fewest regulators move in the training records, ascending.

    A program is moved by an effective number of regulators, (sum e)^2 / sum e^2 with e a regulator's mean squared
    change of it (Hill's number of order 2): 1 where a single one moves it.
    """
    _, index, records = np.unique(fold.regulator[fold.train], return_inverse=True, return_counts=True)
    power = np.zeros((len(records), fold.programs))
    np.add.at(power, index, np.square(fold.delta_program[fold.train], dtype=np.float64))
    power /= records[:, None]
    movers = np.square(power.sum(0)) / np.maximum(np.square(power).sum(0), np.finfo(float).tiny)
    count = max(round(share * fold.programs), 1)
    return np.sort(np.argsort(movers, kind="stable")[:count])


def slice_masks(fold: Fold, rows: np.ndarray, config: EvaluationConfig) -> dict[str, np.ndarray]:
    """Members of each slice among `rows`, bool [len(rows)], by name: all, rare, outlier.

    Empty slices are left out, as both regulator slices are when the regulators of `rows` have no training records.
    """
    masks = {
        "all": np.ones(len(rows), bool),
        "rare": np.isin(fold.regulator[rows], rare_regulators(fold, config.rare_records)),
        "outlier": np.isin(fold.regulator[rows], outlier_regulators(fold, config.outlier_quantile)),
    }
    return {name: mask for name, mask in masks.items() if mask.any()}
