"""The projection: it goes down, no further than asked, and leaves alone what it has no say in."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.cascade.energy import fit_energy
from mantra_ray.cascade.manifold import ROWS, Descent
from mantra_ray.config import ManifoldConfig

COLUMNS, GENES = np.array([0, 1, 3, 4, 5, 6]), 8  # genes 2 and 7 are not measured in the controls


@pytest.fixture(scope="module")
def energy():
    rng = np.random.default_rng(0)
    state = rng.integers(2, size=600)
    cells = rng.gamma(1.0, size=(600, 2)) @ rng.normal(size=(2, 6)) + 0.3 * rng.normal(size=(600, 6)) + state[:, None]
    config = ManifoldConfig(components=3, hidden=32, updates=200)
    return fit_energy(cells.astype(np.float32), state, 2, COLUMNS, config, 0)[0]


def changes(seed, count=20, size=2.0):
    rng = np.random.default_rng(seed)
    return (size * rng.normal(size=(count, GENES))).astype(np.float32), rng.integers(2, size=count)


def standard(energy, change):
    return np.asarray(change, np.float64)[:, COLUMNS] / energy.deviation.numpy()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 8), st.floats(0, 2), st.floats(0.1, 30))
def test_lowers_the_energy_and_moves_no_further_than_asked(energy, seed, steps, reach, size):
    change, state = changes(seed, size=size)
    projected = Descent(energy, steps, reach)(change, state)
    before, after = (energy.relative(torch.tensor(x), torch.tensor(state)).numpy() for x in (change, projected))
    assert (after <= before + 1e-4 * (1 + np.abs(before))).all()
    moved = np.linalg.norm(standard(energy, projected) - standard(energy, change), axis=1)
    assert (moved <= reach * np.linalg.norm(standard(energy, change), axis=1) * (1 + 1e-4) + 1e-4).all()
    np.testing.assert_array_equal(projected[:, [2, 7]], change[:, [2, 7]])
    if steps and reach > 0.1 and size > 1:
        assert after.mean() < before.mean() - 1e-3


@pytest.mark.parametrize(("steps", "reach"), [(0, 1.0), (5, 0.0)])
def test_no_steps_or_no_reach_is_the_identity_bit_for_bit(energy, steps, reach):
    change, state = changes(0)
    projected = Descent(energy, steps, reach)(change, state)
    np.testing.assert_array_equal(projected, change)
    assert projected is not change and projected.dtype == np.float32


def test_no_change_stays_none_and_more_steps_go_lower(energy):
    change, state = changes(1)
    change[3] = 0
    levels = []
    for steps in (1, 3, 10):
        projected = Descent(energy, steps, 0.8)(change, state)
        assert not projected[3].any()
        levels.append(float(energy.relative(torch.tensor(projected), torch.tensor(state)).mean()))
    assert levels[0] > levels[1] > levels[2]


def test_a_records_projection_does_not_depend_on_the_others(energy):
    change, state = changes(2, count=ROWS + 5)
    whole = Descent(energy, 4, 0.5)(change, state)
    np.testing.assert_allclose(Descent(energy, 4, 0.5)(change[-1:], state[-1:]), whole[-1:], atol=1e-5)
    untouched = change.copy()
    Descent(energy, 4, 0.5)(change, state)
    np.testing.assert_array_equal(change, untouched)


def test_every_step_of_a_wild_energy_is_checked(energy):
    """Where a full step would lead uphill the step is halved until it leads down."""
    descent = Descent(energy, 6, 1.0)
    energy_noise = energy.noise.clone()
    try:
        change, state = changes(3, size=1.0)
        start = energy.controls[torch.tensor(state)] + torch.tensor(standard(energy, change), dtype=torch.float32)
        level = energy(start)

        class Steep:  # the same slope, on a step of 100 times the length
            controls, noise, gradient = energy.controls, torch.tensor(10 * float(energy_noise)), energy.gradient

        descent.energy = Steep
        moved = descent.displacement(start - energy.controls[torch.tensor(state)], torch.tensor(state))
        assert (energy(start + moved) <= level).all()
    finally:
        energy.noise.copy_(energy_noise)
