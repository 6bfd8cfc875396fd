"""Warming: the gated pass that fills a memory, with the meaning of one record at a time, in stream order.

`warm_plainly` says it in as many words. `warm` computes the same: on a GPU by kernels that follow each bucket's queue
(see `warming_kernels`), elsewhere in waves of at most one record a bucket.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mantra_ray.config import NexusConfig
from mantra_ray.nexus.cam import EMPTY, Memory, Read, place_among_equals, put_, read, visible_slots, write_
from mantra_ray.nexus.gate import DEVIATION_FLOOR, drift, gate, observe_, priorities, rates, standardise
from mantra_ray.nexus.ledger import BucketReport, Decisions, Ledger, Stream

BLOCK = 2**13  # records whose similarities are computed together: what fits in the cache with their slots
LONGEST = 64  # waves of a block

Decode = Callable[[Read, Tensor], Tensor]


@dataclass
class Warmed:
    """A warmed memory with the diagnostics of its pass, and counts by bucket."""

    memory: Memory
    diagnostics: dict[str, float]
    buckets: BucketReport


def unexplained(stream: Stream, found: Read, decode: Decode) -> Tensor:
    """The gate signal `residual` [N]: root mean square of what is left of the records after what they read."""
    return (stream.target - decode(found, stream.base)).square().mean(-1).sqrt()


@torch.no_grad()
def warm_plainly(memory: Memory, stream: Stream, config: NexusConfig, decode: Decode | None = None) -> Memory:
    """What `warm` means: read, gate, observe and write, one record after the other; returns a copy."""
    memory = memory.clone()
    for row in torch.arange(len(stream.signal), device=stream.signal.device).split(1):
        one = stream.take(row)
        new, signal = one.candidates, one.signal
        visible = visible_slots(memory, new.bucket, new.record)
        found = read(memory, new.key, new.bucket, new.token, new.state, visible, config.tau)
        if config.gate_signal == "residual":
            signal = unexplained(one, found, decode)
        admit, _ = gate(memory, new.token, signal, found.sim_max, config)
        priority = priorities(one.surprisal, memory.count[new.token], found.sim_max, config)
        observe_(memory, new.token, signal, config.ema)
        write_(memory, new, priority, admit, config.eviction)
    return memory


def flush_(memory: Memory, stream: Stream, ledger: Ledger, rows: Tensor, count: int) -> None:
    """Write what the ledger put into the first `count` buckets since the last time; `rows` are its rows [N]."""
    line, slot = (ledger.source[:count] != EMPTY).nonzero()
    if not len(line):
        return
    source = ledger.source[line, slot]
    ledger.source[:count] = EMPTY
    device = memory.key.device
    line, slot, place = torch.from_numpy(np.stack([line, slot, source])).to(device)
    priority = torch.from_numpy(ledger.priority[source]).to(device)
    put_(memory, (line, slot), stream.candidates, rows[place], priority)


def by_waves(memory: Memory, stream: Stream, ledger: Ledger, decode: Decode) -> None:
    """The gate signal `residual`, in place: each wave reads the values that those before it left."""
    rows, config = ledger.rows.to(memory.key.device), ledger.config
    for start, n in zip(ledger.start, ledger.width, strict=True):
        here = stream.take(rows[start : start + n])
        new, prefix = here.candidates, slice(0, n)
        visible = visible_slots(memory, prefix, new.record)
        found = read(memory, new.key, prefix, new.token, new.state, visible, config.tau)
        signal = unexplained(here, found, decode)
        z = standardise(memory, new.token, signal)
        observe_(memory, new.token, signal, config.ema)
        z, near = torch.stack([z, 1 - found.sim_max - 2 * found.hard]).cpu().numpy()
        ledger.enter(np.arange(start, start + n)[:, None], z[:, None], near[:, None, None])
        flush_(memory, stream, ledger, rows, n)


def standing_(memory: Memory, stream: Stream, config: NexusConfig) -> Tensor:
    """z [N] of each record by its token's statistics before it, which are left as they stand after the last one."""
    token = stream.candidates.token
    count = memory.count[token] + place_among_equals(token)
    mean, variance, z = memory.mean.tolist(), memory.variance.tolist(), []
    per_row = token, stream.signal, rates(count, config.ema, stream.signal.dtype)
    for one, signal, rate in zip(*(each.tolist() for each in per_row), strict=True):
        z.append((signal - mean[one]) / max(math.sqrt(variance[one]), DEVIATION_FLOOR))
        mean[one], variance[one] = drift(mean[one], variance[one], signal, rate)
    memory.mean, memory.variance = memory.mean.new_tensor(mean), memory.variance.new_tensor(variance)
    memory.count = memory.count + torch.bincount(token, minlength=len(memory.count))
    return torch.tensor(z, dtype=torch.float64)


