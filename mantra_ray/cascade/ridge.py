"""The base where data have no expression: ridge regression of program changes on (regulator, dose, state)."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import Ridge, RidgeCV

ALPHAS = 10.0 ** np.arange(-2, 4)


def design(regulator: np.ndarray, dose: np.ndarray, state: np.ndarray, regulators: int, states: int) -> np.ndarray:
    """One-hot regulator, the same times dose, one-hot state, and dose: [n, 2R + C + 1] float32."""
    one_hot = np.eye(regulators, dtype=np.float32)[regulator]
    dose = np.asarray(dose, np.float32)[:, None]
    return np.concatenate([one_hot, one_hot * dose, np.eye(states, dtype=np.float32)[state], dose], 1)


def fit_ridge(features: np.ndarray, target: np.ndarray, intercept: bool = True) -> Ridge:
    """Ridge from features [n, F] to targets [n, K], its penalty by leave-one-out error on these rows."""
    alpha = RidgeCV(ALPHAS, fit_intercept=intercept).fit(features, target).alpha_
    return Ridge(float(alpha), fit_intercept=intercept).fit(features, target)
