"""Bootstrap intervals: values, pairing, coverage, and the tests built on them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.evaluation.components import cell_sums, mean_products, seed_variance
from mantra_ray.evaluation.statistics import (
    Spread,
    expanded,
    holm,
    mean_interval,
    nested_difference,
    nested_gain,
    nested_p_value,
    percentile_limits,
    ratio_bootstrap,
    ratio_intervals,
    resample_counts,
    resampled_sums,
)


def screen(rng, seeds=3, regulators=60, shared=1.0, noise=0.5, gain=0.0, between=0.0):
    """Paired errors of several splits of one screen, whose true gain is `gain`; seeds differ by `between`."""
    regulator, seed = np.tile(np.arange(regulators), seeds), np.repeat(np.arange(seeds), regulators)
    effect = shared * rng.normal(size=regulators)[regulator] + noise * rng.normal(size=len(seed))
    effect += between * rng.normal(size=seeds)[seed]
    reference = rng.gamma(4, 0.25, size=len(seed)) + 0.5  # mean 1.5
    return reference - 1.5 * gain + 0.1 * effect, reference, regulator, seed


REPEATS = np.tile(np.arange(60), 3), np.repeat(np.arange(3), 60)


def test_gain_is_pooled_over_records():
    error, reference = np.array([1.0, 1.0, 4.0]), np.array([2.0, 2.0, 4.0])
    gain = nested_gain(error, reference, np.array([0, 1, 2]), np.array([0, 0, 1]))
    assert (gain.value, gain.n) == (pytest.approx(0.25), 3)
    assert gain.lower <= gain.value <= gain.upper


def test_resampled_sums_equal_a_plain_loop():
    rng = np.random.default_rng(0)
    value, regulator = rng.normal(size=30), rng.permutation(np.arange(30) % 6)
    drawn = resampled_sums(value[:, None], regulator, 20, 5)[:, 0]
    counts = resample_counts(6, 20, 5, 1)
    assert (counts.sum(1) == 6).all()
    expected = [sum(v * counts[b, r] for v, r in zip(value, regulator, strict=True)) for b in range(20)]
    assert drawn == pytest.approx(expected, abs=1e-4)


def test_mean_products_equal_a_plain_loop():
    rng = np.random.default_rng(1)
    value, regulator, seed = rng.normal(size=40), rng.integers(0, 5, 40), rng.integers(0, 3, 40)
    cells = cell_sums(value[:, None], regulator, seed)
    weights = cell_sums(np.ones((40, 1)), regulator, seed)
    found = mean_products(cells, weights)
    kinds = {"regulator": (True, False), "seed": (False, True), "neither": (False, False)}
    for name, kind in kinds.items():
        products = [
            value[i] * value[j]
            for i in range(40)
            for j in range(40)
            if (regulator[i] == regulator[j], seed[i] == seed[j]) == kind
        ]
        assert getattr(found, name)[0] == pytest.approx(np.mean(products))


@pytest.mark.parametrize("tested", [1.0, 0.3])
@pytest.mark.parametrize("between", [0.0, 0.5])
def test_what_seeds_add_is_estimated_without_bias(tested, between):
    # even where seeds hold other regulators, which alone make their means differ
    rng, found = np.random.default_rng(2), []
    for _ in range(300):
        held = [rng.permutation(40)[: int(40 * tested)] for _ in range(4)]
        regulator, seed = np.concatenate(held), np.repeat(np.arange(4), len(held[0]))
        value = rng.normal(size=40)[regulator] + between * rng.normal(size=4)[seed] + rng.normal(size=len(seed))
        columns = np.stack([value - value.mean(), np.ones(len(seed))], axis=1) / len(seed)
        cells = cell_sums(columns, regulator, seed)
        mean = mean_products(cells[..., :1], cells[..., 1:])
        found.append(float((mean.seed - mean.neither)[0]))
        assert seed_variance(cells[..., :1], cells[..., 1:])[0] == pytest.approx(max(found[-1], 0) / 4)
    assert np.mean(found) == pytest.approx(between**2, abs=4 * np.std(found) / np.sqrt(300))


def test_degrees_of_freedom_are_those_of_what_dominates():
    rng = np.random.default_rng(0)
    share = np.full((3, 50, 1), 1 / 150)

    def freedom(regulator, seed):
        effect = regulator * rng.normal(size=(1, 50, 1)) + seed * rng.normal(size=(3, 1, 1))
        effect = effect + 1e-6 * rng.normal(size=(3, 50, 1))
        return Spread.of((effect - effect.mean()) * share, share).freedom[0]

    assert freedom(1.0, 1e-3) == pytest.approx(49, rel=0.02)
    assert freedom(1e-3, 1.0) == pytest.approx(2, rel=0.02)


def test_expanded_percentiles_of_normal_draws_are_students_interval():
    rng = np.random.default_rng(0)
    value = rng.normal(size=12)
    means = resampled_sums(value[:, None], np.arange(12), 20_000, 0)[:, 0] / 12
    lower, upper = percentile_limits(means, 0.95, 12)
    error = value.std(ddof=1) / np.sqrt(12)
    assert (upper - lower) / 2 == pytest.approx(2.201 * error, rel=0.05)
    assert expanded(0.05, 10_000) == pytest.approx(-1.96, abs=1e-3)


@pytest.mark.parametrize(
    "seeds, shared, between", [(1, 1.0, 0.0), (3, 1.0, 0.0), (5, 1.0, 0.0), (3, 0.3, 0.0), (3, 0.3, 1.0), (5, 0.3, 1.0)]
)
def test_coverage(seeds, shared, between):
    rng = np.random.default_rng(seeds)
    runs, covered = 300, 0
    for run in range(runs):
        records = screen(rng, seeds, shared=shared, gain=0.1, between=between)
        interval = nested_gain(*records, resamples=300, rng_seed=run % 4)
        covered += interval.lower <= 0.1 <= interval.upper
    # 95 % is nominal; resampling regulators anew for each seed would give 75 % (3 seeds) and 61 % (5 seeds), and
    # resampling seeds 73 % (3) and 84 % (5) where they dominate
    assert 0.91 <= covered / runs <= 0.995


@pytest.mark.parametrize("seeds, between", [(1, 0.0), (3, 0.3), (3, 2.0)])
def test_p_values_and_intervals_agree(seeds, between):
    rng, differ, small = np.random.default_rng(5), 0, 0
    for run in range(150):
        error, reference, regulator, seed = screen(rng, seeds, 20, gain=0.02, between=between)
        inside = nested_difference(error, reference, regulator, seed, 500, 0.9, run % 4)
        p = nested_p_value(error, reference, regulator, seed, 500, run % 4)
        differ += (p < 0.1) == (inside.lower <= 0 <= inside.upper)
        small += p < 0.1
    assert 10 < small < 140  # both cases are there
    assert differ == 0


def test_limits_widen_with_confidence():
    drawn = ratio_bootstrap(*(column[:, None] for column in screen(np.random.default_rng(0))[:2]), *REPEATS, 1000, 0)
    lower, upper = np.array([drawn.limits(alpha) for alpha in (0.5, 0.2, 0.05, 0.01, 0.002)])[..., 0].T
    assert (np.diff(lower) < 0).all() and (np.diff(upper) > 0).all()


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