def by_blocks(memory: Memory, stream: Stream, ledger: Ledger) -> None:
    """The gate signal `entropy`, in place: a wave reads similarities alone, so a block of waves computes them at once.

    They are to the slots as the block found them, and to the block's other records, which may take a slot meanwhile.
    """
    rows, new = ledger.rows.to(memory.key.device), stream.candidates
    slots, wave = memory.record.shape[1], 0
    z = ledger.by_row(standing_(memory, stream, ledger.config))
    while wave < len(ledger.width):
        n = ledger.width[wave]
        block = ledger.block(wave, max(1, min(LONGEST, BLOCK // n)))
        # what a bucket lacks is computed for another's record, in vain
        row = rows[torch.from_numpy(block.clip(max=len(rows) - 1)).to(rows.device)]
        asked = new.key[row], new.token[row], new.record[row]
        used = int((ledger.rank[:n] > -np.inf).any(0).sum())
        near = np.full((*block.shape, slots), np.inf, dtype=ledger.known.dtype)
        if used:
            held = (tensor[:n, :used] for tensor in (memory.key, memory.token, memory.record))
            near[..., :used] = nearness(*asked, *held).cpu()
        ledger.enter(block, z[block], near, nearness(*asked, *asked).cpu().numpy())
        flush_(memory, stream, ledger, rows, n)
        wave += block.shape[1]


def nearness(key: Tensor, token: Tensor, record: Tensor, other: Tensor, others: Tensor, held: Tensor) -> Tensor:
    """How far C records of n buckets are from M others, [n, C, M], so ordered that the least is what a read takes.

    1 - similarity, less 2 if the token is the same (the hard read comes first), infinite for the record itself and
    for what is empty. Keys [n, ·, D], token and record [n, ·].
    """
    far = 1 - (key @ other.mT).clamp(0, 1)
    far -= 2 * (token[..., None] == others[:, None])
    return far.masked_fill_((record[..., None] == held[:, None]) | (held == EMPTY)[:, None], math.inf)


def warm_by_ledger(
    memory: Memory, stream: Stream, config: NexusConfig, decode: Decode | None
) -> tuple[Memory, Decisions]:
    """A warmed copy of the memory, and what became of each record; the host decides."""
    ledger = Ledger(memory, stream, config)
    device = memory.key.device
    warmed = memory.arrange(ledger.order.to(device))
    warmed.mean, warmed.variance, warmed.count = memory.mean.clone(), memory.variance.clone(), memory.count.clone()
    if config.gate_signal == "residual":
        by_waves(warmed, stream, ledger, decode)
    else:
        by_blocks(warmed, stream, ledger)
    return warmed.arrange(ledger.order.argsort().to(device)), ledger.decisions()


def kernels_run(memory: Memory, config: NexusConfig) -> bool:
    """Whether the pass's kernels can do it: on a GPU, by the signal `entropy`, for buckets that a program can hold.

    Whatever the signal `residual` needs of a read is the reader's to decode, between a record and the next.
    """
    if config.gate_signal != "entropy" or memory.key.device.type != "cuda" or not importlib.util.find_spec("triton"):
        return False
    from mantra_ray.nexus.warming_kernels import fits

    return fits(memory)


@torch.no_grad()
def warm_in_full(
    memory: Memory,
    stream: Stream,
    config: NexusConfig,
    decode: Decode | None = None,
    kernels: bool | None = None,
) -> Warmed:
    """`warm`, with what happened in each bucket besides."""
    started = time.perf_counter()
    if kernels is None:
        kernels = kernels_run(memory, config)
    elif kernels and config.gate_signal != "entropy":
        raise ValueError(f"no kernel decides by the gate signal {config.gate_signal}")
    if kernels:
        from mantra_ray.nexus.warming_kernels import warm_by_kernels  # here, since it needs triton

        warmed, decisions = warm_by_kernels(memory, stream, config)
    else:
        warmed, decisions = warm_by_ledger(memory, stream, config, decode)
    report, total = BucketReport.of(decisions, warmed), max(len(stream.signal), 1)
    admitted, primed = float(report.admitted.sum()), float(decisions.primed.sum())
    diagnostics = {
        "write_density": admitted / total,
        "primed_density": primed / total,
        "gated_density": (admitted - primed) / total,
        "stored": float(report.stored.sum()),
        "evictions": float(report.evictions.sum()),
        "warm_hit_rate": float(decisions.hard.sum()) / total,
        "warm_sim_max": float((1 - decisions.novelty).cpu().numpy().sum(dtype=float)) / total,
        "collisions": float(report.collisions.sum()),
        "token_collisions": float(report.token_collisions.sum()),
        "occupancy": warmed.occupancy,
        "waves": float(report.offered.max()),
        "records_per_second": total / (time.perf_counter() - started),
        "memory_bytes": float(memory.bytes),
    }
    return Warmed(warmed, diagnostics, report)


def warm(
    memory: Memory,
    stream: Stream,
    config: NexusConfig,
    decode: Decode | None = None,
    kernels: bool | None = None,
) -> tuple[Memory, dict[str, float]]:
    """Fill a copy of `memory` from the stream; returns it with the pass's diagnostics.

    Means one record at a time: the same records in the same slots, values to float tolerance. `decode` maps what was
    read and base predictions [n, K] to residuals [n, K], for the gate signal `residual` alone; with that signal,
    raises ValueError if a token's records lie in several buckets. `kernels` says whether Triton's do it, which must
    then be able to, and raises ValueError for the signal `residual`; None leaves it to `kernels_run`.
    `warm_in_full` also tells of each bucket.
    """
    warmed = warm_in_full(memory, stream, config, decode, kernels)
    return warmed.memory, warmed.diagnostics
