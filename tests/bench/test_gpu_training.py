"""The benchmark of training: that its rows are sound, that it finds a fault, and that several workers agree."""

import pytest
import torch

from mantra_ray.bench import gpu_training, grn_reference
from mantra_ray.bench.gpu_training import rows, scaling
from mantra_ray.bench.grn_reference import network_error, round_errors
from mantra_ray.bench.measured import Card
from mantra_ray.cascade.replicas import Replicas

CARD = Card("CPU", "cpu", 1e10, 1e11)


def test_rows_are_sound_and_each_has_its_floor():
    found = list(rows(CARD, quick=True))
    assert len(found) == 8 and len({row.work for row in found}) == 8
    for row in found:
        assert row.rate > 0 and row.floor > 0
        if "fit" not in row.work:  # of a few records for a few steps
            assert row.sound, (row.work, row.error)
    goals = [row.goal for row in found if row.goal]
    assert goals == [20, 20]


def test_a_wrong_weight_of_an_edge_is_found(monkeypatch):
    assert network_error("float32", "cpu", 1) < 1e-4 and max(round_errors(torch.float32, "cpu", 1)) < 1e-4
    exact = grn_reference.dense_operators
    monkeypatch.setattr(grn_reference, "dense_operators", lambda *args: [1.02 * exact(*args)[0], exact(*args)[1]])
    assert network_error("float32", "cpu", 1) > 1e-4 and min(round_errors(torch.float32, "cpu", 1)) > 1e-4


def test_two_workers_have_the_losses_of_one(forked):
    found = scaling(2, quick=True)
    assert found["sound"] and 0 <= found["error"] < 1e-4
    assert found["weak"] == pytest.approx(2 * found["one_seconds"] / found["weak_seconds"])
    assert found["strong"] == pytest.approx(found["one_seconds"] / found["strong_seconds"])


def test_a_worker_that_takes_all_records_is_told_apart(monkeypatch):
    """The losses that are compared differ where gradients are not those of the whole batch."""
    inputs = gpu_training.make_inputs(64, 5, 1)
    size = gpu_training.QUICK

    def losses(share):
        step = gpu_training.Step(size, inputs, "float32", "cpu", Replicas(), 1)
        monkeypatch.setattr(step.steps.replicas, "share", share)
        return torch.stack([step() for _ in range(gpu_training.LOSSES)])

    whole, part = losses(lambda batch: batch), losses(lambda batch: batch[::2])
    assert gpu_training.deviation(part, whole) > 1e-2
