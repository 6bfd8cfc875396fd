"""Variance components, and the power that they promise against the power that simulated experiments have."""

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.evaluation.power import Components, Design, components, detectable, seeds_needed, variance
from mantra_ray.evaluation.statistics import nested_p_value

PARTS = Components(1.0, 0.1, 0.25, 4.0)


def experiment(rng, parts, seeds, regulators=60, tested=1.0, records=2):
    """Results, regulator and seed of the records of one simulated experiment of mean 0."""
    held = [rng.permutation(regulators)[: int(tested * regulators)] for _ in range(seeds)]
    regulator, seed = np.repeat(np.concatenate(held), records), np.repeat(np.arange(seeds), len(held[0]) * records)
    scale = np.sqrt(astuple(parts))
    effect = scale[0] * rng.normal(size=regulators)[regulator] + scale[1] * rng.normal(size=seeds)[seed]
    effect += scale[2] * rng.normal(size=(seeds, regulators))[seed, regulator]
    return effect + scale[3] * rng.normal(size=len(seed)), regulator, seed


@pytest.mark.parametrize("seeds, tested", [(3, 1.0), (5, 0.5), (4, 0.3)])
def test_components_and_variance_of_the_mean_are_recovered(seeds, tested):
    rng, found, means = np.random.default_rng(seeds), [], []
    for _ in range(400):
        result, regulator, seed = experiment(rng, PARTS, seeds, tested=tested)
        found.append(astuple(components(result, regulator, seed)))
        means.append(result.mean())
    error = np.std(found, axis=0) / np.sqrt(400)
    assert (np.abs(np.mean(found, axis=0) - astuple(PARTS)) <= 4 * error + 0.1).all()  # parts are clipped at 0
    expected = sum(variance(PARTS, Design.of(regulator, seed), seeds))
    assert np.var(means) == pytest.approx(expected, rel=0.3)


def test_one_seed_counts_what_a_regulators_records_share_as_the_regulators():
    rng = np.random.default_rng(0)
    found = np.mean([astuple(components(*experiment(rng, PARTS, 1))) for _ in range(200)], axis=0)
    assert found == pytest.approx([1.25, 0.0, 0.0, 4.0], abs=0.1)


@pytest.mark.parametrize(
    "parts, seeds, tested",
    [
        (Components(1.0, 0.0, 0.0, 1.0), 1, 1.0),
        (Components(1.0, 0.01, 0.2, 2.0), 3, 1.0),
        (Components(0.1, 0.2, 0.2, 0.5), 5, 1.0),
        (Components(1.0, 0.02, 0.0, 2.0), 3, 0.3),
    ],
)
def test_a_detectable_effect_is_found_with_the_stated_power(parts, seeds, tested):
    rng = np.random.default_rng(7)
    *_, regulator, seed = experiment(rng, parts, seeds, tested=tested)
    effect = detectable(parts, Design.of(regulator, seed), seeds)
    runs, hits = 300, 0
    for run in range(runs):
        result, regulator, seed = experiment(rng, parts, seeds, tested=tested)
        hits += nested_p_value(result + effect, np.zeros(len(result)), regulator, seed, 400, run % 4) < 0.05
    assert hits / runs == pytest.approx(0.8, abs=0.08)


@given(st.tuples(*[st.floats(0, 4)] * 4), st.integers(2, 300), st.floats(0.05, 2))
@settings(max_examples=30, deadline=None)
def test_the_seeds_needed_are_the_fewest_that_find_the_effect(scales, regulators, effect):
    parts, design = Components(*scales), Design(1 / regulators, 0.5 / regulators, 0.5 / regulators, regulators)
    needed = seeds_needed(parts, design, effect)
    if needed is None:
        assert detectable(parts, design, 1000) > effect
    else:
        assert detectable(parts, design, needed) <= effect
        assert needed == 1 + (parts.seed > 0) or detectable(parts, design, needed - 1) > effect


def test_no_number_of_seeds_takes_the_regulators_part_away():
    rng = np.random.default_rng(0)
    _, regulator, seed = experiment(rng, PARTS, 3)
    design = Design.of(regulator, seed)
    floor = 2.84 * np.sqrt(1 / 60)  # Student's t of 59 degrees of freedom: 2.00 and 0.85
    assert seeds_needed(PARTS, design, 0.9 * floor) is None
    assert seeds_needed(PARTS, design, 1.2 * floor) is not None
    assert detectable(PARTS, design, 100_000) == pytest.approx(floor, rel=0.05)


def test_the_design_counts_what_two_seeds_test_both():
    regulator, seed = np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1])
    design = Design.of(regulator, seed)
    assert (design.regulator, design.shared, design.record, design.regulators) == (0.5, 0.25, 0.5, 2)
    alone = Design.of(regulator[:2], seed[:2])
    assert alone.shared == alone.regulator == 0.5


def test_one_regulator_finds_nothing():
    design = Design.of(np.zeros(4, int), np.arange(4) // 2)
    assert np.isnan(detectable(PARTS, design, 3)) and seeds_needed(PARTS, design, 1.0) is None
