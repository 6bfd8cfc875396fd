"""Slices of the judged records, defined by the training data alone."""

from __future__ import annotations

import numpy as np

from mantra_ray.config import EvaluationConfig
from mantra_ray.evaluation.metrics import squared_error
from mantra_ray.forward import Fold


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
