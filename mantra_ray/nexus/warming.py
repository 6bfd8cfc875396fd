"""Warming: the gated pass that fills a memory, with the meaning of one record at a time, in stream order."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from mantra_ray.config import NexusConfig
from mantra_ray.nexus.cam import Candidates, Memory, read, visible_slots, waves, write_

DEVIATION_FLOOR = 0.05  # of the gate's signal: a token whose entropy hardly moved yet must not give z its noise


@dataclass
class Stream:
    """N records in order, with what the gate and the priority see of each."""

    candidates: Candidates
    signal: Tensor  # [N] the head's entropy at the header, in nats
    surprisal: Tensor  # [N] the head's negative log-likelihood of the record's content, mean over its tokens
    target: Tensor  # [N, K] residual, for the gate signal `residual`
    base: Tensor  # [N, K] prediction that the residual was left by, likewise

    def take(self, rows: Tensor | slice) -> Stream:
        rest = {name: getattr(self, name)[rows] for name in ("signal", "surprisal", "target", "base")}
        return Stream(self.candidates.take(rows), **rest)


def gate(memory: Memory, token: Tensor, signal: Tensor, sim_max: Tensor, config: NexusConfig) -> tuple[Tensor, Tensor]:
    """Admitted and primed flags [N]: primed while the token's statistics form, else z * (1 - sim_max) > gamma.

    z = (signal - mean) / deviation of the token's running statistics before these records.
    """
    primed = memory.count[token] < config.priming
    deviation = memory.variance[token].sqrt().clamp_min(DEVIATION_FLOOR)
    z = (signal - memory.mean[token]) / deviation
    return primed | (z * (1 - sim_max) > config.regret_gamma), primed


def observe_(memory: Memory, token: Tensor, signal: Tensor, decay: float) -> None:
    """Update the running statistics of distinct tokens in place (exponential moving mean and variance).

    The first max(1 / (1 - decay), n) records of a token are averaged evenly, which removes the start's bias.
    """
    count = memory.count[token] + 1
    rate = torch.maximum(1.0 / count, torch.full_like(signal, 1 - decay))
    delta = signal - memory.mean[token]
    memory.mean[token] += rate * delta
    memory.variance[token] = (1 - rate) * (memory.variance[token] + rate * delta.square())
    memory.count[token] = count


def priorities(surprisal: Tensor, count: Tensor, sim_max: Tensor, config: NexusConfig) -> Tensor:
    """PSS priority [N]: weighted sum of surprisal, rarity 1 / sqrt(1 + records of the token so far) and novelty."""
    rarity = (1.0 + count).rsqrt()
    return (
        config.surprisal_weight * surprisal
        + config.rarity_weight * rarity.to(surprisal.dtype)
        + config.novelty_weight * (1 - sim_max)
    )


@torch.no_grad()
def warm(memory: Memory, stream: Stream, config: NexusConfig, decode=None) -> tuple[Memory, dict[str, float]]:
    """Fill a copy of `memory` from the stream; returns it with the pass's diagnostics.

    Runs in waves of at most one record a bucket: the same records in the same slots as one at a time. `decode`
    maps what was read and base predictions [n, K] to residuals [n, K], for the gate signal `residual` alone.
    """
    memory, started = memory.clone(), time.perf_counter()
    groups = waves(stream.candidates.bucket)
    counted = torch.zeros(5, dtype=torch.int64, device=stream.signal.device)
    stream = stream.take(torch.cat(groups))  # by wave, so that each wave is a slice
    ends = list(itertools.accumulate(len(rows) for rows in groups))
    for start, end in zip([0, *ends], ends, strict=False):
        wave = stream.take(slice(start, end))
        new, signal = wave.candidates, wave.signal
        visible = visible_slots(memory, new.bucket, new.record)
        found = read(memory, new.key, new.bucket, new.token, new.state, visible, config.tau)
        if config.gate_signal == "residual":
            signal = (wave.target - decode(found, wave.base)).square().mean(-1).sqrt()
        admit, primed = gate(memory, new.token, signal, found.sim_max, config)
        priority = priorities(wave.surprisal, memory.count[new.token], found.sim_max, config)
        observe_(memory, new.token, signal, config.ema)
        done = write_(memory, new, priority, admit, config.eviction)
        flags = torch.stack([admit, primed, done.stored, done.evicted, found.hard])
        counted += flags.sum(-1)
    admitted, primed, stored, evicted, hits = counted.tolist()
    total = max(len(stream.signal), 1)
    load = torch.bincount(stream.candidates.bucket, minlength=memory.key.shape[0])
    diagnostics = {
        "write_density": admitted / total,
        "primed_density": primed / total,
        "gated_density": (admitted - primed) / total,
        "stored": float(stored),
        "evictions": float(evicted),
        "warm_hit_rate": hits / total,
        "collisions": float((load - memory.key.shape[1]).clamp_min(0).sum()),
        "occupancy": memory.occupancy,
        "waves": float(len(groups)),
        "records_per_second": total / (time.perf_counter() - started),
        "memory_bytes": float(memory.bytes),
    }
    return memory, diagnostics
