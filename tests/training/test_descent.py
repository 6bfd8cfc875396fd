"""Gradients of batches: those of the loss alone, on a GPU by replay too."""

import dataclasses
import gc
import weakref

import pytest
import torch
from torch import nn

from mantra_ray.config import LAPTOP, NexusConfig
from mantra_ray.training import descent
from mantra_ray.training.descent import Descent
from mantra_ray.training.nexus import train_nexus

SMALL = NexusConfig(**LAPTOP | {"d_model": 16}, heads=2, load=2.0, slots=4, regret_gamma=0.0, top_programs=3)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU records graphs")


def made(device="cpu", steps=100):
    """A network, a Descent of its squared error, and how often that was computed in Python."""
    torch.manual_seed(0)
    network, calls = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).to(device), []

    def losses(x, y):
        calls.append(len(x))
        error = (network(x)[:, 0] - y).square()
        return error.mean(), error.sum()

    return network, Descent(losses, list(network.parameters()), steps), calls


def batches(device="cpu"):
    """Batches of two sizes, the last one short, as an epoch has them, twice over."""
    draw = torch.Generator().manual_seed(1)
    return [tuple(torch.randn(n, *rest, generator=draw).to(device) for rest in ((3,), ())) for n in 2 * [5, 5, 5, 2]]


def true(network, x, y):
    """What should be told of a batch, and its gradients; no graph of theirs stays, which recording would trip over."""
    error = (network(x)[:, 0] - y).square()
    return error.detach().sum(), torch.autograd.grad(error.mean(), list(network.parameters()))


def check(network, descend):
    """Every batch leaves its own gradients, whatever the ones before it left."""
    parameters = list(network.parameters())
    for x, y in batches(parameters[0].device):
        told = descend(x, y).clone()
        expected, gradients = true(network, x, y)
        assert torch.allclose(told, expected, rtol=1e-5)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            assert torch.allclose(parameter.grad, gradient, atol=1e-6)
        with torch.no_grad():
            parameters[0] -= 0.1 * parameters[0].grad


def test_gradients_are_the_batchs_own():
    network, descend, calls = made()
    check(network, descend)
    assert calls == [5, 5, 5, 2] * 2  # a CPU replays nothing


def test_parameters_the_loss_does_not_touch_have_no_gradient():
    idle = nn.Parameter(torch.ones(2))
    weight = nn.Parameter(torch.ones(2))
    idle.grad = torch.ones(2)
    Descent(lambda x: ((weight * x).sum(), x.sum()), [weight, idle], 1)(torch.tensor([3.0, 4.0]))
    assert weight.grad.tolist() == [3.0, 4.0] and idle.grad is None


def test_what_a_run_recorded_goes_with_the_run(planted, monkeypatch):
    made, begin = [], Descent.__init__
    monkeypatch.setattr(Descent, "__init__", lambda self, *rest: made.append(weakref.ref(self)) or begin(self, *rest))

    def train():
        for mode in ("residual", "language"):
            train_nexus(planted(), dataclasses.replace(SMALL, mode=mode, epochs=1, language_epochs=1), 0, device=DEVICE)

    train()  # what is imported and compiled for the first time may hold frames in cycles
    made.clear()
    gc.collect()
    gc.disable()
    try:
        train()
        left = [descend() for descend in made]
    finally:
        gc.enable()
    assert left == [None] * 3


@on_gpu
def test_garbage_that_holds_a_graph_spoils_no_other():
    weight = nn.Parameter(torch.ones(2, device="cuda"))

    def littering(x):
        [[] for _ in range(10_000)]
        held = [[] for _ in range(10_000)]
        return (weight * x).sum() * len(held), x.sum()

    x = torch.ones(2, device="cuda")
    for _ in range(5):
        descend = Descent(littering, [weight], 100)
        descend.itself = descend
        for _ in range(3):
            descend(x)
        assert descend.replays and weight.grad.tolist() == [1e4, 1e4]


@on_gpu
def test_replayed_gradients_are_the_batchs_own():
    network, descend, calls = made("cuda")
    check(network, descend)
    assert calls == [5, 5, 2, 2]  # run once, recorded once, replayed ever after


@on_gpu
def test_short_runs_are_not_recorded():
    network, descend, calls = made("cuda", steps=descent.REPLAY_FROM - 1)
    check(network, descend)
    assert calls == [5, 5, 5, 2] * 2


@on_gpu
def test_what_cannot_be_recorded_runs_as_it_is():
    weight = nn.Parameter(torch.ones(2, device="cuda"))

    def waiting(x):
        loss = (weight * x).sum()
        return loss * (1 if float(x.sum()) > 0 else 2), loss

    descend = Descent(waiting, [weight], 100)
    x = torch.ones(2, device="cuda")
    descend(x)
    with pytest.warns(UserWarning, match="kernel by kernel"):
        descend(x)
    descend(2 * x)
    assert weight.grad.tolist() == [2.0, 2.0] and not descend.replays


@on_gpu
@pytest.mark.parametrize("mode", ["residual", "language"])
def test_training_is_the_same_replayed(planted, mode, monkeypatch):
    config = dataclasses.replace(SMALL, mode=mode, epochs=6, language_epochs=6, batch=16)
    found = []
    for least in (1, 10**9):
        monkeypatch.setattr(descent, "REPLAY_FROM", least)
        curves = train_nexus(planted(), config, 0, device="cuda").curves
        found.append({(row["epoch"], row["metric"]): row["value"] for row in curves})
    replayed, launched = found
    for key, value in launched.items():
        if key[1] in ("loss", "language_loss"):
            assert replayed[key] == pytest.approx(value, rel=0.02), key
