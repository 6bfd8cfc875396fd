"""The gate, a token's running statistics and the priority."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.config import NexusConfig
from mantra_ray.nexus.cam import Memory
from mantra_ray.nexus.gate import gate, observe_, priorities


def cleared(tokens=11):
    return Memory.empty(5, 3, 6, 4, tokens, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.floats(-3, 3), min_size=2, max_size=6))
def test_writes_fall_as_gamma_rises_with_scores_fixed(seed, gammas):
    rng = np.random.default_rng(seed)
    memory = cleared()
    memory.count += torch.from_numpy(rng.integers(0, 5, 11))
    memory.mean += 3
    memory.variance += 0.2
    token = torch.from_numpy(rng.integers(0, 11, 50))
    signal, sim_max = torch.from_numpy(rng.normal(3, 0.5, 50)), torch.from_numpy(rng.random(50))
    admitted = []
    for gamma in sorted(gammas):
        admit, primed = gate(memory, token, signal, sim_max, NexusConfig(regret_gamma=gamma))
        assert (admit | ~primed).all()
        admitted.append(admit)
    for looser, stricter in itertools.pairwise(admitted):
        assert (looser | ~stricter).all()  # what the stricter gate admits, the looser one admits too


def test_a_perfect_match_is_not_written_and_a_hit_never_turns_the_gates_sign():
    memory = cleared()
    memory.count += 10
    memory.mean += 3
    memory.variance += 1
    token = torch.tensor([0, 0, 0])
    high = torch.tensor([5.0, 5.0, 5.0], dtype=torch.float64)
    config = NexusConfig(regret_gamma=0.5)
    admit, _ = gate(memory, token, high, torch.tensor([0.0, 0.5, 1.0]), config)
    assert admit.tolist() == [True, True, False]


def test_a_token_that_hardly_varied_does_not_pass_the_gate_by_its_noise():
    memory = cleared()
    memory.count += 10
    memory.mean += 3
    memory.variance += 1e-8
    signal = torch.tensor([3.01], dtype=torch.float64)
    admit, _ = gate(memory, torch.tensor([0]), signal, torch.zeros(1), NexusConfig(regret_gamma=0.3))
    assert not admit.any()


def test_running_statistics_follow_the_exponential_mean_after_an_even_start():
    memory, decay = cleared(tokens=1), 0.5
    values = [1.0, 3.0, 2.0, 6.0]
    mean, variance = 0.0, 0.0
    for n, value in enumerate(values, 1):
        observe_(memory, torch.tensor([0]), torch.tensor([value], dtype=torch.float64), decay)
        rate = max(1 / n, 1 - decay)
        mean, variance = mean + rate * (value - mean), (1 - rate) * (variance + rate * (value - mean) ** 2)
    assert float(memory.mean[0]) == pytest.approx(mean) and float(memory.variance[0]) == pytest.approx(variance)
    assert int(memory.count[0]) == 4


def test_priorities_weigh_surprisal_rarity_and_novelty():
    config = NexusConfig(surprisal_weight=2, rarity_weight=3, novelty_weight=5)
    found = priorities(torch.tensor([1.5]), torch.tensor([3]), torch.tensor([0.25]), config)
    assert float(found) == pytest.approx(2 * 1.5 + 3 / 2 + 5 * 0.75)
