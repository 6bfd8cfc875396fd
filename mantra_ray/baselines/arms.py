"""The baselines of every table, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product

import numpy as np
import scipy.sparse as sparse

from mantra_ray.baselines import smoothers
from mantra_ray.baselines.embedding import gene_embedding, random_embedding
from mantra_ray.baselines.headers import Headers, equal, held_out_groups, stand_ins
from mantra_ray.baselines.memory import residual_memory
from mantra_ray.baselines.ridge import Features, embedded, one_hot, ridge
from mantra_ray.forward import Fold, Prediction, predict

# From most to least shrunk: a tie goes to the safer setting.
PSEUDO_COUNTS = (16.0, 4.0, 2.0, 1.0, 0.5, 0.1)
NEIGHBOURS = (32, 16, 8, 4, 2, 1)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
# Principal components of the regulator's gene.
EMBEDDING = 10
# Weights of which fewer than this share are not 0 are applied as a sparse matrix.
SPARSE = 0.05


def best_setting(settings: Iterable[tuple], predicted: Callable[..., np.ndarray], target: np.ndarray) -> tuple:
    """The setting whose left-out prediction `predicted(*setting)` comes nearest to `target` [n, K]."""
    best, chosen = np.inf, ()
    for setting in settings:
        error = np.square(target - predicted(*setting)).mean()
        if error < best * (1 - 1e-6) or not chosen:
            best, chosen = error, setting
    return chosen


def baseline_predictions(fold: Fold, seed: int) -> dict[str, Prediction]:
    """Predictions of every baseline for all N rows in row order, by arm name.

    They learn from `fold.train` alone; settings are chosen by leaving out groups of training rows in the way
    of the split (`fold.meta["kind"]`). Arms on residuals add to the GNN's prediction and use its out-of-fold
    residuals. Predictions of training rows are fitted values. `ridge_pca` and its control `ridge_random`
    need expression and are left out without it. `seed` is that of the random embedding. With n training rows,
    memory grows as N n, time as N n G and as n times the square of the ridge's columns (contexts and regulators).
    """
    kind, rows = fold.meta["kind"], np.arange(len(fold.regulator))
    train, query = Headers.of(fold, fold.train), Headers.of(fold, rows)
    group, judged = held_out_groups(train, kind), stand_ins(train, kind)
    left_out, everything = ~equal(group, group), np.ones((len(rows), len(fold.train)), bool)
    program, residual = fold.delta_program[fold.train], fold.residual[fold.train]

    def fitted_ridge(*choices: Features) -> np.ndarray:
        return ridge(query, train, program, group, judged, choices)

    # Left-out predictions are linear in the weights, so that a pair of settings costs no product of its own.
    by_regulator, by_context = {}, {}
    for count in PSEUDO_COUNTS:
        by_regulator[count] = (smoothers.lookup(train, train, left_out, count) @ program)[judged]
        weights, left = smoothers.context_mean(train, train, left_out, count)
        by_context[count] = (weights @ program)[judged], left[judged]

    def looked_up(pseudo_count: float, context_count: float) -> np.ndarray:
        mean, left = by_context[context_count]
        return mean + left * by_regulator[pseudo_count]

    counts = best_setting(((count,) for count in PSEUDO_COUNTS), by_regulator.get, program[judged])
    pairs = best_setting(product(PSEUDO_COUNTS, PSEUDO_COUNTS), looked_up, program[judged])

    distance = smoothers.header_distance(train, train)
    nearest = {k: (smoothers.neighbours(distance, left_out, k) @ residual)[judged] for k in NEIGHBOURS}
    k, share = best_setting(product(NEIGHBOURS, SHARES), lambda k, share: share * nearest[k], residual[judged])

    on_effect = {
        "zero": np.zeros(everything.shape, np.float32),
        "mean": smoothers.shrunk_mean(everything),
        "state_mean": smoothers.state_mean(query, train, everything),
        "state_mean_shrunk": smoothers.state_mean_shrunk(query, train, everything),
        "lookup": smoothers.lookup(query, train, everything, *counts),
        "lookup_context": smoothers.lookup_context(query, train, everything, *pairs),
        "ridge": fitted_ridge(one_hot(False, False)),
        "ridge_interaction": fitted_ridge(one_hot(True, False), one_hot(True, True)),
        "residual_memory": residual_memory(query, train, everything, program),
    }
    if fold.delta_expression is not None:
        embedding = gene_embedding(fold, EMBEDDING, seed)
        on_effect["ridge_pca"] = fitted_ridge(embedded(embedding))
        on_effect["ridge_random"] = fitted_ridge(embedded(random_embedding(embedding, seed)))
    on_residual = {
        "bias": smoothers.shrunk_mean(everything),
        "residual_neighbours": share * smoothers.neighbours(smoothers.header_distance(query, train), everything, k),
    }
    arms = {"gnn": predict(fold, rows)}
    arms |= {name: smooth(fold, weights, on_residual=False) for name, weights in on_effect.items()}
    return arms | {name: smooth(fold, weights, on_residual=True) for name, weights in on_residual.items()}


def smooth(fold: Fold, weights: np.ndarray, on_residual: bool) -> Prediction:
    """Weighted sums of training effects, or the GNN's prediction plus weighted sums of its training residuals.

    weights [N, train] are applied to programs and expression alike.
    """
    if np.count_nonzero(weights) < SPARSE * weights.size:
        weights = sparse.csr_array(weights)

    def apply(observed: np.ndarray, base: np.ndarray) -> np.ndarray:
        if on_residual:
            return base + weights @ (observed[fold.train] - base[fold.train])
        return weights @ observed[fold.train]

    program = apply(fold.delta_program, fold.base_program)
    has_expression = fold.delta_expression is not None and fold.base_expression is not None
    expression = apply(fold.delta_expression, fold.base_expression) if has_expression else None
    return Prediction(expression, program, program @ fold.trait_weights)
