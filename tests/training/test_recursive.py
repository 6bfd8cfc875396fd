"""Recursive correction: what enters the networks, what it leaves alone, and which network a row passes."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from mantra_ray.config import NexusConfig
from mantra_ray.errors import InputError
from mantra_ray.fields import replace
from mantra_ray.forward import Fold, predict
from mantra_ray.training import recursive, stages
from mantra_ray.training.distributed import save_unit, train_unit
from mantra_ray.training.networks import load_networks
from mantra_ray.training.nexus import train_nexus
from mantra_ray.training.recursive import RecursiveCascade, facts, train_recursive
from mantra_ray.training.state import TIMED

SMALL = NexusConfig(
    buckets=16, slots=8, epochs=2, d_model=16, layers=1, heads=2, top_programs=3, learning_rate=2e-2, dropout=0.1
)


def prepare(screen, experiment, folder, monkeypatch):
    def run(records, units, *_):
        for unit in units:
            save_unit(unit, train_unit(records, unit))

    monkeypatch.setattr(stages, "run_units", run)
    (path,) = stages.make_folds(screen, [experiment], folder, workers=1, gpus=0).values()
    fold = Fold.load(path)
    return fold, load_networks(path.with_name(fold.meta["networks"]))


@pytest.fixture(scope="module")
def shelf() -> dict:
    """Holds what all tests share."""
    return {}


@pytest.fixture
def made(screen, experiment, tmp_path, monkeypatch, shelf):
    """A fold with a manifold, its networks, and a memory trained to add."""
    if not shelf:
        experiment = replace(experiment, **{"manifold.smooth": True, "grn.epochs": 10})
        fold, networks = prepare(screen, experiment, tmp_path, monkeypatch)
        shelf["made"] = fold, networks, train_nexus(fold, SMALL, 0)
    fold, networks, start = shelf["made"]
    models = copy.deepcopy(networks.models)
    return fold, dataclasses.replace(networks, models=models), copy.deepcopy(start)


@pytest.fixture
def last_epoch(monkeypatch):
    monkeypatch.setattr(recursive, "chosen_epoch", lambda errors: len(errors) - 1)


def weights(trained) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in trained.cascade.named_parameters()}


def test_it_starts_at_the_additive_correction_but_for_the_perturbed_genes_way_into_all_others(made, monkeypatch):
    fold, networks, start = made
    monkeypatch.setattr(recursive, "chosen_epoch", lambda errors: 0)
    added = start.predict(fold).program - fold.base_program
    assert np.abs(added).max() > 0.1
    near = train_recursive(fold, networks, start, 0).predict(fold).program - fold.base_program
    assert np.corrcoef(near.ravel(), added.ravel())[0, 1] > 0.8
    for model in networks.models:
        model.common_genes.data.zero_()
    same = train_recursive(fold, networks, start, 0).predict(fold).program - fold.base_program
    np.testing.assert_allclose(same, added, atol=0.05 * np.abs(added).max())


def test_without_a_read_the_base_stays_bit_for_bit(made, last_epoch):
    fold, networks, start = made
    trained = train_recursive(fold, networks, start, 0)
    off = trained.predict(fold, trained.model.empty_memory())
    base = predict(fold, np.arange(len(fold.regulator)))
    for name in ("expression", "program", "trait"):
        np.testing.assert_array_equal(getattr(off, name), getattr(base, name))
    unread = ~trained.corrections().any(1)
    trained.memories[0].record[fold.regulator[0] % 16] = -1  # one bucket is emptied: its records alone read nothing
    partly = trained.predict(fold)
    emptied = np.isin(fold.regulator % 16, fold.regulator[0] % 16) | unread
    np.testing.assert_array_equal(partly.expression[emptied], fold.base_expression[emptied])
    assert (np.abs(partly.expression - fold.base_expression).max(1) > 0)[~emptied].all()


def plain(fold, networks, trained, row: int, numbers) -> np.ndarray:
    """The change of one row by the formula: mean over networks of GNN(x, shifts) - GNN(x), smoothed."""
    recursion, scale = trained.cascade.recursion, trained.inputs.scale
    record = trained.inputs.records.take(torch.tensor([row]))
    found = trained.model(trained.memories, record)
    recalled = found.value[0] * scale
    lift = torch.tensor(np.linalg.pinv(fold.loadings))
    gate = 2 * torch.sigmoid(recursion.gate(facts(record, found)))[0]
    header = torch.tensor(fold.regulator[[row]]), record.dose, record.state
    parts = []
    for number in numbers:
        model, unit = networks.models[number], networks.scales[number]
        readout = model.readout + model.gene_readout
        power = readout.square().sum(1)
        shifts = torch.zeros(len(model.message), len(model.features), 1, model.hidden)
        for layer in range(len(shifts)):
            everywhere = found.value[0] @ recursion.everywhere[number, layer]
            shifts[layer] += gate[layer] * everywhere
            for gene in range(model.genes):
                along = recursion.along[layer] * readout[gene] / (power[gene] + recursive.FLOOR * power.mean())
                own = (recalled @ lift[:, gene]) / unit * (along + recursion.free[number, layer])
                shifts[layer, gene, 0] += gate[layer] * own
        parts.append((model(*header, lambda layer, shifts=shifts: shifts[layer]) - model(*header)) * unit)
    return networks.smooth(torch.stack(parts).mean(0).detach().numpy())[0]


def test_changes_are_those_of_the_formula_by_the_network_that_did_not_train_on_the_row(made, last_epoch):
    fold, networks, start = made
    trained = train_recursive(fold, networks, start, 0)
    torch.manual_seed(0)
    for parameter in trained.cascade.recursion.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    changes = trained.changes(fold)
    for row in (*fold.train[:4], *fold.test[:2], fold.validation[0]):
        own = fold.cross_fit[row]
        with torch.no_grad():
            expected = plain(fold, networks, trained, row, range(3) if own < 0 else [own])
        np.testing.assert_allclose(changes[row], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
        if own >= 0:
            with torch.no_grad():
                other = plain(fold, networks, trained, row, [(own + 1) % 3])
            assert np.abs(other - expected).max() > 1e-2 * np.abs(expected).max()
    prediction = trained.predict(fold)
    np.testing.assert_allclose(prediction.expression, fold.base_expression + changes, atol=1e-5)
    np.testing.assert_allclose(prediction.program - fold.base_program, changes @ fold.loadings, atol=1e-4)


def test_every_round_and_part_is_trained_and_inputs_are_left_alone(made, last_epoch):
    fold, networks, start = made
    before = [{n: p.clone() for n, p in model.state_dict().items()} for model in (*networks.models, start.model)]
    trained = train_recursive(fold, networks, start, 0)
    after = weights(trained)
    assert (after["recursion.free"].abs().amax(-1) > 0).all() and (after["recursion.everywhere"] != 0).any((2, 3)).all()
    assert (after["recursion.gate.weight"] != 0).any(1).all() and (after["recursion.along"] != torch.eye(2)[1]).all()
    for model, old in zip((*networks.models, start.model), before, strict=True):
        assert all(torch.equal(tensor, old[name]) for name, tensor in model.state_dict().items())
    first = dict(start.model.named_parameters())
    moved = {n for n, p in trained.model.named_parameters() if not torch.equal(p, first[n])}
    assert moved and not any(name.startswith("transformer") for name in moved)
    frozen = [p for model in networks.models for p in model.parameters()]
    kept = [p for model in trained.networks.models for p in model.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(frozen, kept, strict=True))
    tuned = train_recursive(fold, networks, start, 0, network_rate=1e-3)
    changed = [p for model in tuned.networks.models for p in model.parameters()]
    assert any(not torch.equal(one, other) for one, other in zip(frozen, changed, strict=True))


def test_gradients_of_a_row_reach_its_own_folds_network_alone(made):
    fold, networks, start = made
    cascade = RecursiveCascade(fold, networks, start.model, start.inputs.scale)
    rows = torch.tensor(fold.train[fold.cross_fit[fold.train] == 1])
    records = start.inputs.records.take(rows)
    cascade.loss(records, start.model(start.memories, records), torch.ones(len(rows), dtype=torch.int64)).backward()
    assert [any(p.grad is not None and p.grad.any() for p in m.parameters()) for m in networks.models] == [0, 1, 0]
    assert cascade.recursion.free.grad[1].any() and not cascade.recursion.free.grad[[0, 2]].any()


def test_training_lowers_the_loss_on_what_it_was_shown(made, last_epoch, monkeypatch):
    fold, networks, start = made
    still = dataclasses.replace(SMALL, hide_state=0.0, hide_regulator=0.0, epochs=15)
    start.model.config = still
    monkeypatch.setattr(recursive, "RATE", 1e-2)
    trained = train_recursive(fold, networks, start, 0)
    losses = [row["value"] for row in trained.curves[len(start.curves) :] if row["metric"] == "loss"]
    assert losses[-1] < 0.95 * losses[0]


def test_the_same_from_the_same_seed_and_curves_go_on(made, last_epoch):
    fold, networks, start = made
    told = []
    first = train_recursive(fold, networks, start, 3, on_epoch=lambda epoch, metrics: told.append((epoch, metrics)))
    again, other = (train_recursive(fold, networks, start, seed) for seed in (3, 4))
    mine, same, different = weights(first), weights(again), weights(other)
    assert all(torch.equal(mine[name], same[name]) for name in mine) and first.curves == again.curves
    assert not all(torch.equal(mine[name], different[name]) for name in mine)
    assert [epoch for epoch, _ in told] == [3, 4, 5]  # epochs 0 to 2 were those of the start
    assert first.curves[: len(start.curves)] == start.curves
    rows = [(e, m, v) for e, metrics in told for m, v in metrics.items() if m not in TIMED]
    assert first.curves[len(start.curves) :] == [{"epoch": e, "metric": m, "value": v} for e, m, v in rows]
    shared = {"validation_gain", "write_density", "occupancy", "evictions", "gate_mean", "read_entropy"} | set(TIMED)
    assert all(shared <= metrics.keys() for _, metrics in told)


def test_gene_values_and_several_manifolds_work(screen, experiment, tmp_path, monkeypatch):
    fold, networks = prepare(screen, experiment, tmp_path, monkeypatch)
    for change in (dict(correct="genes"), dict(routing="hash", hash_heads=2)):
        start = train_nexus(fold, dataclasses.replace(SMALL, **change), 0)
        trained = train_recursive(fold, networks, start, 0)
        change, added = trained.changes(fold), start.predict(fold).expression - fold.base_expression
        assert np.corrcoef(change.ravel(), added.ravel())[0, 1] > 0.9


def test_a_memory_that_admits_nothing_trains_and_leaves_the_base(made, last_epoch):
    fold, networks, _ = made
    start = train_nexus(fold, dataclasses.replace(SMALL, regret_gamma=float("inf"), priming=0), 0)
    found = train_recursive(fold, networks, start, 0).predict(fold)
    np.testing.assert_array_equal(found.expression, fold.base_expression)


def test_programs_alone_have_no_networks(made):
    fold, networks, start = made
    with pytest.raises(InputError, match="no changes of expression"):
        train_recursive(dataclasses.replace(fold, loadings=None), networks, start, 0)
