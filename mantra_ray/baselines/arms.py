"""The baselines of every table, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import product

import numpy as np

from mantra_ray.baselines import smoothers
from mantra_ray.baselines.embedding import gene_embedding, random_embedding
from mantra_ray.baselines.headers import Headers, stand_ins
from mantra_ray.baselines.memory import residual_memory
from mantra_ray.baselines.ridge import Features, ridge
from mantra_ray.baselines.smoothers import Smoother
from mantra_ray.baselines.traits import trait_arms
from mantra_ray.forward import Fold, Prediction, predict

# From most to least shrunk: a tie goes to the safer setting.
PSEUDO_COUNTS = (16.0, 4.0, 2.0, 1.0, 0.5, 0.1)
NEIGHBOURS = (32, 16, 8, 4, 2, 1)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
# Principal components of the regulator's gene.
EMBEDDING = 10
# Columns that are predicted at once, in float64.
COLUMNS = 256


class Arms(Mapping[str, Prediction]):
    """Predictions of all rows by arm name, each made when it is asked for: expression of all arms would fill memory."""

    def __init__(self, makers: dict[str, Callable[[], Prediction]]):
        self.makers = makers

    def __getitem__(self, name: str) -> Prediction:
        return self.makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)


def best_setting(settings: Iterable[tuple], predicted: Callable[..., np.ndarray], target: np.ndarray) -> tuple:
    """The setting whose left-out prediction `predicted(*setting)` comes nearest to `target` [n, K]."""
    best, chosen = np.inf, ()
    for setting in settings:
        error = np.square(target - predicted(*setting)).mean()
        if error < best * (1 - 1e-6) or not chosen:
            best, chosen = error, setting
    return chosen


def baseline_predictions(fold: Fold, seed: int) -> Arms:
    """Predictions of every baseline for all N rows in row order, by arm name.

    They learn from `fold.train` alone; settings are chosen by leaving out groups of training rows in the way
    of the split (`fold.meta["kind"]`). Arms on residuals add to the GNN's prediction and use its out-of-fold
    residuals. Predictions of training rows are fitted values. `ridge_pca` and its control `ridge_random`
    need expression and are left out without it, and trait arms without gene effects. `seed` is that of the random
    embedding. Time and memory grow as N (K + G) for one arm, and as N times the records of a regulator.
    """
    kind, rows = fold.meta["kind"], np.arange(len(fold.regulator))
    train, query = Headers.of(fold, fold.train).grouped(kind), Headers.of(fold, rows)
    judged = stand_ins(train, kind)
    program, residual = fold.delta_program[fold.train].astype(float), fold.residual[fold.train].astype(float)

    def fitted_ridge(*choices: Features) -> Smoother:
        return ridge(query, train, program, judged, choices)

    # Left-out predictions are linear in the weights, so that a pair of settings costs no product of its own.
    by_regulator, by_context = {}, {}
    for count in PSEUDO_COUNTS:
        by_regulator[count] = smoothers.lookup(train, train, count)(program)[judged]
        context, left = smoothers.context_mean(train, train, count)
        by_context[count] = context(program)[judged], left[judged]

    def looked_up(pseudo_count: float, context_count: float) -> np.ndarray:
        mean, left = by_context[context_count]
        return mean + left * by_regulator[pseudo_count]

    counts = best_setting(((count,) for count in PSEUDO_COUNTS), by_regulator.get, program[judged])
    pairs = best_setting(product(PSEUDO_COUNTS, PSEUDO_COUNTS), looked_up, program[judged])
    nearest = {k: smoothers.neighbours(train, train, k)(residual)[judged] for k in NEIGHBOURS}
    k, share = best_setting(product(NEIGHBOURS, SHARES), lambda k, share: share * nearest[k], residual[judged])
    near = smoothers.neighbours(query, train, k)

    on_effect = {
        "zero": smoothers.zero(query, train),
        "mean": smoothers.mean(query, train),
        "state_mean": smoothers.state_mean(query, train),
        "state_mean_shrunk": smoothers.state_mean_shrunk(query, train),
        "lookup": smoothers.lookup(query, train, *counts),
        "lookup_context": smoothers.lookup_context(query, train, *pairs),
        "ridge": fitted_ridge(Features(regulator=True)),
        "ridge_interaction": fitted_ridge(
            Features(regulator=True, interaction=True), Features(regulator=True, interaction=True, dose=True)
        ),
        "residual_memory": residual_memory(query, train, program),
    }
    if fold.delta_expression is not None:
        embedding = gene_embedding(fold, EMBEDDING, seed)
        on_effect["ridge_pca"] = fitted_ridge(Features(embedding=embedding))
        on_effect["ridge_random"] = fitted_ridge(Features(embedding=random_embedding(embedding, seed)))
    on_residual = {"bias": smoothers.mean(query, train), "residual_neighbours": lambda values: share * near(values)}
    makers = {"gnn": lambda: predict(fold, rows)}
    makers |= {name: partial(smooth, fold, found, on_residual=False) for name, found in on_effect.items()}
    makers |= {name: partial(smooth, fold, found, on_residual=True) for name, found in on_residual.items()}
    return Arms(makers | trait_arms(fold))


def smooth(fold: Fold, smoother: Smoother, on_residual: bool) -> Prediction:
    """Weighted sums of training effects, or the GNN's prediction plus weighted sums of its training residuals.

    The same weights are applied to programs and expression.
    """

    def apply(observed: np.ndarray, base: np.ndarray | None) -> np.ndarray:
        out = np.empty(observed.shape, np.float32)
        for start in range(0, observed.shape[1], COLUMNS):
            columns = slice(start, start + COLUMNS)
            values = observed[fold.train, columns].astype(float)
            if on_residual:
                values -= base[fold.train, columns]
            out[:, columns] = smoother(values)
        return base + out if on_residual else out

    program = apply(fold.delta_program, fold.base_program)
    has_expression = fold.delta_expression is not None and fold.base_expression is not None
    expression = apply(fold.delta_expression, fold.base_expression) if has_expression else None
    return Prediction(expression, program, program @ fold.trait_weights)
