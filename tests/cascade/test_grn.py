import copy
import dataclasses
import warnings

import numpy as np
import pytest
import torch

from mantra_ray.cascade import rounds
from mantra_ray.cascade.graph_inputs import kinship
from mantra_ray.cascade.grn import Grn, fit_grn, grn_inputs, predict_grn
from mantra_ray.cascade.rounds import SignedEdges
from mantra_ray.config import GrnConfig

GENES, REGULATORS = 30, 10
CONFIG = GrnConfig(hidden=8, epochs=2, batch=16, learning_rate=2e-2)
LONG = dataclasses.replace(CONFIG, epochs=25)


@pytest.fixture(scope="module")
def screen():
    """Changes that follow the signed graph one step down from the regulator."""
    rng = np.random.default_rng(0)
    source, target = rng.integers(0, REGULATORS, 60), rng.integers(0, GENES, 60)
    weight = rng.choice([-1.0, 1.0], 60).astype(np.float32)
    regulator = np.repeat(np.arange(REGULATORS), 6)
    dose, state = np.tile([0.3, 0.6, 0.9], 20).astype(np.float32), np.tile([0, 0, 0, 1, 1, 1], 10)
    effect = np.zeros((REGULATORS, GENES), np.float32)
    for i, j, w in zip(source, target, weight, strict=True):
        effect[i, j] -= w * (i != j)
    changes = effect[regulator] * dose[:, None]
    changes[np.arange(60), regulator] = np.log2(1 - dose)
    return (source, target, weight), regulator, dose, state, changes


def fit(screen, rows, changes=None, config=CONFIG, seed=0):
    graph, regulator, dose, state, observed = screen
    changes = (observed if changes is None else changes)[rows]
    inputs = grn_inputs(*graph, np.arange(REGULATORS), changes, 2)
    model = fit_grn(inputs, regulator[rows], dose[rows], state[rows], changes, config, seed)
    return model, inputs, predict_grn(model, inputs, regulator, dose, state, batch=17)


def test_generalises_to_an_unseen_regulator_and_fits_what_it_saw(screen):
    _, regulator, _, _, changes = screen
    unseen = np.isin(regulator, [8, 9])
    predicted = fit(screen, np.flatnonzero(~unseen), config=LONG)[2]
    error = np.square(predicted - changes)
    assert error[unseen].mean() < 0.6 * np.square(changes[unseen]).mean()
    assert error[~unseen].mean() < 0.3 * np.square(changes[~unseen]).mean()


def test_an_unseen_regulator_takes_after_its_relatives_and_nothing_else(screen, monkeypatch):
    _, regulator, _, _, changes = screen
    rows = np.flatnonzero(regulator < 8)
    model, inputs, predicted = fit(screen, rows)
    share = kinship(inputs, np.arange(REGULATORS) < 8, None)
    np.testing.assert_allclose(model.own[8:].detach(), share @ model.own[:8].detach().numpy(), rtol=1e-5)
    assert model.own[8:].any()
    wild = changes.copy()
    wild[regulator >= 8] = 1e3
    np.testing.assert_array_equal(fit(screen, rows, wild)[2], predicted)
    made = Grn.__init__

    def start_anywhere(self, *args):
        made(self, *args)
        torch.nn.init.constant_(self.own[8:], 7.0)

    monkeypatch.setattr(Grn, "__init__", start_anywhere)
    np.testing.assert_array_equal(fit(screen, rows)[2], predicted)


def test_a_regulator_without_relatives_takes_after_its_class_and_without_one_after_all(screen):
    (source, target, weight), regulator, dose, state, changes = screen
    nodes = np.array([*range(REGULATORS - 2), GENES, GENES + 1])  # the last two are in no edge
    kept = source < REGULATORS - 2
    rows = np.flatnonzero(regulator < 8)
    inputs = grn_inputs(source[kept], target[kept], weight[kept], nodes, changes[rows], 2)
    classes = np.array([0, 0, 1, 1, 1, -1, -1, -1, 1, 2])

    def own(observed):
        who = (array[rows] for array in (regulator, dose, state))
        model = fit_grn(inputs, *who, observed[rows], CONFIG, 0, regulator_class=classes)
        return model.own.detach().numpy()

    first = own(changes)
    np.testing.assert_allclose(first[8], first[2:5].mean(0), rtol=1e-5)
    np.testing.assert_allclose(first[9], first[:8].mean(0), rtol=1e-5)
    other = changes.copy()
    other[regulator == 3] *= -1  # a class-mate
    assert np.abs(own(other)[8] - first[8]).max() > 1e-3


