"""The gate and the warming pass."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.config import NexusConfig
from mantra_ray.nexus.cam import Candidates, Memory, read, visible_slots, write_
from mantra_ray.nexus.warming import DEVIATION_FLOOR, Stream, gate, observe_, priorities, warm

quick = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)
WIDTH, PROGRAMS = 6, 4


def random_stream(seed, count=60, buckets=5, tokens=11, signal=None):
    rng = np.random.default_rng(seed)
    token = torch.from_numpy(rng.integers(0, tokens, count))
    candidates = Candidates(
        bucket=token % buckets,
        key=torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(count, WIDTH))), dim=-1),
        value=torch.from_numpy(rng.normal(size=(count, PROGRAMS))),
        token=token,
        record=torch.arange(count),
        state=torch.from_numpy(rng.integers(0, 2, count)),
        stamp=torch.arange(count),
    )
    entropy = torch.from_numpy(rng.normal(3, 0.5, count)) if signal is None else signal
    nothing = torch.zeros(count, PROGRAMS)
    return Stream(candidates, entropy, torch.from_numpy(rng.exponential(size=count)), nothing, nothing)


def cleared(buckets=5, slots=3, tokens=11):
    return Memory.empty(buckets, slots, WIDTH, PROGRAMS, tokens, dtype=torch.float64)


@quick
@given(seeds, st.sampled_from(["pss", "fifo"]), st.sampled_from([-math.inf, 0.0, 0.5]))
def test_warming_in_waves_is_one_record_at_a_time(seed, eviction, gamma):
    config = NexusConfig(eviction=eviction, regret_gamma=gamma)
    stream = random_stream(seed)
    waved, diagnostics = warm(cleared(), stream, config)
    single, admitted = cleared(), 0
    for i in range(len(stream.signal)):
        row = torch.tensor([i])
        new = stream.candidates.take(row)
        visible = visible_slots(single, new.bucket, new.record)
        found = read(single, new.key, new.bucket, new.token, new.state, visible, config.tau)
        admit, _ = gate(single, new.token, stream.signal[row], found.sim_max, config)
        priority = priorities(stream.surprisal[row], single.count[new.token], found.sim_max, config)
        observe_(single, new.token, stream.signal[row], config.ema)
        write_(single, new, priority, admit, eviction)
        admitted += int(admit)
    assert torch.equal(waved.record, single.record)
    assert torch.allclose(waved.key, single.key) and torch.allclose(waved.value, single.value)
    assert torch.allclose(waved.mean, single.mean) and torch.allclose(waved.variance, single.variance)
    assert diagnostics["write_density"] == pytest.approx(admitted / len(stream.signal))


@quick
@given(seeds, st.lists(st.floats(-3, 3), min_size=2, max_size=6))
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


@quick
@given(seeds, st.integers(0, 4))
def test_the_limits_of_gamma(seed, priming):
    stream = random_stream(seed)
    _, everything = warm(cleared(), stream, NexusConfig(regret_gamma=-math.inf, priming=priming))
    assert everything["write_density"] == 1
    _, nothing = warm(cleared(), stream, NexusConfig(regret_gamma=math.inf, priming=priming))
    expected = np.minimum(np.bincount(stream.candidates.token, minlength=11), priming).sum() / 60
    assert nothing["gated_density"] == 0 and nothing["write_density"] == pytest.approx(expected)


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


def test_running_statistics_follow_the_exponential_mean_after_an_even_start():
    memory, decay = cleared(tokens=1), 0.5
    values = [1.0, 3.0, 2.0, 6.0]
    mean, variance = 0.0, 0.0
    for n, value in enumerate(values, 1):
        observe_(memory, torch.tensor([0]), torch.tensor([value], dtype=torch.float64), decay)
        rate = max(1 / n, 1 - decay)
        mean, variance = mean + rate * (value - mean), (1 - rate) * (variance + rate * (value - mean) ** 2)
    assert float(memory.mean[0]) == pytest.approx(mean) and float(memory.variance[0]) == pytest.approx(variance)
    assert int(memory.count[0]) == 4 and DEVIATION_FLOOR > 0


def test_priorities_weigh_surprisal_rarity_and_novelty():
    config = NexusConfig(surprisal_weight=2, rarity_weight=3, novelty_weight=5)
    found = priorities(torch.tensor([1.5]), torch.tensor([3]), torch.tensor([0.25]), config)
    assert float(found) == pytest.approx(2 * 1.5 + 3 / 2 + 5 * 0.75)


def test_warming_leaves_its_argument_alone():
    memory = cleared()
    before = memory.clone()
    warmed, _ = warm(memory, random_stream(0), NexusConfig())
    assert memory.equals(before) and not warmed.equals(before)
