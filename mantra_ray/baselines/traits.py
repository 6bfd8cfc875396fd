"""Trait predictors that leave out a part of the cascade: programs, their joint fit, or the manifold."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from mantra_ray.forward import Fold, Prediction


def gene_effects(expression: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Gene effects straight: the inner product of expression changes [n, G] and gene effects b [G, T], [n, T].

    No program stands between; a gene without an effect (NaN) counts 0.
    """
    return (expression @ np.nan_to_num(b)).astype(np.float32)


def program_means(loadings: np.ndarray, b: np.ndarray, se: np.ndarray) -> np.ndarray:
    """Program-to-trait weights [K, T], one program at a time, from loadings [G, K] and b, se [G, T].

    A program's weight is the mean over its genes of their effect per unit of loading, b / W, weighted by W^2 / se^2:
    the least-squares weights of the cascade if programs shared no genes. Genes without an effect (NaN) do not count;
    a program without any has weight 0.
    """
    known = np.isfinite(b) & np.isfinite(se) & (se > 0)
    precision = np.where(known, 1 / np.where(known, se, 1) ** 2, 0)
    total = np.square(loadings).T @ precision
    return (loadings.T @ (np.where(known, b, 0) * precision) / np.where(total > 0, total, 1)).astype(np.float32)


def trait_arms(fold: Fold) -> dict[str, Callable[[], Prediction]]:
    """What makes each arm's predicted traits [N, T] for all rows of a fold, from the same base as arm `gnn`.

    trait_linear: the cascade's weights on the base's programs before the manifold; left out where there is none.
    trait_program_mean: weights fitted one program at a time. trait_genes: gene effects straight on the base's
    expression. None of them without gene effects. They predict no programs of their own, so that programs and
    expression are None. Where traits are not measured, the observed ones are the cascade's weights on observed
    programs, which favours the arms with these weights.
    """
    if fold.gene_effect is None or fold.base_expression is None:
        return {}
    arms = {
        "trait_program_mean": lambda: (
            fold.base_program @ program_means(fold.loadings, fold.gene_effect, fold.gene_effect_se)
        ),
        "trait_genes": lambda: gene_effects(fold.base_expression, fold.gene_effect),
    }
    if fold.free_program is not None:
        arms["trait_linear"] = lambda: fold.free_program @ fold.trait_weights
    return {name: partial(_on_traits, make) for name, make in arms.items()}


def _on_traits(make: Callable[[], np.ndarray]) -> Prediction:
    return Prediction(None, None, make())
