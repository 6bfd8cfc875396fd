"""Traits of a fold: gene effects, program-to-trait weights and observed changes."""

from __future__ import annotations

import numpy as np

from mantra_ray.cascade.ridge import fit_ridge
from mantra_ray.cascade.traits import trait_weights
from mantra_ray.data.screen import Screen


def gene_effects(screen: Screen, genes: np.ndarray) -> dict[str, np.ndarray | None]:
    """Effects of the kept genes on traits and their standard errors, [G, T] float32, NaN where a gene has none.

    None where the screen has no table of them. Keyed by the fields of `Fold`.
    """
    if not screen.traits:
        return {"gene_effect": None, "gene_effect_se": None}
    tables = screen.traits.values()
    b, se = (np.stack([getattr(table, name)[genes] for table in tables], axis=1) for name in ("b", "se"))
    return {"gene_effect": b, "gene_effect_se": se}


def fold_traits(
    screen: Screen,
    genes: np.ndarray,
    loadings: np.ndarray | None,
    program: np.ndarray,
    train: np.ndarray,
    ridge: bool,
    notes: list[str],
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Trait weights [K, T], observed traits [N, T] and trait names; T is 0 where nothing is known of traits.

    Weights come from gene effects; where only observed traits are given, from a ridge on the training rows.
    """
    observed = screen.data.delta_trait
    if loadings is not None and screen.traits:
        theta = np.stack(
            [trait_weights(loadings, table.b[genes], table.se[genes], ridge)[0] for table in screen.traits.values()],
            axis=1,
        )
        if observed is not None and tuple(screen.data.trait_names) == tuple(screen.traits):
            return theta, observed, list(screen.traits)
        if observed is not None:
            notes.append("the file's traits are not those of the gene effects, and are not used")
        return theta, program @ theta, list(screen.traits)
    if observed is not None:
        theta = fit_ridge(program[train], observed[train], intercept=False).coef_
        return theta.reshape(observed.shape[1], -1).T, observed, list(screen.data.trait_names)
    return np.zeros((program.shape[1], 0), np.float32), np.zeros((len(program), 0), np.float32), []
