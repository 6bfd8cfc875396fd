"""Node states spread out over a batch, and shorter numbers for them."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.cascade.grn import SLOPE, Grn, fit_grn, grn_inputs, predict_grn
from mantra_ray.cascade.rounds import Spread
from mantra_ray.config import GrnConfig

CONFIG = GrnConfig(hidden=8, layers=3, epochs=10, batch=16, learning_rate=2e-2)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(0, 9), st.integers(0, 99))
def test_spreading_is_the_plain_expression(nodes, kinds, batch, count, seed):
    torch.manual_seed(seed)
    states = torch.randn(nodes, kinds, 6, requires_grad=True)
    place = torch.randperm(2 * nodes * batch)[:count]
    added = torch.randn(len(place), 3, requires_grad=True)
    condition = torch.randint(kinds, (batch,))
    plain = states[:, condition].reshape(-1, 3).index_add(0, place, added)
    plain = F.leaky_relu(plain, SLOPE).view(nodes, batch, 6)
    found = Spread.apply(states, added, place, condition, torch.float32, SLOPE)
    direction = torch.randn(plain.shape)
    pairs = [(found, plain)]
    pairs += zip(*(torch.autograd.grad(out, [states, added], direction) for out in (found, plain)), strict=True)
    for mine, its in pairs:
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-5)
    short = Spread.apply(states, added, place, condition, torch.bfloat16, SLOPE)
    torch.testing.assert_close(short.float(), plain, rtol=2**-8, atol=1e-30)  # one rounding of the sum


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    graph = rng.integers(0, 10, 60), rng.integers(0, 30, 60), rng.choice([-1.0, 1.0], 60).astype(np.float32)
    rows = np.repeat(np.arange(10), 6), np.tile([0.3, 0.6, 0.9], 20).astype(np.float32), np.tile([0, 0, 0, 1, 1, 1], 10)
    effect = np.zeros((10, 30), np.float32)
    np.add.at(effect, graph[:2], -graph[2])
    changes = effect[rows[0]] * rows[1][:, None] + 0.1 * rng.standard_normal((60, 30)).astype(np.float32)
    return grn_inputs(*graph, np.arange(10), changes, 2), rows, changes


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_short_states_leave_results_and_gradients_as_they_are_to_their_rounding(problem, layers):
    inputs, rows, _ = problem
    found = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = Grn(inputs, dataclasses.replace(CONFIG, layers=layers, precision=precision))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        out = model(*(torch.from_numpy(array) for array in rows))
        direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        (out * direction).sum().backward()
        found.append([out.detach(), *(parameter.grad for parameter in model.parameters())])
    assert not torch.equal(found[0][0], found[1][0])
    assert (found[0][0] - found[1][0]).norm() < 0.01 * found[0][0].norm()
    for mine, its in zip(*found, strict=True):  # a rectifier may turn at another sign
        assert (mine - its).norm() < 0.05 * mine.norm()


def test_training_with_short_states_fits_as_well_and_predicts_in_float32(problem):
    inputs, rows, changes = problem
    errors = {}
    for precision in ("auto", "float32", "bfloat16"):
        model = fit_grn(inputs, *rows, changes, dataclasses.replace(CONFIG, precision=precision), 0)
        predicted = predict_grn(model, inputs, *rows)
        errors[precision] = np.square(predicted - changes).mean()
        assert model.kind == torch.float32 and model.train().kind == (
            torch.bfloat16 if precision == "bfloat16" else torch.float32
        )
    assert errors["auto"] == errors["float32"] != errors["bfloat16"]
    assert errors["bfloat16"] == pytest.approx(errors["float32"], rel=0.05)
    with pytest.raises(ValueError, match="half"):
        Grn(inputs, dataclasses.replace(CONFIG, precision="half"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_batch_in_parts_gives_the_step_of_the_whole(problem, precision):
    inputs, rows, changes = problem
    config = dataclasses.replace(CONFIG, epochs=2, precision=precision)
    whole, *others = (
        predict_grn(fit_grn(inputs, *rows, changes, dataclasses.replace(config, accumulate=parts), 0), inputs, *rows)
        for parts in (1, 2, 3, 40)  # more parts than records, too
    )
    for other in others:
        off = np.sqrt(np.square(other - whole).mean() / np.square(whole).mean())
        assert 0 < off < (1e-4 if precision == "float32" else 5e-2)
