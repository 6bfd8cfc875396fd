"""Metrics against values worked out by hand, and their conventions for predictions without signal."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mantra_ray.evaluation import metrics


def test_squared_error_by_hand():
    predicted, observed = np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[0.0, 4.0], [3.0, 0.0]])
    assert metrics.squared_error(predicted, observed).tolist() == [2.5, 4.5]


def test_error_weights_add_the_models_own_variance_to_the_noise():
    # residual^2 has mean 5, noise 1: the model's own variance is 4
    weights = metrics.error_weights(np.array([[0.0, 4.0]]), np.array([[1.0, 3.0]]), np.array([[1.0, 1.0]]))
    assert weights.tolist() == [[1 / 4, 1 / 8]]


def test_error_weights_stay_finite_when_residuals_are_within_noise():
    weights = metrics.error_weights(np.zeros((1, 2)), np.full((3, 2), 0.1), np.ones((3, 2)))
    assert weights == pytest.approx(np.full((1, 2), 1 / 1e-4))


def test_cosine_by_hand():
    predicted, observed = (
        np.array([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0]]),
        np.array([[4.0, 3.0], [0.0, 2.0], [-1.0, -1.0]]),
    )
    assert metrics.cosine(predicted, observed) == pytest.approx([24 / 25, 0.0, -1.0])


@pytest.mark.parametrize("name, reference", [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)])
def test_correlations_agree_with_scipy(name, reference):
    rng = np.random.default_rng(0)
    predicted, observed = rng.normal(size=(5, 9)), rng.normal(size=(5, 9))
    expected = [reference(p, o).statistic for p, o in zip(predicted, observed, strict=True)]
    assert getattr(metrics, name)(predicted, observed) == pytest.approx(expected)


def test_shift_turns_the_training_mean_into_no_direction_despite_rounding():
    rng = np.random.default_rng(0)
    origin = rng.normal(size=500).astype(np.float32)
    predicted = np.stack([origin * np.float32(1 + 1e-7), origin + 1]).astype(np.float32)
    moved = metrics.shift(predicted, origin)
    assert not moved[0].any() and moved[1] == pytest.approx(np.ones(500), abs=1e-5)


def test_top_overlap_by_hand():
    observed = np.array([[5.0, -4.0, 1.0, 0.0]])
    assert metrics.top_overlap(np.array([[-9.0, 8.0, 0.0, 0.0]]), observed, top=2).tolist() == [1.0]
    assert metrics.top_overlap(np.array([[9.0, 0.0, 8.0, 0.0]]), observed, top=2).tolist() == [0.5]
    # two places for four tied programs: chance, 2 of 4
    assert metrics.top_overlap(np.zeros((1, 4)), observed, top=2).tolist() == [0.5]


def test_discrimination_by_hand():
    observed, regulator = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 9.0]]), np.array([0, 1, 2])
    assert metrics.discrimination(observed, observed, regulator).tolist() == [1.0, 1.0, 1.0]
    # the first prediction lies nearer to the second record, the third prediction nearest to neither rival
    predicted = np.array([[3.0, 0.0], [4.0, 0.0], [0.0, 9.0]])
    assert metrics.discrimination(predicted, observed, regulator).tolist() == [0.5, 1.0, 1.0]
    # two regulators with one effect cannot be told apart
    assert metrics.discrimination(np.ones((2, 2)), np.ones((2, 2)), regulator[:2]).tolist() == [0.5, 0.5]


def test_discrimination_ignores_records_of_the_same_regulator():
    observed = np.array([[0.0], [0.1], [5.0]])
    predicted = np.array([[0.1], [0.0], [5.0]])
    assert metrics.discrimination(predicted, observed, np.array([0, 0, 1])).tolist() == [1.0, 1.0, 1.0]
    assert metrics.discrimination(predicted, observed, np.zeros(3, int)).tolist() == [0.5, 0.5, 0.5]


def test_discrimination_is_the_same_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    predicted, observed, regulator = rng.normal(size=(30, 4)), rng.normal(size=(30, 4)), rng.integers(0, 9, 30)
    whole = metrics.discrimination(predicted, observed, regulator)
    monkeypatch.setattr(metrics, "BLOCK", 64)
    assert metrics.discrimination(predicted, observed, regulator) == pytest.approx(whole)


@given(st.integers(0, 10_000), st.integers(3, 12))
@settings(max_examples=20, deadline=None)
def test_discrimination_of_a_constant_prediction_is_chance(seed, n):
    observed = np.random.default_rng(seed).normal(size=(n, 3))
    constant = np.ones((n, 3)) * np.random.default_rng(seed + 1).normal(size=3)
    assert metrics.discrimination(constant, observed, np.arange(n)).mean() == pytest.approx(0.5)


def test_sign_hits_by_hand():
    hits, judged = metrics.sign_hits(np.array([[1.0, -1.0, 0.0, 2.0]]), np.array([[3.0, 1.0, -1.0, 0.0]]))
    assert (hits.tolist(), judged.tolist()) == ([1.5], [3.0])


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.7e3])
@pytest.mark.parametrize("name", ["cosine", "pearson", "spearman", "top_overlap"])
def test_constant_predictions_have_defined_values(name, constant):
    observed = np.random.default_rng(0).normal(size=(4, 31)).astype(np.float32)
    value = getattr(metrics, name)(np.full_like(observed, constant), observed)
    assert np.isfinite(value).all()
    if name in ("pearson", "spearman"):
        assert (value == 0).all()
