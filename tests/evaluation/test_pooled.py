"""Metrics over all records at once: against numpy, scipy and scikit-learn, and their bootstrap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mantra_ray.evaluation import pooled
from mantra_ray.evaluation.pooled import Resamples, sums_of


def both(seed=0, n=40, columns=3):
    rng = np.random.default_rng(seed)
    observed = rng.normal(size=(n, columns)) + 2
    return 0.5 * observed + rng.normal(size=(n, columns)), observed


def of(metric, predicted, observed):
    return metric(sums_of(predicted, observed).sum(0))


def test_moments_agree_with_numpy():
    predicted, observed = both()
    pairs = list(zip(predicted.T, observed.T, strict=True))
    assert of(pooled.correlation, predicted, observed) == pytest.approx(np.mean([np.corrcoef(*p)[0, 1] for p in pairs]))
    slopes = [np.polyfit(x, y, 1)[0] for x, y in pairs]
    assert of(pooled.calibration_slope, predicted, observed) == pytest.approx(np.mean(slopes))
    ratio = np.sqrt(predicted.var(0).sum() / observed.var(0).sum())
    assert of(pooled.spread_ratio, predicted, observed) == pytest.approx(ratio)


def test_a_prediction_twice_as_large_has_half_the_slope_and_twice_the_spread():
    _, observed = both()
    assert of(pooled.calibration_slope, 2 * observed + 1, observed) == pytest.approx(0.5)
    assert of(pooled.spread_ratio, 2 * observed + 1, observed) == pytest.approx(2)
    assert of(pooled.correlation, 2 * observed + 1, observed) == pytest.approx(1)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.7e3])
@pytest.mark.parametrize("metric", [pooled.correlation, pooled.calibration_slope, pooled.spread_ratio])
def test_constant_predictions_count_nothing(metric, constant):
    _, observed = both()
    assert of(metric, np.full_like(observed, constant), observed) == 0.0
    assert of(metric, observed, np.full_like(observed, constant)) == 0.0


@given(st.integers(0, 10_000), st.integers(2, 30), st.booleans())
@settings(max_examples=30, deadline=None)
def test_auroc_of_repeated_records_is_that_of_weighted_ones(seed, n, ties):
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 4, n).astype(float) if ties else rng.normal(size=n)
    positive, weight = rng.random(n) < 0.5, rng.integers(0, 4, (3, n))
    for found, times in zip(pooled.auroc(score, positive, weight.astype(np.float32)), weight, strict=True):
        truth = np.repeat(positive, times)
        expected = roc_auc_score(truth, np.repeat(score, times)) if 0 < truth.sum() < len(truth) else np.nan
        assert found == pytest.approx(expected, nan_ok=True)


def test_sign_auroc_averages_traits_and_skips_observed_zeros():
    observed = np.array([[1.0, 1], [-1, 2], [0, -1], [2, -3]])
    predicted = np.array([[3.0, 1], [2, 2], [99, 9], [1, 3]])
    # trait 0: positives 3 and 1 against 2: one of two; trait 1: all wrong
    weight = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 1, 0]])
    # without the second record trait 0 has one sign alone and is not judged
    assert pooled.sign_auroc(predicted, observed, weight).tolist() == [0.25, 0.0, 0.0]
    assert pooled.sign_auroc(predicted, np.abs(observed), weight).tolist() == [0.5] * 3
    assert pooled.sign_auroc(predicted, 0 * observed, weight).tolist() == [0.5] * 3


def test_limits_hold_the_value_and_narrow_with_regulators():
    widths = []
    for n in (20, 400):
        predicted, observed = both(n=n)
        trait = predicted, observed - 2
        found = pooled.pooled_metrics((predicted, observed), trait, Resamples(np.arange(n), 300, 0.95, 0))
        assert set(found) == {"spread_ratio", "trait_correlation", "trait_calibration_slope", "trait_auroc"}
        assert all(lower < value < upper for value, lower, upper in found.values())
        widths.append({name: upper - lower for name, (_, lower, upper) in found.items()})
    assert all(widths[1][name] < 0.5 * widths[0][name] for name in widths[0])


def test_records_of_a_regulator_are_drawn_together():
    predicted, observed = both(n=30)
    regulator, times = np.arange(30), 5
    alone = pooled.pooled_metrics((predicted, observed), (predicted, observed), Resamples(regulator, 200, 0.95, 0))
    repeated = [np.repeat(array, times, axis=0) for array in (predicted, observed)]
    again = pooled.pooled_metrics(repeated, repeated, Resamples(np.repeat(regulator, times), 200, 0.95, 0))
    for name, limits in alone.items():
        assert again[name] == pytest.approx(limits, rel=1e-5), name


def test_blocks_of_resamples_change_nothing(monkeypatch):
    predicted, observed = both()
    whole = Resamples(np.arange(40), 100, 0.9, 0).of_weights(lambda w: pooled.sign_auroc(predicted, observed - 2, w))
    monkeypatch.setattr(pooled, "BLOCK", 120)
    part = Resamples(np.arange(40), 100, 0.9, 0).of_weights(lambda w: pooled.sign_auroc(predicted, observed - 2, w))
    assert part == pytest.approx(whole)


def test_one_regulator_has_no_interval():
    predicted, observed = both()
    found = pooled.pooled_metrics((predicted, observed), (predicted, observed), Resamples(np.zeros(40), 50, 0.95, 0))
    assert all(np.isfinite(value) and np.isnan([lower, upper]).all() for value, lower, upper in found.values())
