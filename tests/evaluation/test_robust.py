"""Interquartile mean and probability of improvement: values, intervals and what outliers do to them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, norm, trim_mean

from mantra_ray.evaluation import robust
from mantra_ray.evaluation.robust import (
    improvement_interval,
    interquartile_interval,
    interquartile_mean,
    pair_gains,
)


def pairs(rng, seeds=3, regulators=40, mean=0.0, between=0.0):
    """Gains of every pair of seed and regulator, half of whose variance the regulator explains."""
    regulator, seed = np.tile(np.arange(regulators), seeds), np.repeat(np.arange(seeds), regulators)
    noise = rng.normal(size=regulators)[regulator] + rng.normal(size=len(seed))
    return mean + noise + between * rng.normal(size=seeds)[seed], regulator, seed


def test_a_pair_gains_the_sum_of_its_records():
    gained, reference = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([2.0, 2.0, 4.0, 0.0, 10.0])
    regulator, seed = np.array([7, 7, 9, 5, 7]), np.array([1, 1, 1, 1, 3])
    gain, who, when = pair_gains(gained, reference, regulator, seed)
    assert (gain.tolist(), who.tolist(), when.tolist()) == ([0.75, 0.75, 0.5], [7, 9, 7], [1, 1, 3])


@given(st.integers(0, 1000), st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_interquartile_mean_is_a_quarter_trimmed_mean(seed, quarter):
    rng = np.random.default_rng(seed)
    value, weight = np.sort(rng.normal(size=4 * quarter)), rng.integers(0, 3, (5, 4 * quarter))
    weight[:, :quarter] += 1  # nothing without any record
    found = interquartile_mean(value, np.ones((1, len(value))))[0]
    assert found == pytest.approx(trim_mean(value, 0.25))
    for one, mean in zip(weight, interquartile_mean(value, weight), strict=True):
        assert mean == pytest.approx(trim_mean(np.repeat(value, 4 * one), 0.25))  # 4 copies: no fraction of a record


@pytest.mark.parametrize("interval", [interquartile_interval, improvement_interval])
def test_an_outlier_decides_nothing(interval):
    gain, *who = pairs(np.random.default_rng(0), mean=0.5)
    wild = gain.copy()
    wild[np.argmax(gain)] = 1e6
    assert interval(wild, *who) == interval(gain, *who)


@pytest.mark.parametrize("seeds, between", [(1, 0.0), (3, 0.0), (3, 0.5), (5, 0.5)])
def test_coverage(seeds, between):
    rng, runs, covered = np.random.default_rng(seeds), 200, np.zeros(2)
    for run in range(runs):
        sample = pairs(rng, seeds, between=between)
        for i, (interval, truth) in enumerate(
            ((interquartile_interval(*sample, 300, 0.95, run % 4), 0.0), (improvement_interval(*sample), 0.5))
        ):
            covered[i] += interval.lower <= truth <= interval.upper
    assert (covered / runs >= 0.9).all() and (covered / runs <= 0.995).all()


def test_improvement_is_a_share_with_ties_counting_half():
    regulator, seed = np.arange(8), np.zeros(8, int)
    found = improvement_interval(np.array([1.0, 2, 3, 0, 0, -1, -2, 5]), regulator, seed)
    assert found.value == pytest.approx(5 / 8) and 0 <= found.lower < 5 / 8 < found.upper <= 1


def test_all_better_is_no_certainty():
    found = improvement_interval(np.ones(30), np.arange(30), np.zeros(30))
    assert (found.value, found.upper) == (1.0, 1.0) and found.lower == pytest.approx(beta.ppf(0.025, 30.5, 0.5))


@pytest.mark.parametrize("seeds", [3, 10])
def test_seeds_that_agree_by_chance_are_known_for_it(seeds):
    rng, runs = np.random.default_rng(seeds), 200
    seed, regulator = np.repeat(np.arange(seeds), 20), np.tile(np.arange(20), seeds)
    truth, covered, agreed = norm.cdf(0.7), 0, 0
    for _ in range(runs):
        gain = (
            0.7 + rng.normal(size=seeds)[seed] + 0.1 * rng.normal(size=len(seed))
        )  # a seed turns all regulators alike
        found = improvement_interval(gain, regulator, seed)
        assert found.lower <= found.value <= found.upper
        covered += found.lower <= truth <= found.upper
        agreed += found.value == 1
    assert 0.91 <= covered / runs <= 0.99
    assert seeds > 3 or agreed > runs / 4  # a third of the experiments: no share alone could tell


def test_independent_pairs_have_jeffreys_interval():
    gain = np.where(np.arange(400) < 260, 1.0, -1.0)
    found = improvement_interval(gain, np.arange(400), np.zeros(400))
    assert (found.lower, found.upper) == pytest.approx(beta.interval(0.95, 260.5, 140.5), abs=1e-3)


def test_one_regulator_has_no_interval():
    for interval in (interquartile_interval, improvement_interval):
        found = interval(np.array([0.1, 0.3]), np.zeros(2), np.arange(2))
        assert np.isfinite(found.value) and np.isnan([found.lower, found.upper]).all()


def test_blocks_make_no_difference(monkeypatch):
    sample = pairs(np.random.default_rng(0))
    whole = interquartile_interval(*sample, 200)
    monkeypatch.setattr(robust, "BLOCK", 1000)
    assert interquartile_interval(*sample, 200) == whole