def test_relatives_are_weighed_by_the_nodes_that_both_touch():
    source, target = np.array([0, 0, 1, 1, 2, 2]), np.array([3, 4, 3, 4, 4, 5])
    inputs = grn_inputs(source, target, np.ones(6, np.float32), np.arange(3), np.zeros((2, 6), np.float32), 1)
    share = kinship(inputs, np.array([False, True, True]), None).toarray()
    np.testing.assert_allclose(share, [[2 / 3, 1 / 3]])
    direct = grn_inputs(np.array([0]), np.array([1]), np.ones(1, np.float32), np.arange(3), np.zeros((2, 6)), 1)
    np.testing.assert_allclose(kinship(direct, np.array([False, True, True]), None).toarray(), [[1, 0]])


def test_same_bits_for_the_same_seed_and_whatever_the_global_generator(screen):
    rows = np.arange(40)
    first = fit(screen, rows)[2]
    state = torch.random.get_rng_state()
    torch.manual_seed(99)
    np.testing.assert_array_equal(fit(screen, rows)[2], first)
    assert np.abs(fit(screen, rows, seed=1)[2] - first).max() > 1e-4
    torch.random.set_rng_state(state)


def dense_forward(model, inputs, regulator, dose, state, shift=None):
    """The network as a plain loop over records, with dense matrices in float64; `shift` [rounds, V, B, H]."""
    nodes = len(inputs.features)
    weight = inputs.weight.astype(float)
    down, up = np.zeros((nodes, nodes)), np.zeros((nodes, nodes))
    incoming, outgoing = np.zeros(nodes), np.zeros(nodes)
    for i, j, w in zip(inputs.source, inputs.target, weight, strict=True):
        outgoing[i] += abs(w)
        incoming[j] += abs(w)
    for i, j, w in zip(inputs.source, inputs.target, weight, strict=True):
        down[j, i] += w / np.sqrt(max(incoming[j], 1))
        up[i, j] += w / np.sqrt(max(outgoing[i], 1))
    down, up = torch.from_numpy(down), torch.from_numpy(up)
    out = []
    for b, (r, d, s) in enumerate(zip(regulator, dose, state, strict=True)):
        d = torch.tensor(float(d), dtype=torch.float64)
        condition = torch.stack([d, torch.log2((1 - d).clamp_min(1 / 32)) / 4, *torch.eye(2, dtype=torch.float64)[s]])
        node = model.node[r]
        hidden = torch.tanh(model.embed(model.features))
        change = torch.zeros_like(hidden)
        change[node] = d * (model.perturbation + model.own[r])
        for layer, (message, film) in enumerate(zip(model.message, model.film, strict=True)):
            gain, offset = (1 + film(condition)[: model.hidden]), film(condition)[model.hidden :]
            entering = 0 if shift is None else shift[layer][:, b]
            sent = message(hidden + change if layer == 0 else hidden)
            half = model.hidden // 2
            received = torch.cat([down @ sent[:, :half], up @ sent[:, half:]], 1)
            kept = model.stay(hidden + change) * gain if layer == 0 else hidden
            hidden = torch.nn.functional.leaky_relu(kept + gain * received + offset, 0.1) + entering
        common = model.common_genes @ model.common(torch.cat([hidden[node], condition]))
        result = (hidden[:GENES] * (model.readout + model.gene_readout)).sum(1) + common
        if node < GENES:
            result[node] += 4 * condition[1] * model.unit * (1 + model.itself(condition))[0]
        out.append(result)
    return torch.stack(out)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_changes_and_gradients_equal_those_of_a_dense_loop(screen, layers):
    graph, _, _, _, changes = screen
    regulator, state = np.array([0, 3, 9, 10, 3]), np.array([0, 1, 1, 0, 1])
    dose = np.array([0.2, 1.0, 0.7, 0.2, 1.0], np.float32)
    nodes = np.array([*range(REGULATORS), GENES])  # the last regulator is no gene and has no edges
    inputs = grn_inputs(*graph, nodes, changes, 2)
    torch.manual_seed(0)
    model = Grn(inputs, dataclasses.replace(CONFIG, layers=layers))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    exact = copy.deepcopy(model).double()
    expected = dense_forward(exact, inputs, regulator, dose, state)
    found = model(torch.from_numpy(regulator), torch.from_numpy(dose), torch.from_numpy(state))
    direction = torch.randn(found.shape)
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    pairs = [(found.detach(), expected.detach())]
    pairs += [(mine.grad, its.grad) for mine, its in zip(model.parameters(), exact.parameters(), strict=True)]
    for mine, its in pairs:
        np.testing.assert_allclose(mine, its, rtol=1e-3, atol=2e-5 * its.abs().max().item())
    predicted = predict_grn(model, inputs, regulator, dose, state, batch=2)
    np.testing.assert_allclose(predicted, found.detach() * inputs.scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("part", "block"), [(3, 2**22), (1, 1), (60, 2 * GENES * 8)])
