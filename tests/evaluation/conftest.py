"""A small fold with known noise, traits and expression."""

import dataclasses

import numpy as np
import pytest

from mantra_ray.forward import Fold


@pytest.fixture
def fold() -> Fold:
    """24 regulators x 2 states x 2 doses, 6 programs, 40 genes, 2 traits; the base is the truth, damped."""
    rng = np.random.default_rng(0)
    regulator, state, dose = (
        a.ravel() for a in np.meshgrid(np.arange(24), np.arange(2), np.float32([0.4, 0.9]), indexing="ij")
    )
    n, genes, programs = len(regulator), 40, 6
    loadings = rng.normal(size=(genes, programs)).astype(np.float32) / 6
    truth = dose[:, None] * (rng.normal(size=(24, genes))[regulator] + 0.5)
    observed = (truth + 0.3 * rng.normal(size=(n, genes))).astype(np.float32)
    base = (0.5 * truth).astype(np.float32)
    theta = rng.normal(size=(programs, 2)).astype(np.float32)
    order = rng.permutation(n)
    noise = np.tile(0.09 * np.square(loadings).sum(0), (n, 1)).astype(np.float32)
    return Fold(
        regulator=regulator,
        dose=dose,
        state=state,
        strategy=np.zeros(n, int),
        group=np.arange(n),
        train=np.sort(order[:60]),
        validation=np.sort(order[60:72]),
        test=np.sort(order[72:]),
        cross_fit=np.zeros(n, int),
        regulator_class=np.full(24, -1),
        delta_program=observed @ loadings,
        program_noise=noise,
        base_program=base @ loadings,
        lift=np.eye(programs, dtype=np.float32),
        trait_weights=theta,
        delta_trait=observed @ loadings @ theta,
        delta_expression=observed,
        base_expression=base,
        lift_expression=np.linalg.pinv(loadings),
        loadings=loadings,
        names={},
        meta={"kind": "seen", "seed": 0},
    )


@pytest.fixture
def without_expression(fold: Fold) -> Fold:
    """The same with programs alone: no expression, no traits, unknown noise."""
    missing = dict.fromkeys(("delta_expression", "base_expression", "lift_expression", "loadings"))
    n, programs = fold.delta_program.shape
    return dataclasses.replace(
        fold,
        **missing,
        trait_weights=np.zeros((programs, 0), np.float32),
        delta_trait=np.zeros((n, 0), np.float32),
        program_noise=np.zeros((n, programs), np.float32),
    )
