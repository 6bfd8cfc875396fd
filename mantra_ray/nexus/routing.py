"""Routes: which manifolds a memory has, and the bucket of a record in each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mantra_ray.config import NexusConfig
from mantra_ray.nexus.cam import random_slot


@dataclass(frozen=True)
class Route:
    """One manifold: its shape, what sets a record's bucket, and how it is gated and read."""

    name: str
    buckets: int
    slots: int
    by: str  # "regulator", "class" or "record"
    gamma: float  # the write gate's threshold
    hard: bool  # whether slots of the own regulator, if any, are read alone

    def bucket(self, regulator: Tensor, regulator_class: Tensor, record: Tensor) -> Tensor:
        """Bucket [N] of records [N], their regulators and classes; -1, unknown, is a class of its own."""
        if self.by == "record":
            return random_slot(record, torch.zeros_like(record), self.buckets)
        return (regulator if self.by == "regulator" else regulator_class + 1) % self.buckets


def make_routes(config: NexusConfig, records: int, classes: int) -> tuple[Route, ...]:
    """The manifolds that `config.routing` asks for, of `buckets` * `slots` slots in all, for that many records.

    regulator: bucket = regulator mod B. class (functional slotting): class mod B, with B cut to the number of classes
    and the slots spread over them, since a bucket without a class would lie idle. levels (multi-head memory): half of
    the slots by regulator, half by class behind a permissive gate, read softly over the whole class. hash: H manifolds
    of B / H buckets or less, each a prime number, all distinct, so that regulators which collide in one do not in
    another. random: a bucket drawn by the record's number alone. Raises ValueError where buckets or classes do not
    suffice, and for random buckets with the gate on residuals: a record's gate would hang on other buckets' reads.
    """
    buckets, gamma, hard = bucket_count(config, records), config.regret_gamma, config.read == "hard"
    if config.routing == "regulator":
        return (Route("regulator", buckets, config.slots, "regulator", gamma, hard),)
    if config.routing == "random":
        if config.gate_signal == "residual":
            raise ValueError("a regulator's records lie in several buckets; gate by entropy (--nexus.gate-signal)")
        return (Route("random", buckets, config.slots, "record", gamma, hard),)
    if config.routing == "hash":
        moduli = primes_below(buckets // config.hash_heads, config.hash_heads)
        return tuple(Route(f"hash{p}", p, config.slots, "regulator", gamma, hard) for p in moduli)
    if not classes:
        raise ValueError("no regulator's class is known; name a file of them (--classes)")
    levels = config.routing == "levels"
    if levels and buckets < 2:
        raise ValueError("two levels need at least 2 buckets; use more, or a lower load")
    share = buckets // 2 if levels else buckets
    kinds = min(share, classes + 1)
    slots = max(1, share * config.slots // kinds)
    if not levels:
        return (Route("class", kinds, slots, "class", gamma, hard),)
    gene = Route("regulator", buckets - share, config.slots, "regulator", gamma, hard)
    return (gene, Route("class", kinds, slots, "class", config.pathway_gamma, False))


def bucket_count(config: NexusConfig, records: int) -> int:
    """B: as configured, or what brings `records` / (B * S) nearest to the configured load."""
    return max(1, round(records / (config.load * config.slots))) if config.load > 0 else config.buckets


def primes_below(limit: int, count: int) -> list[int]:
    """The `count` largest primes up to `limit`, falling; ValueError if there are not so many."""
    sieve = torch.ones(max(limit, 1) + 1, dtype=torch.bool)
    sieve[:2] = False
    for n in range(2, int(limit**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = False
    found = sieve.nonzero()[:, 0].tolist()[::-1][:count]
    if len(found) < count:
        raise ValueError(f"{count} hash heads need as many primes up to {limit} buckets each; use more buckets")
    return found