def test_parts_of_a_batch_and_blocks_of_a_round_leave_the_numbers_as_they_are(screen, monkeypatch, part, block):
    graph, regulator, dose, state, changes = screen
    inputs = grn_inputs(*graph, np.arange(REGULATORS), changes, 2)
    rows = [torch.from_numpy(array) for array in (regulator, dose, state)]
    direction = torch.randn(60, GENES)
    sizes, found = [], []
    whole = Grn._changes
    monkeypatch.setattr(
        Grn, "_changes", lambda self, first, who, *rest: (sizes.append(len(who)), whole(self, first, who, *rest))[1]
    )
    for memory in (1.0, part * 4 * GENES * 8 * 4 / 2**30):
        torch.manual_seed(0)
        model = Grn(inputs, dataclasses.replace(CONFIG, layers=4, memory=memory))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        out = model(*rows)
        (out * direction).sum().backward()
        found.append([out.detach(), *(parameter.grad for parameter in model.parameters())])
        monkeypatch.setattr(rounds, "BLOCK", block)
    assert sizes[0] == 60 and set(sizes[1:]) == {part}
    for mine, its in zip(*found, strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-3, atol=1e-5 * its.abs().max().item())


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_shift_enters_every_round_and_none_changes_nothing(screen, layers):
    graph, regulator, dose, state, changes = screen
    inputs = grn_inputs(*graph, np.array([*range(REGULATORS - 1), GENES]), changes, 2)
    torch.manual_seed(0)
    model = Grn(inputs, dataclasses.replace(CONFIG, layers=layers))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    rows = [torch.from_numpy(array[5:16]) for array in (regulator, dose, state)]
    shifts = torch.randn(layers, GENES + 1, 11, 8, requires_grad=True)
    found = model(*rows, lambda layer: shifts[layer])
    exact = copy.deepcopy(model).double()
    doubled = shifts.detach().double().requires_grad_()
    expected = dense_forward(exact, inputs, *(array[5:16] for array in (regulator, dose, state)), shift=doubled)
    np.testing.assert_allclose(found.detach(), expected.detach(), rtol=1e-3, atol=1e-4)
    direction = torch.randn(found.shape)
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    np.testing.assert_allclose(shifts.grad, doubled.grad, rtol=1e-3, atol=1e-4 * doubled.grad.abs().max().item())
    assert all(gradient.any() for gradient in shifts.grad)  # no round is left out
    still = model(*rows, lambda _: torch.zeros(1, 1, 8))
    np.testing.assert_allclose(still.detach(), model(*rows).detach(), rtol=1e-4, atol=1e-4)


def test_records_of_a_batch_do_not_touch(screen):
    _, regulator, dose, state, _ = screen
    model, inputs, predicted = fit(screen, np.arange(60))
    alone = predict_grn(model, inputs, regulator[7:8], dose[7:8], state[7:8])
    np.testing.assert_allclose(alone[0], predicted[7], atol=1e-5)


def test_a_graph_without_edges_still_runs(screen):
    _, regulator, dose, state, changes = screen
    none = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    predicted = fit((none, regulator, dose, state, changes), np.arange(60))[2]
    assert np.isfinite(predicted).all()


def test_no_warning_of_torch_reaches_the_user(screen):
    graph, _, _, _, changes = screen
    inputs = grn_inputs(*graph, np.arange(REGULATORS), changes, 2)
    torch.set_warn_always(True)  # else torch gives each warning once a process, and that may be over
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            edges = SignedEdges(inputs, GENES, torch.device("cpu"))
            edges.pass_along(torch.ones(GENES, 2))
    finally:
        torch.set_warn_always(False)
