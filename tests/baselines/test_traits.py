"""Trait baselines: each leaves out the part that it says, and nothing else."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.baselines.traits import gene_effects, program_means, trait_arms
from mantra_ray.cascade.traits import trait_weights


def test_gene_effects_equal_a_plain_loop_without_unknown_genes():
    rng = np.random.default_rng(0)
    expression, b = rng.normal(size=(4, 6)), rng.normal(size=(6, 2))
    b[2, 0] = np.nan
    found = gene_effects(expression, b)
    for i in range(4):
        for t in range(2):
            expected = sum(expression[i, g] * b[g, t] for g in range(6) if np.isfinite(b[g, t]))
            assert found[i, t] == pytest.approx(expected, rel=1e-5)


@given(st.integers(0, 10_000), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_program_means_are_the_joint_fit_of_programs_that_share_no_genes(seed, programs):
    rng = np.random.default_rng(seed)
    loadings = np.zeros((8 * programs, programs))
    for k in range(programs):
        loadings[8 * k : 8 * (k + 1), k] = rng.uniform(0.5, 2, 8)
    b, se = rng.normal(size=(len(loadings), 1)), rng.uniform(0.1, 1, (len(loadings), 1))
    b[0], se[-1] = np.nan, np.nan
    found = program_means(loadings, b, se)[:, 0]
    np.testing.assert_allclose(found, trait_weights(loadings, b[:, 0], se[:, 0])[0], rtol=1e-4)


def test_program_means_count_shared_genes_twice():
    loadings = np.ones((10, 2))
    loadings[:3, 1] = 0
    b, se = loadings @ np.array([[1.0], [1.0]]), np.ones((10, 1))
    joint = trait_weights(loadings, b[:, 0], se[:, 0])[0]
    assert joint == pytest.approx([1, 1], abs=1e-3) and program_means(loadings, b, se)[0, 0] > 1.5
    assert program_means(np.eye(3), np.array([[1.0], [np.nan], [2.0]]), np.ones((3, 1))).ravel().tolist() == [1, 0, 2]


def with_effects(fold, b, se, free=None):
    return dataclasses.replace(fold, gene_effect=b, gene_effect_se=se, free_program=free)


def test_arms_of_a_fold(planted):
    fold = planted()
    b, free = np.random.default_rng(0).normal(size=(12, 2)), fold.base_program + 1
    arms = {name: make() for name, make in trait_arms(with_effects(fold, b, np.ones_like(b), free)).items()}
    assert set(arms) == {"trait_linear", "trait_program_mean", "trait_genes"}
    for arm in arms.values():
        assert arm.program is None and arm.expression is None and arm.trait.shape == fold.delta_trait.shape
    shift = arms["trait_linear"].trait - fold.base_program @ fold.trait_weights
    np.testing.assert_allclose(shift, [fold.trait_weights.sum(0)] * len(free), atol=1e-4)
    mean = fold.base_program @ program_means(fold.loadings, b, np.ones_like(b))
    np.testing.assert_allclose(arms["trait_program_mean"].trait, mean, atol=1e-5)


def test_gene_effects_within_the_programs_span_leave_nothing_to_choose_from(planted):
    fold = planted()
    exact = fold.loadings @ np.linalg.inv(fold.loadings.T @ fold.loadings) @ fold.trait_weights
    base = fold.base_program @ fold.loadings.T
    spanned = dataclasses.replace(fold, base_expression=base, base_program=base @ fold.loadings)
    found = trait_arms(with_effects(spanned, exact, np.ones_like(exact)))["trait_genes"]().trait
    np.testing.assert_allclose(found, fold.base_program @ fold.trait_weights, atol=1e-3)


def test_arms_need_gene_effects_and_expression_and_linear_a_manifold(planted):
    fold = planted()
    b = np.ones((12, 2))
    assert trait_arms(fold) == {}
    assert set(trait_arms(with_effects(fold, b, b))) == {"trait_program_mean", "trait_genes"}
    bare = dataclasses.replace(fold, loadings=None, base_expression=None, delta_expression=None)
    assert trait_arms(with_effects(bare, b, b)) == {}
