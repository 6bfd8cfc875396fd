"""The energy: its score is that of the density, it is repeatable, and it adds nothing where a Gaussian is all."""

import dataclasses

import numpy as np
import pytest
import torch

from mantra_ray.cascade.energy import Energy, fit_energy
from mantra_ray.config import ManifoldConfig

CONFIG = ManifoldConfig(space="genes", components=5, hidden=64, updates=300, noise=0.3)


def learn(cells, config=CONFIG, state=None, states=1, seed=0):
    state = np.zeros(len(cells), np.int64) if state is None else state
    return fit_energy(cells.astype(np.float32), state, states, np.arange(cells.shape[1]), config, seed)


def scores(energy, x):
    """The energy's score at x [n, G], per standard deviation."""
    y = torch.tensor((x - energy.mean.numpy()) / energy.deviation.numpy(), dtype=torch.float32)
    return -energy.gradient(y)[1].numpy(), y.numpy()


def blurred(y, means, covariance, noise):
    """Score at y of an even mixture of Gaussians with one covariance, blurred by noise."""
    precision = np.linalg.inv(covariance + noise**2 * np.eye(y.shape[1]))
    away = y[:, None] - means
    weight = np.exp(-np.einsum("nci,ij,ncj->nc", away, precision, away) / 2)
    weight /= weight.sum(1, keepdims=True)
    return -np.einsum("nc,nci,ij->nj", weight, away, precision)


def cosine(a, b):
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


@pytest.mark.parametrize("dimensions", [2, 5])
def test_learns_the_score_of_a_gaussian(dimensions):
    rng = np.random.default_rng(dimensions)
    mixing = rng.normal(size=(dimensions, dimensions))
    energy, _ = learn(3 + rng.normal(size=(2000, dimensions)) @ mixing)
    found, y = scores(energy, 3 + rng.normal(size=(500, dimensions)) @ mixing)
    unit = mixing / energy.deviation.numpy()
    assert cosine(found, blurred(y, np.zeros((1, dimensions)), unit.T @ unit, 0.3)) > 0.98


@pytest.mark.parametrize("dimensions", [2, 5])
def test_learns_the_score_of_two_modes_that_no_label_tells_apart(dimensions):
    rng = np.random.default_rng(dimensions)
    modes = np.stack([np.ones(dimensions), -np.ones(dimensions)]) * 2 / np.sqrt(dimensions)

    def draw(count):
        return modes[rng.integers(2, size=count)] + 0.5 * rng.normal(size=(count, dimensions))

    energy, errors = learn(draw(4000), dataclasses.replace(CONFIG, updates=1000))
    found, y = scores(energy, draw(1000))
    deviation, mean = energy.deviation.numpy(), energy.mean.numpy()
    wanted = blurred(y, (modes - mean) / deviation, np.diag((0.5 / deviation) ** 2), 0.3)
    assert cosine(found, wanted) > 0.95
    assert errors["energy_error"] < 0.98 * errors["gaussian_error"]
    alone, _ = learn(draw(4000), dataclasses.replace(CONFIG, updates=0))
    assert cosine(scores(alone, y * deviation + mean)[0], wanted) < cosine(found, wanted) - 0.05


def test_known_states_need_no_network():
    rng = np.random.default_rng(0)
    state = rng.integers(2, size=2000)
    cells = np.array([[3.0, 0, 0], [-3.0, 1, 0]])[state] + 0.4 * rng.normal(size=(2000, 3))
    energy, errors = learn(cells, dataclasses.replace(CONFIG, updates=0), state, 2)
    found, y = scores(energy, cells)
    deviation = energy.deviation.numpy()
    means = (np.array([[3.0, 0, 0], [-3.0, 1, 0]]) - energy.mean.numpy()) / deviation
    assert cosine(found, blurred(y, means, np.diag((0.4 / deviation) ** 2), 0.3)) > 0.95
    assert errors["energy_error"] == errors["gaussian_error"]


def test_a_network_that_denoises_no_better_is_not_kept():
    rng = np.random.default_rng(0)
    _, errors = learn(rng.normal(size=(30, 8)), dataclasses.replace(CONFIG, components=8))
    assert errors["energy_error"] <= errors["gaussian_error"]
    few, _ = learn(rng.normal(size=(2, 8)), dataclasses.replace(CONFIG, components=8, updates=2))
    assert all(torch.isfinite(tensor).all() for tensor in few.state_dict().values())


def test_off_the_axes_the_energy_is_that_of_what_the_axes_leave():
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(500, 2)) @ rng.normal(size=(2, 6)) + 0.1 * rng.normal(size=(500, 6))
    energy, _ = learn(cells, ManifoldConfig(components=2, updates=0, noise=0.3))
    off = torch.eye(6) - energy.axes @ energy.axes.T
    direction = off[0] / off[0].norm()
    level, moved = energy(torch.zeros(1, 6)), energy(3 * direction[None])
    assert float(moved - level) == pytest.approx(9 / (2 * (float(energy.rest) + 0.09)), rel=1e-3)


def test_relative_energy_is_zero_for_no_change_and_grows_away_from_the_cells():
    rng = np.random.default_rng(0)
    state = rng.integers(2, size=400)
    cells = 4.0 * state[:, None] + rng.normal(size=(400, 6))
    columns = np.array([1, 2, 4, 5, 7, 8])
    energy, _ = fit_energy(cells.astype(np.float32), state, 3, columns, ManifoldConfig(components=4, updates=50), 0)
    change = torch.zeros(3, 10)
    assert energy.relative(change, torch.arange(3)).tolist() == [0, 0, 0]
    change[:, columns] = 5.0
    far = energy.relative(change, torch.arange(3))
    assert far[1] > far[0] > -1 and far[1] > 1  # 5 up from the low state comes near the high one
    change[:, columns], change[:, [0, 3, 6, 9]] = 0.0, 100.0  # genes that no control measured
    assert energy.relative(change, torch.arange(3)).tolist() == [0, 0, 0]


def test_the_same_again_and_through_arrays():
    cells = np.random.default_rng(0).gamma(1.0, size=(200, 6))
    config = dataclasses.replace(CONFIG, updates=60)
    (one, first), (again, second), (other, _) = (learn(cells, config, seed=seed) for seed in (0, 0, 1))
    y = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one(y), again(y)) and first == second
    assert not torch.equal(one(y), other(y))
    loaded = Energy.from_arrays(one.arrays() | {"seconds": np.array(1.0)})
    assert torch.equal(loaded(y), one(y)) and not any(p.requires_grad for p in loaded.parameters())
    state = torch.get_rng_state()
    learn(cells, config), Energy.from_arrays(one.arrays())
    assert torch.equal(state, torch.get_rng_state())


def test_the_space_is_of_variable_genes_or_of_components():
    cells = np.random.default_rng(0).normal(size=(100, 8)) * np.arange(1, 9)
    genes, _ = learn(cells, dataclasses.replace(CONFIG, components=3, updates=0))
    assert genes.columns.tolist() == [5, 6, 7] and genes.axes.shape == (3, 3)
    components, _ = learn(cells, dataclasses.replace(CONFIG, space="pca", components=3, updates=0))
    assert components.columns.tolist() == list(range(8)) and components.axes.shape == (8, 3)
