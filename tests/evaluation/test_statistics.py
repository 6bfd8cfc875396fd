"""Bootstrap intervals: values, pairing, coverage, and the tests built on them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.evaluation.statistics import (
    holm,
    mean_interval,
    minimum_detectable_effect,
    nested_difference,
    nested_gain,
    nested_p_value,
    ratio_intervals,
    resample_counts,
    resampled_sums,
)


def screen(rng, seeds=3, regulators=60, shared=1.0, noise=0.5, gain=0.0):
    """Paired errors of several splits of one screen, whose true gain is `gain`."""
    regulator, seed = np.tile(np.arange(regulators), seeds), np.repeat(np.arange(seeds), regulators)
    effect = shared * rng.normal(size=regulators)[regulator] + noise * rng.normal(size=len(seed))
    reference = rng.gamma(4, 0.25, size=len(seed)) + 0.5  # mean 1.5
    return reference - 1.5 * gain + 0.1 * effect, reference, regulator, seed


def test_gain_is_pooled_over_records():
    error, reference = np.array([1.0, 1.0, 4.0]), np.array([2.0, 2.0, 4.0])
    gain = nested_gain(error, reference, np.array([0, 1, 2]), np.array([0, 0, 1]))
    assert (gain.value, gain.n) == (pytest.approx(0.25), 3)
    assert gain.lower <= gain.value <= gain.upper


def test_resampled_sums_equal_a_plain_loop():
    rng = np.random.default_rng(0)
    value, regulator, seed = rng.normal(size=30), rng.integers(0, 6, 30), rng.integers(0, 3, 30)
    drawn = resampled_sums(value[:, None], regulator, seed, 20, 5)[:, 0]
    seeds, regulators = resample_counts(3, 20, 5, 0), resample_counts(6, 20, 5, 1)
    assert (seeds.sum(1) == 3).all() and (regulators.sum(1) == 6).all()
    expected = [
        sum(v * seeds[b, s] * regulators[b, r] for v, r, s in zip(value, regulator, seed, strict=True))
        for b in range(20)
    ]
    assert drawn == pytest.approx(expected, abs=1e-4)


def test_resamples_without_records_are_left_out():
    # each seed holds one regulator: one that is drawn without the other's seed leaves nothing
    mean = mean_interval(np.array([3.0, 5.0]), np.array([0, 1]), np.array([0, 1]), 500)
    assert (mean.lower, mean.upper) == (3.0, 5.0)


@pytest.mark.parametrize("seeds, shared", [(1, 1.0), (3, 1.0), (5, 1.0), (3, 0.3)])
def test_coverage(seeds, shared):
    rng = np.random.default_rng(seeds)
    runs, covered = 300, 0
    for run in range(runs):
        interval = nested_gain(*screen(rng, seeds, shared=shared, gain=0.1), resamples=300, rng_seed=run)
        covered += interval.lower <= 0.1 <= interval.upper
    # 95 % is nominal; resampling regulators anew for each seed would give 75 % (3 seeds) and 61 % (5 seeds)
    assert 0.91 <= covered / runs <= 0.995


def test_interval_narrows_with_regulators():
    rng = np.random.default_rng(0)
    widths = []
    for regulators in (25, 400):
        interval = nested_gain(*screen(rng, regulators=regulators))
        widths.append(interval.upper - interval.lower)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.5)


def test_pairing_removes_what_both_arms_share():
    rng = np.random.default_rng(0)
    error, reference, regulator, seed = screen(rng, gain=0.2, shared=0, noise=0)
    hard = 20 * rng.random(60)[regulator]
    paired = nested_difference(error + hard, reference + hard, regulator, seed)
    alone = mean_interval(error + hard, regulator, seed)
    assert paired.value == pytest.approx(-0.3)
    assert paired.upper - paired.lower < 0.01 * (alone.upper - alone.lower)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_intervals_do_not_depend_on_row_order_or_labels(seed):
    rng = np.random.default_rng(seed)
    error, reference, regulator, seeds = screen(rng, regulators=8)
    order = rng.permutation(len(error))
    a = nested_gain(error, reference, regulator, seeds, 100)
    b = nested_gain(error[order], reference[order], regulator[order] + 5, seeds[order] + 9, 100)
    assert (a.value, a.lower, a.upper) == pytest.approx((b.value, b.lower, b.upper), abs=1e-9)


def test_one_regulator_has_no_interval_and_no_significance():
    error, one = np.array([1.0, 2.0]), np.zeros(2, int)
    gain = nested_gain(error, error + 1, one, np.array([0, 1]))
    assert gain.value == pytest.approx(0.4) and np.isnan([gain.lower, gain.upper]).all()
    assert nested_p_value(error, error + 1, one, np.array([0, 1])) == 1.0
    assert np.isnan(minimum_detectable_effect(error, one, np.array([0, 1])))


def test_a_ratio_over_nothing_is_defined():
    zero, regulator = np.zeros((3, 1)), np.arange(3)
    limits = ratio_intervals(zero, zero, regulator, np.zeros(3), 50, 0.95, 0)
    assert [float(limit[0]) for limit in limits] == [0.0, 0.0, 0.0]


def test_p_value_finds_a_gain_and_spares_its_absence():
    rng = np.random.default_rng(3)
    assert nested_p_value(*screen(rng, gain=0.2)) == pytest.approx(2 / 1001)
    false = sum(nested_p_value(*screen(rng), resamples=200, rng_seed=i) < 0.05 for i in range(200))
    assert false / 200 <= 0.09
    assert nested_p_value(np.ones(4), np.ones(4), np.arange(4), np.zeros(4)) == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.6, 0.9]).tolist() == [1.0, 1.0]


def test_minimum_detectable_effect_is_found_with_the_stated_power():
    rng = np.random.default_rng(0)
    difference = rng.normal(size=400)
    effect = minimum_detectable_effect(difference, np.arange(400), np.zeros(400))
    assert effect == pytest.approx((1.96 + 0.84) / 20, rel=0.1)
    found = 0
    for run in range(200):
        shifted = rng.normal(size=400) - effect
        found += nested_p_value(shifted, np.zeros(400), np.arange(400), np.zeros(400), 300, run) < 0.05
    assert 0.7 < found / 200 < 0.9
