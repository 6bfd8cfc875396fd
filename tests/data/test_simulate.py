"""The simulator: deterministic, mechanistic, with the stated shares, noise and structure."""

import dataclasses
import time

import numpy as np
import pytest

from mantra_ray.config import SimulationConfig
from mantra_ray.data import network as simulator
from mantra_ray.data import simulate as simulation
from mantra_ray.data.simulate import simulate
from mantra_ray.errors import InputError

SMALL = SimulationConfig(regulators=40, genes=200, programs=8, doses=(0.4, 0.9), states=2, seed=3)


def change(**fields):
    return dataclasses.replace(SMALL, **fields)


@pytest.fixture(scope="module")
def default():
    start = time.process_time()
    screen, truth = simulate(SimulationConfig())
    return screen, truth, time.process_time() - start


def own_gene(data):
    return np.array([data.gene_names.index(name) for name in data.regulator_names])[data.regulator]


def test_same_config_same_numbers_other_seed_other_numbers():
    (a, truth_a), (b, truth_b), (c, truth_c) = simulate(SMALL), simulate(SMALL), simulate(change(seed=4))
    assert np.array_equal(a.data.delta_expression, b.data.delta_expression) and np.array_equal(truth_a, truth_b)
    assert a.sha256 == b.sha256 != c.sha256 and len(a.sha256) == 64
    assert not np.array_equal(truth_a, truth_c)


def test_default_is_quick_and_of_the_stated_shape(default):
    screen, truth, seconds = default
    data = screen.data
    assert truth.shape == data.delta_expression.shape == (1800, 1000) and screen.loadings.shape == (1000, 30)
    assert seconds < 5
    rows = set(zip(data.regulator.tolist(), data.dose.tolist(), data.state.tolist(), strict=True))
    assert len(rows) == 1800
    assert abs(np.corrcoef(np.arange(1800), data.regulator)[0, 1]) < 0.1  # shuffled


def test_dose_is_the_loss_of_the_regulators_own_expression(default):
    screen, truth, _ = default
    own = truth[np.arange(len(truth)), own_gene(screen.data)]
    np.testing.assert_allclose(1 - np.exp2(own), screen.data.dose, atol=1e-4)


def test_effects_are_sparse_and_of_realistic_size(default):
    screen, truth, _ = default
    others = truth.copy()
    others[np.arange(len(truth)), own_gene(screen.data)] = 0
    size = np.abs(others)
    assert (size < 0.2).mean() > 0.9
    low, high = np.quantile(size[size > 0.2], [0.05, 0.99])
    assert low >= 0.2 and high < 2.5
    by_dose = [size[screen.data.dose == dose].mean() for dose in np.unique(screen.data.dose)]
    assert by_dose == sorted(by_dose)


def test_signal_exceeds_the_noise_that_stays_visible(default):
    screen, truth, _ = default
    signal = (truth @ screen.loadings).var(axis=0).mean()
    noise = ((screen.data.delta_expression - truth) @ screen.loadings).var(axis=0).mean()
    assert noise < signal < 10 * noise


def test_noise_has_the_stated_standard_error_and_falls_with_cells(default):
    screen, truth, _ = default
    z = (screen.data.delta_expression - truth) / screen.data.delta_expression_se
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01
    assert abs(screen.data.n_cells.mean() - 50) < 2
    few, many = (simulate(change(cells=cells))[0].data.delta_expression_se.mean() for cells in (20, 200))
    assert few / many == pytest.approx(np.sqrt(10), rel=0.05)


def test_out_degree_is_heavy_tailed_with_few_hubs(default):
    graph = default[0].graph
    out = np.bincount(graph.source)
    out = np.sort(out[out > 0])[::-1]
    assert out[0] > 8 * np.median(out) and out[:30].sum() > 0.4 * out.sum()
    assert len({*zip(graph.source.tolist(), graph.target.tolist(), strict=True)}) == len(graph.source)


def test_steady_state_solves_the_dynamic():
    rng = np.random.default_rng(0)
    network = simulator.grow(SMALL, rng)
    weights, drive = next(simulator.cell_states(SMALL, network, rng))
    dense = weights.toarray()
    assert np.abs(dense).sum(0).max() <= simulator.MAX_INPUT + 1e-9
    x = simulator.settle(weights, drive, network.genes, np.array([5, -1]), np.array([-3.0, 0.0]))
    activity = 1 / (1 + 2 ** (-simulator.HILL * x[:, network.genes]))
    expected = drive + activity @ dense
    expected[0, network.genes[5]] = -3.0
    np.testing.assert_allclose(x, expected, atol=1e-5)


def test_blocks_change_nothing(monkeypatch):
    config = change(class_share=0.5)
    whole, truth = simulate(config)
    for module in (simulator, simulation):
        monkeypatch.setattr(module, "BLOCK", 7 * SMALL.genes)
    monkeypatch.setattr(simulator, "COLUMNS", 3)
    parts, truth_parts = simulate(config)
    assert np.array_equal(whole.data.delta_expression_se.shape, (160, 200))
    np.testing.assert_allclose(truth_parts, truth, atol=1e-6)
    np.testing.assert_allclose(parts.data.delta_expression, whole.data.delta_expression, atol=1e-6)
    np.testing.assert_allclose(parts.data.delta_trait, whole.data.delta_trait, atol=1e-6)
    for end in ("source", "target", "weight"):
        np.testing.assert_array_equal(getattr(parts.graph, end), getattr(whole.graph, end))


