"""Metrics over all records at once: against numpy, scipy and scikit-learn, and their bootstrap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from mantra_ray.evaluation import pooled
from mantra_ray.evaluation.pooled import CURVE, RATES, STEPS, Resamples, roc, sign_roc, sums_of


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
    for found, times in zip(roc(score, positive, weight.astype(np.float32), False)[:, 0], weight, strict=True):
        truth = np.repeat(positive, times)
        expected = roc_auc_score(truth, np.repeat(score, times)) if 0 < truth.sum() < len(truth) else np.nan
        assert found == pytest.approx(expected, nan_ok=True)


def read_off(truth, score, rate):
    """True-positive rate of scikit-learn's curve at a false-positive rate: on a vertical piece its upper end."""
    false, true, _ = roc_curve(truth, score, drop_intermediate=False)
    last = np.flatnonzero(false * STEPS <= rate * STEPS + 1e-9)[-1]
    if last + 1 == len(false) or abs(false[last] - rate) < 1e-9:
        return true[last]
    return np.interp(rate, false[last : last + 2], true[last : last + 2])


@given(st.integers(0, 10_000), st.integers(2, 60), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_curve_of_repeated_records_is_scikit_learns(seed, n, ties):
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 5, n).astype(float) if ties else rng.normal(size=n)
    positive, weight = rng.random(n) < 0.5, rng.integers(0, 4, (4, n))
    found = roc(score, positive, weight.astype(np.float32))
    assert np.array_equal(found[:, 0], roc(score, positive, weight.astype(np.float32), False)[:, 0], equal_nan=True)
    for curve, times in zip(found[:, 1:], weight, strict=True):
        truth, repeated = np.repeat(positive, times), np.repeat(score, times)
        if 0 < truth.sum() < len(truth):
            assert curve == pytest.approx([read_off(truth, repeated, rate) for rate in RATES], abs=1e-6)
        else:
            assert np.isnan(curve).all()


@given(st.integers(0, 10_000), st.integers(2, 80), st.integers(1, 4), st.sampled_from([0.0, 1.0, -1.0]))
@settings(max_examples=60, deadline=None)
def test_curves_rise_and_enclose_the_area(seed, n, traits, signal):
    rng = np.random.default_rng(seed)
    observed = rng.normal(size=(n, traits))
    predicted = np.round(signal * observed + rng.normal(size=(n, traits)), rng.integers(0, 3))  # some tie
    weight = rng.multinomial(n, np.full(n, 1 / n), size=5).astype(np.float32)
    found = sign_roc(predicted, observed, weight)
    curve = np.hstack([np.zeros((5, 1)), found[:, 1:], np.ones((5, 1))])
    assert (np.diff(curve, axis=1) >= -1e-6).all() and curve.max() <= 1 + 1e-6
    area = np.trapezoid(curve, np.arange(STEPS + 1) / STEPS, axis=1)
    # a rising curve leaves the chords of a grid by half a step at most, all steps together
    assert np.abs(area - found[:, 0]).max() <= 0.5 / STEPS + 1e-6


def test_curves_of_no_a_perfect_and_a_reversed_ranking():
    observed = np.random.default_rng(0).normal(size=(200, 2))
    weight = np.ones((1, 200))
    assert sign_roc(np.zeros_like(observed), observed, weight)[0, 1:] == pytest.approx(RATES)
    assert sign_roc(observed, observed, weight).tolist() == [[1.0] * STEPS]
    assert sign_roc(-observed, observed, weight).tolist() == [[0.0] * STEPS]
    assert sign_roc(observed, np.abs(observed), weight)[0] == pytest.approx([0.5, *RATES])


def test_sign_auroc_averages_traits_and_skips_observed_zeros():
    observed = np.array([[1.0, 1], [-1, 2], [0, -1], [2, -3]])
    predicted = np.array([[3.0, 1], [2, 2], [99, 9], [1, 3]])
    # trait 0: positives 3 and 1 against 2: one of two; trait 1: all wrong
    weight = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 1, 0]])
    # without the second record trait 0 has one sign alone and is not judged
    for curve in (False, True):
        assert sign_roc(predicted, observed, weight, curve)[:, 0].tolist() == [0.25, 0.0, 0.0]
        assert sign_roc(predicted, np.abs(observed), weight, curve)[:, 0].tolist() == [0.5] * 3
        assert sign_roc(predicted, 0 * observed, weight, curve)[:, 0].tolist() == [0.5] * 3
    # at a false-positive rate of 1/2 the one negative record of trait 0 is half passed, with one positive above it
    assert sign_roc(predicted, observed, weight)[0, STEPS // 2] == pytest.approx(0.25)


def test_limits_hold_the_value_and_narrow_with_regulators():
    widths = []
    for n in (20, 400):
        predicted, observed = both(n=n)
        trait = predicted, observed - 2
        resamples = Resamples(np.arange(n), 300, 0.95, 0)
        found = pooled.pooled_metrics((predicted, observed), trait, resamples)
        metrics = {"spread_ratio", "trait_correlation", "trait_calibration_slope", "trait_auroc"}
        assert set(found) == metrics | set(CURVE) and len(CURVE) == 19 and CURVE[0] == "trait_tpr_at_fpr_0.05"
        assert all(lower <= value <= upper for value, lower, upper in found.values())
        assert all(found[name][1] < found[name][0] < found[name][2] for name in (*metrics, CURVE[5]))
        short = pooled.pooled_metrics((predicted, observed), trait, resamples, curve=False)
        assert short == {name: found[name] for name in metrics}
        widths.append({name: upper - lower for name, (_, lower, upper) in short.items()})
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
    names = ("trait_auroc", *CURVE)
    whole = Resamples(np.arange(40), 100, 0.9, 0).of_weights(lambda w: sign_roc(predicted, observed - 2, w), names)
    monkeypatch.setattr(pooled, "BLOCK", 120)
    part = Resamples(np.arange(40), 100, 0.9, 0).of_weights(lambda w: sign_roc(predicted, observed - 2, w), names)
    assert part.keys() == whole.keys() and all(part[name] == pytest.approx(whole[name]) for name in names)


def test_one_regulator_has_no_interval():
    predicted, observed = both()
    found = pooled.pooled_metrics((predicted, observed), (predicted, observed), Resamples(np.zeros(40), 50, 0.95, 0))
    assert all(np.isfinite(value) and np.isnan([lower, upper]).all() for value, lower, upper in found.values())
