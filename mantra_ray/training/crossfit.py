"""From the predictions of cross-fitted models to one base."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import Ridge

from mantra_ray.cascade.ridge import design, fit_ridge
from mantra_ray.data.records import PerturbationData


def out_of_fold(per_fold: Sequence[np.ndarray], cross_fit: np.ndarray) -> np.ndarray:
    """Predictions [N, ·] from those of each fold's model.

    A training row takes its own fold's, from the model that did not train on it; the other rows take the mean of
    all, a committee that spares the training of one more network.
    """
    base = np.zeros(per_fold[0].shape)
    for prediction in per_fold:  # one after the other: a common array would be a copy of all
        base += prediction
    base = (base / len(per_fold)).astype(np.float32)
    for fold, prediction in enumerate(per_fold):
        base[cross_fit == fold] = prediction[cross_fit == fold]
    return base


def calibration_slope(observed: np.ndarray, predicted: np.ndarray, cluster: np.ndarray) -> float:
    """Slope through the origin of observed on predicted changes [n, K], less one standard error, clipped to [0, 1].

    slope = sum(y x) / sum(x^2), with error = sqrt(sum over clusters of (sum in the cluster of x (y - slope x))^2) /
    sum(x^2): the cluster-robust sandwich (Liang and Zeger 1986, Biometrika 73:13), over clusters [n] (regulators,
    whose records err alike), so that a few strong regulators cannot vouch for predictions that do not generalise:
    those shrink to 0. The fold's programs and its expression are both scaled by the slope of the programs.
    """
    agreement, power = np.einsum("nk,nk->n", observed, predicted), np.einsum("nk,nk->n", predicted, predicted)
    total = float(power.sum(dtype=np.float64))
    if not total > 0:
        return 0.0
    slope = float(agreement.sum(dtype=np.float64)) / total
    error = np.sqrt(np.sum(np.bincount(cluster, agreement - slope * power) ** 2)) / total
    return float(np.clip(slope - error, 0, 1))


def ridge_base(data: PerturbationData, cross_fit: np.ndarray, folds: int) -> np.ndarray:
    """Cross-fitted ridge predictions of program changes [N, K], for data without expression."""
    features = design(data.regulator, data.dose, data.state, len(data.regulator_names), len(data.state_names))
    models = ridge_models(features, data.delta_program, cross_fit, folds)
    return out_of_fold([model.predict(features) for model in models], cross_fit)


def ridge_models(features: np.ndarray, program: np.ndarray, cross_fit: np.ndarray, folds: int) -> list[Ridge]:
    """A ridge from features [N, F] to program changes [N, K] for each fold, on the training rows outside of it."""
    outside = (np.flatnonzero((cross_fit >= 0) & (cross_fit != fold)) for fold in range(folds))
    return [fit_ridge(features[rows], program[rows]) for rows in outside]
