"""The benchmark of the warming pass on a device: that it checks before it measures."""

import math

import pytest
import torch

from mantra_ray.bench import gpu_warming
from mantra_ray.bench.gpu_warming import apart, rows
from mantra_ray.bench.measured import Card
from mantra_ray.nexus.cam import Memory, write_batched
from mantra_ray.nexus.warming import warm

CARD = Card("CPU", "cpu", 1e10, 1e11)


def test_a_quick_run_is_sound():
    found = list(rows(CARD, quick=True))
    assert [row.work.split(",")[0] for row in found] == ["warming", "batched write"] * 2
    assert all(row.sound and row.rate > 0 and row.bound == "bytes" for row in found)
    for row in found[::2]:
        assert row.goal == 500_000 and "x the ledger" in row.note
    # the memory's copy alone: 16 x 4 slots of 8 + 62 + 1 floats and 4 labels, both ways
    assert all(row.floor < 200 / (2 * 64 * (71 * 4 + 4 * 8) / 1e10) for row in found)


def test_a_wrong_pass_and_a_wrong_write_are_told(monkeypatch):
    def wrong_warm(memory, stream, config, **options):
        memory, seen = warm(memory, stream, config, **options)
        if options.get("kernels") is None:
            memory.priority[memory.record == 7] += 1e-6
        return memory, seen

    def wrong_write(memory, new, priority):
        memory, done = write_batched(memory, new, priority)
        memory.record[0, 0] += 1
        return memory, done

    monkeypatch.setattr(gpu_warming, "warm", wrong_warm)
    monkeypatch.setattr(gpu_warming, "write_batched", wrong_write)
    passes, writes = list(rows(CARD, quick=True))[:2]
    assert not passes.sound and 0 < passes.error < 1e-5 and not writes.sound and writes.error == math.inf


def test_memories_with_another_record_or_number_are_apart():
    memory = Memory.empty(2, 3, 4, 5, 6, dtype=torch.float64)
    memory.value += 1
    other = memory.clone()
    assert apart(other, memory) == 0
    other.value[1, 2, 3] += 1e-6
    assert apart(other, memory) == pytest.approx(1e-6)
    other.state[0, 0] = 1
    assert apart(other, memory) == math.inf