def test_more_regulators_than_genes_are_perturbed_unmeasured():
    screen, truth = simulate(change(regulators=260))
    data = screen.data
    assert truth.shape == data.delta_expression.shape == (260 * 4, 200) and screen.loadings.shape == (200, 8)
    assert len(set(data.gene_names)) == 200 and set(data.gene_names) < set(data.regulator_names)
    assert len(screen.graph.nodes) == 260 and screen.graph.target.max() >= 200
    np.testing.assert_allclose(np.linalg.norm(screen.loadings, axis=0), 1, rtol=1e-5)
    assert np.bincount(screen.loadings.argmax(1), minlength=8).min() >= 20  # modules are measured alike
    column = {name: i for i, name in enumerate(data.gene_names)}
    own = np.array([column.get(name, -1) for name in data.regulator_names])[data.regulator]
    seen = np.flatnonzero(own >= 0)
    np.testing.assert_allclose(1 - np.exp2(truth[seen, own[seen]]), data.dose[seen], atol=1e-4)
    hidden = np.abs(truth[own < 0]).max(1)
    assert (hidden > 0.2).mean() > 0.2  # who is not measured acts all the same


def test_idiosyncratic_share_adds_effects_that_the_prior_graph_lacks():
    effects = {}
    for share in (0.0, 0.5):
        # No missing and no false edges: the prior then holds all that is not idiosyncratic.
        screen, truth = simulate(change(idiosyncratic_share=share, missing_edges=0.0, added_edges=0.0))
        reach = np.zeros((SMALL.genes, SMALL.genes), bool)
        reach[screen.graph.source, screen.graph.target] = True
        reach |= np.eye(SMALL.genes, dtype=bool)
        for _ in range(8):
            reach = (reach.astype(int) @ reach) > 0
        outside = ~reach[own_gene(screen.data)]
        hit = [(np.abs(truth) * outside)[screen.data.regulator == r].max() > 0.2 for r in range(SMALL.regulators)]
        effects[share] = np.array(hit).mean(), np.abs(truth * outside).max()
    assert effects[0.0][1] < 1e-5  # nothing happens where the graph does not lead
    assert 0.25 <= effects[0.5][0] <= 0.5


def test_idiosyncratic_share_changes_nothing_else():
    (none, truth_none), (some, truth_some) = (
        simulate(change(idiosyncratic_share=share, added_edges=0.0)) for share in (0.0, 0.2)
    )
    assert np.array_equal(none.loadings, some.loadings) and np.array_equal(none.data.n_cells, some.data.n_cells)
    assert np.array_equal(none.graph.source, some.graph.source) and np.array_equal(none.graph.target, some.graph.target)
    assert all(np.array_equal(none.traits[name].b, some.traits[name].b) for name in none.traits)
    same = np.abs(truth_none - truth_some).max(axis=1) < 0.05
    assert 0.2 < same.mean() < 0.9  # most other regulators keep their effects


def test_prior_lacks_and_adds_edges_at_the_stated_rates():
    def pairs(**fields):
        graph = simulate(change(**fields))[0].graph
        ends = zip(graph.source, graph.target, graph.weight, strict=True)
        return {(int(s), int(t)): float(w) for s, t, w in ends}

    true = pairs(missing_edges=0.0, added_edges=0.0)
    assert set(true.values()) == {1.0, -1.0}
    fewer, more = pairs(missing_edges=0.3, added_edges=0.0), pairs(missing_edges=0.0, added_edges=0.5)
    assert fewer.items() <= true.items() and len(fewer) == len(true) - round(0.3 * len(true))
    assert true.items() <= more.items() and len(more) == len(true) + round(0.5 * len(true))
    assert not pairs(missing_edges=1.0, added_edges=0.0)


def test_programs_are_modules_of_coregulated_genes(default):
    screen, truth, _ = default
    loadings = screen.loadings
    assert (loadings >= 0).all() and np.linalg.matrix_rank(loadings) == 30
    np.testing.assert_allclose(np.linalg.norm(loadings, axis=0), 1, rtol=1e-5)
    assert (loadings > 0).mean() < 0.1
    module = loadings.argmax(axis=1)
    strong = truth[screen.data.dose > 0.9]
    r = np.corrcoef(strong.T)
    same = module[:, None] == module[None, :]
    np.fill_diagonal(same, False)
    assert r[same].mean() > 5 * abs(r[~same].mean())
    home = screen.regulator_class[screen.data.regulator]
    hit = np.abs(truth @ loadings)
    assert hit[np.arange(len(home)), home].mean() > 2 * hit.mean()


def test_traits_follow_the_planted_weights(default):
    screen, truth, _ = default
    programs = truth @ screen.loadings
    for t, table in enumerate(screen.traits.values()):
        theta = np.linalg.lstsq(screen.loadings, table.b, rcond=None)[0]
        assert np.corrcoef(programs @ theta, screen.data.delta_trait[:, t])[0, 1] > 0.7
    assert tuple(screen.traits) == screen.data.trait_names


@pytest.mark.parametrize(
    "bad",
    [
        {"regulators": 0},
        {"states": 0},
        {"programs": 0},
        {"programs": 101},
        {"doses": ()},
        {"doses": (0.0,)},
        {"doses": (0.5, 0.5)},
        {"doses": (float("nan"),)},
        {"idiosyncratic_share": 1.1},
        {"missing_edges": -0.1},
        {"added_edges": -1.0},
        {"cells": 0},
        {"seed": -1},
    ],
)
def test_senseless_settings_are_refused(bad):
    (field,) = bad
    with pytest.raises(InputError, match=f"simulation: {field}: "):
        simulate(change(**bad))


@pytest.mark.parametrize(
    "edge", [{"programs": 1}, {"doses": (1.0,)}, {"regulators": 200}, {"idiosyncratic_share": 1.0}]
)
def test_extreme_settings_work(edge):
    screen, truth = simulate(change(**edge))
    assert np.isfinite(truth).all() and len(screen.data) == len(truth)
