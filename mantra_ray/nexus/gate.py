"""The gate and the priority: what decides whether a record is worth a slot."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from mantra_ray.config import NexusConfig
from mantra_ray.nexus.cam import Memory

DEVIATION_FLOOR = 0.05  # of the gate's signal: a token whose entropy hardly moved yet must not give z its noise

Number = TypeVar("Number", float, Tensor)


def rates(count: Tensor, decay: float, dtype: torch.dtype) -> Tensor:
    """Weight [n] of a new observation after `count` earlier ones.

    The first max(1 / (1 - decay), n) records of a token are averaged evenly, which removes the start's bias.
    """
    return (count + 1).to(dtype).reciprocal().clamp_min(1 - decay)


def drift(mean: Number, variance: Number, signal: Number, rate: Number) -> tuple[Number, Number]:
    """Exponential moving mean and variance after one more observation of each."""
    delta = signal - mean
    return mean + rate * delta, (1 - rate) * (variance + rate * delta * delta)


def standardise(memory: Memory, token: Tensor, signal: Tensor) -> Tensor:
    """z [n] = (signal - mean) / deviation of the tokens' running statistics."""
    return (signal - memory.mean[token]) / memory.variance[token].sqrt().clamp_min(DEVIATION_FLOOR)


def gate(memory: Memory, token: Tensor, signal: Tensor, sim_max: Tensor, config: NexusConfig) -> tuple[Tensor, Tensor]:
    """Admitted and primed flags [N]: primed while the token's statistics form, else z * (1 - sim_max) > gamma."""
    primed = memory.count[token] < config.priming
    return primed | (standardise(memory, token, signal) * (1 - sim_max) > config.regret_gamma), primed


def observe_(memory: Memory, token: Tensor, signal: Tensor, decay: float) -> None:
    """Update the running statistics of distinct tokens in place (exponential moving mean and variance)."""
    rate = rates(memory.count[token], decay, signal.dtype)
    memory.mean[token], memory.variance[token] = drift(memory.mean[token], memory.variance[token], signal, rate)
    memory.count[token] += 1


def priorities(surprisal: Tensor, count: Tensor, sim_max: Tensor, config: NexusConfig) -> Tensor:
    """PSS priority [N]: weighted sum of surprisal, rarity 1 / sqrt(1 + records of the token so far) and novelty."""
    rarity = (1 + count).to(surprisal.dtype).rsqrt()
    return config.surprisal_weight * surprisal + config.rarity_weight * rarity + config.novelty_weight * (1 - sim_max)
