"""`mantra bench gpu --parts warming`: the warming pass as the device runs it, and the batched write."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from mantra_ray.bench.measured import Card, Row, deviation, peak_bytes, seconds
from mantra_ray.bench.warming import VALUE, least_bytes, make_stream, recalled, single
from mantra_ray.config import NexusConfig
from mantra_ray.nexus.cam import EMPTY, Candidates, Memory, Written, write, write_batched
from mantra_ray.nexus.gate import priorities
from mantra_ray.nexus.warming import Stream, warm, warm_plainly

GOAL = 500_000.0  # records a second
PLAIN = 500  # first records that the plain loop is compared on; all are compared with the ledger
WRITTEN = 2_000  # first candidates that the batched write is compared on with the write in waves
TOLERANCE = 1e-9  # in float64
SIZES = {  # by `quick`: lengths of the stream, buckets and slots, width of the keys
    True: ((200,), ((16, 4),), 8),
    False: ((10_000, 100_000), ((512, 32), (2048, 8), (4096, 4)), 256),
}


def apart(found: Memory, expected: Memory) -> float:
    """Largest relative deviation of a number; infinite if any slot holds another record, or anything else of it."""
    worst = 0.0
    for field in dataclasses.fields(Memory):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if one.is_floating_point():
            worst = max(worst, deviation(one, other))
        elif not torch.equal(one, other):
            return math.inf
    return worst


def warming_row(card: Card, stream: Stream, memory: Memory, name: str) -> Row:
    """Check the pass in float64, then time it in float32 beside the ledger's."""
    config, records = NexusConfig(), len(stream.signal)
    first = stream.take(slice(PLAIN))
    error = max(
        apart(warm(memory, first, config)[0], warm_plainly(memory, first, config, recalled)),
        apart(warm(memory, stream, config)[0], warm(memory, stream, config, kernels=False)[0]),
    )
    stream, memory = single(stream), single_memory(memory)
    warmed, seen = warm(memory, stream, config)

    def work() -> None:
        warm(memory, stream, config)

    taken, peak = seconds(work, card.device, repeats=5), peak_bytes(work, card.device)
    ledger = seconds(lambda: warm(memory, stream, config, kernels=False), card.device, repeats=1, warm_up=1)
    least, bound = card.seconds(bytes=least_bytes(warmed, stream))  # counted there
    longest = int(seen["waves"])
    return Row(
        work=f"warming, {name}",
        rate=records / taken,
        unit="records/s",
        floor=records / least,
        bound=bound,
        peak_bytes=peak,
        error=error,
        tolerance=TOLERANCE,
        goal=GOAL,
        note=f"{ledger / taken:.1f} x the ledger; {1e6 * taken / longest:.1f} us a record of the longest queue, "
        f"{longest:,}; density {seen['write_density']:.2f}",
    )


def single_memory(memory: Memory) -> Memory:
    """The memory in float32."""
    tensors = {field.name: getattr(memory, field.name) for field in dataclasses.fields(Memory)}
    return Memory(**{name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})


def in_waves(memory: Memory, new: Candidates, priority: Tensor) -> tuple[Memory, Written]:
    """All candidates admitted, one after the other."""
    return write(memory, new, priority, torch.ones_like(priority, dtype=torch.bool), "pss")


def contents(memory: Memory) -> tuple[Tensor, Tensor]:
    """Records and priorities [B, S] of each bucket by falling record."""
    record, order = memory.record.sort(dim=1, descending=True)
    return record, memory.priority.gather(1, order)


def writing_row(card: Card, stream: Stream, memory: Memory, name: str) -> Row:
    """Check the batched write in float64 (the slots may differ), then time it in float32 beside the write in waves."""
    config, records = NexusConfig(), len(stream.signal)
    worth = priorities(stream.surprisal, torch.zeros_like(stream.signal), torch.ones_like(stream.signal), config)
    part = slice(WRITTEN)
    checked = stream.candidates.take(part), worth[part]
    found, expected = (contents(way(memory, *checked)[0]) for way in (write_batched, in_waves))
    error = deviation(found[1], expected[1]) if torch.equal(found[0], expected[0]) else math.inf
    new, memory, worth = single(stream).candidates, single_memory(memory), worth.float()
    written, _ = write_batched(memory, new, worth)

    def work() -> None:
        write_batched(memory, new, worth)

    taken, peak = seconds(work, card.device), peak_bytes(work, card.device)
    first = new.take(part), worth[part]
    waves = seconds(lambda: in_waves(memory, *first), card.device, repeats=1, warm_up=1) / len(first[1])
    # each bucket and priority read once, each record that stays read and written, the memory copied
    kept = int((written.record != EMPTY).sum())
    moved = worth.nbytes + new.bucket.nbytes + 2 * kept * (new.key[0].nbytes + new.value[0].nbytes) + 2 * memory.bytes
    least, bound = card.seconds(bytes=moved)
    return Row(
        work=f"batched write, {name}",
        rate=records / taken,
        unit="records/s",
        floor=records / least,
        bound=bound,
        peak_bytes=peak,
        error=error,
        tolerance=TOLERANCE,
        note=f"{waves * records / taken:.0f} x in waves, these on the first {len(first[1]):,}",
    )


def rows(card: Card, quick: bool) -> Iterator[Row]:
    """A row of each length, geometry and skew; of the batched write for the longest stream alone."""
    lengths, geometries, dim = SIZES[quick]
    for records in lengths:
        for buckets, slots in geometries:
            for skew in (0.0, 1.0):
                stream, tokens = make_stream(records, buckets, dim, skew, seed=0, device=card.device)
                memory = Memory.empty(buckets, slots, dim, VALUE, tokens, torch.float64, card.device)
                name = f"{records:,} records, {buckets}x{slots}, skew {skew:g}"
                yield warming_row(card, stream, memory, name)
                if records == max(lengths):
                    yield writing_row(card, stream, memory, name)
