"""Rows of `mantra bench gpu` and `cpu`: how fast, beside the floor that the device sets, and whether it is right."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

COPIED = 2**28  # float32 numbers copied to measure bandwidth: 1 GiB, far beyond any cache
SIDE = 8192  # of the square bfloat16 matrices whose product measures the rate of arithmetic
CPU_SHARE = 16  # by how much both are smaller on a CPU


@dataclass(frozen=True)
class Card:
    """What a device can do, measured on it: bytes a second of a copy, FLOP a second of a large bfloat16 product."""

    name: str
    device: str
    bandwidth: float
    arithmetic: float

    def seconds(self, bytes: float = 0.0, flop: float = 0.0) -> tuple[float, Literal["bytes", "FLOP"]]:
        """The least time for so many bytes and operations, and which of the two sets it."""
        moved, computed = bytes / self.bandwidth, flop / self.arithmetic
        return (moved, "bytes") if moved >= computed else (computed, "FLOP")


@dataclass(frozen=True)
class Row:
    """One piece of work: its rate beside the floor's, and the largest error against its reference."""

    work: str
    rate: float  # of `unit`
    unit: str
    floor: float  # rate at the least time, of `unit`
    bound: str  # what sets the floor: bytes, FLOP, or another word
    peak_bytes: int  # of device memory above what lay there before
    error: float  # largest deviation from the reference, relative to the reference's largest number
    tolerance: float
    goal: float | None = None  # of `unit`
    note: str = ""

    @property
    def sound(self) -> bool:
        """Whether it computes what the reference does."""
        return self.error <= self.tolerance


def measure_card(device: str) -> Card:
    """Measure a device's two ceilings."""
    on_gpu = torch.device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    share = 1 if on_gpu else CPU_SHARE
    source = torch.rand(COPIED // share, device=device)
    target = torch.empty_like(source)
    copying = seconds(lambda: target.copy_(source), device)
    side = SIDE // share
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    multiplying = seconds(lambda: left @ right, device)
    return Card(name, device, 2 * source.nbytes / copying, 2 * side**3 / multiplying)


def seconds(work: Callable[[], object], device: str, repeats: int = 10, warm_up: int = 3) -> float:
    """Median seconds of `work()` after a warm-up, by the device's own clock."""
    for _ in range(warm_up):
        work()
    if torch.device(device).type != "cuda":
        return statistics.median(_wall(work) for _ in range(repeats))
    taken = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize(device)
        taken.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(taken)


def _wall(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak_bytes(work: Callable[[], object], device: str) -> int:
    """Device memory that `work()` takes at its peak above what lay there before; 0 on a CPU, where nobody counts."""
    if torch.device(device).type != "cuda":
        work()
        return 0
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def deviation(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest |found - reference| relative to the largest |reference|; NaN counts as infinite."""
    found, reference = found.detach().double().cpu(), reference.detach().double().cpu()
    off = (found - reference).abs().max() / reference.abs().max().clamp_min(1e-30)
    return float("inf") if off.isnan() else float(off)
