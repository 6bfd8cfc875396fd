"""The benchmark of reads: that it runs, checks what it measures, and what its floors count."""

import math

import pytest
import torch

from mantra_ray.bench import gpu_read
from mantra_ray.bench.gpu_read import QUICK, TOKENS, check, gathered_bytes, least_bytes, make_case, make_memory, rows
from mantra_ray.bench.measured import Card
from mantra_ray.nexus import cam

CARD = Card("CPU", "cpu", 1e10, 1e11)


def test_its_rows_are_sound_and_stand_beside_floor_and_goal():
    found = list(rows(CARD, quick=True))
    assert len(found) == 2 * 2 * len(QUICK) and all(row.sound and row.bound == "bytes" for row in found)
    for row in found:
        assert row.rate > 0 and row.goal == pytest.approx(0.6 * row.floor) and row.unit == "queries/s"
    by_type = [row.floor for row in found if "gradient" not in row.work]
    assert by_type[0] == pytest.approx(2 * by_type[1])  # half the bytes in bfloat16


def test_the_floors_bytes_counted_one_by_one():
    case = make_case(make_memory(4, 3, 5, torch.float32, "cpu", 0.0), 10, mixed=False)
    assert gathered_bytes(case, False) == 10 * 3 * (5 + 5) * 4 and gathered_bytes(case, True) == 2 * 10 * 3 * 10 * 4
    memory, labels, weights = 4 * 3 * 10 * 4, 4 * 3 * 8, 10 * 3 * 4
    forward = memory + 3 * labels + 10 * (5 * 4 + 4 * 8) + 10 * (5 * 4 + 3 * 4 + 8) + weights
    backward = memory + labels + 2 * weights + 10 * (2 * 8 + 5 * 4 + 2 * 4 + 5 * 4)
    assert least_bytes(case, False) == forward and least_bytes(case, True) == forward + weights + backward


def test_what_is_measured_reads_every_slot_and_what_is_checked_reads_all_sorts():
    memory = make_memory(6, 4, 5, torch.float32, "cpu", 0.0)
    assert (make_case(memory, 50, mixed=False).read("plain").weight > 0).all()
    found = make_case(make_memory(6, 4, 5, torch.float32, "cpu", 0.3), 400, mixed=True).read("plain")
    assert found.hard.any() and not found.hard.all() and (found.weight.sum(-1) == 0).any()
    assert memory.token.max() < TOKENS


def test_a_wrong_read_is_found(monkeypatch):
    case = make_case(make_memory(6, 4, 5, torch.float32, "cpu", 0.3), 100, mixed=True)
    assert max(check(case, "plain")) < 1e-5

    def off(memory, query, *given):
        found = cam.read(memory, query, *given)
        if query.dtype == torch.float32:
            found.matches = found.matches + 1
            found.value = found.value * 1.01
        return found

    monkeypatch.setattr("mantra_ray.nexus.fused_read.read", off)
    error, gradient = check(case, "plain")
    assert math.isinf(error) and gradient > 1e-3 and gpu_read.TOLERANCE[torch.float32] < 1e-3
