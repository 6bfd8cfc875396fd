"""The warming pass against one record at a time, its limits and what it tells of itself."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.config import NexusConfig
from mantra_ray.nexus.cam import EMPTY, Candidates, Memory
from mantra_ray.nexus.warming import Stream, warm, warm_in_full, warm_plainly

quick = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)
evictions = st.sampled_from(["pss", "fifo", "random"])
signals = st.sampled_from(["entropy", "residual"])
WIDTH, PROGRAMS = 6, 4
SHAPES = [(4, 8), (5, 3), (16, 1)]  # few slots under many records, as in the geometries safe, aggressive, extreme


def random_stream(seed, count=60, buckets=5, tokens=11, skew=0.0, records=None, width=WIDTH):
    """Tokens by Zipf's law with exponent `skew`; with `records`, each comes again and again."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, tokens + 1) ** -float(skew)
    token = torch.from_numpy(rng.permutation(tokens)[rng.choice(tokens, count, p=share / share.sum())])

    def normal(*shape):
        return torch.from_numpy(rng.normal(size=shape))

    candidates = Candidates(
        bucket=token % buckets,
        key=torch.nn.functional.normalize(normal(count, width), dim=-1),
        value=normal(count, PROGRAMS),
        token=token,
        record=torch.arange(count) if records is None else token + tokens * torch.from_numpy(rng.integers(0, 3, count)),
        state=torch.from_numpy(rng.integers(0, 2, count)),
        stamp=torch.arange(count),
    )
    surprisal = torch.from_numpy(rng.exponential(size=count))
    return Stream(candidates, 3 + normal(count) / 2, surprisal, normal(count, PROGRAMS), normal(count, PROGRAMS))


def cleared(buckets=5, slots=3, tokens=11, width=WIDTH):
    return Memory.empty(buckets, slots, width, PROGRAMS, tokens, dtype=torch.float64)


def decode(found, base):
    return found.value - 0.1 * base * found.weight.sum(-1, keepdim=True)


def assert_same(found: Memory, expected: Memory):
    """The same records in the same slots, values to float tolerance."""
    for field in dataclasses.fields(Memory):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if one.dtype.is_floating_point:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, msg=lambda text, f=field: f"{f.name}: {text}")
        else:
            assert torch.equal(one, other), field.name


@settings(max_examples=30, deadline=None)
@given(
    seeds,
    evictions,
    signals,
    st.sampled_from([-math.inf, -0.5, 0.0, 0.5]),
    st.sampled_from(SHAPES),
    st.sampled_from([0.0, 2.0]),
    st.sampled_from([None, "again"]),
)
def test_waves_are_one_record_at_a_time(seed, eviction, signal, gamma, shape, skew, records):
    config = NexusConfig(eviction=eviction, regret_gamma=gamma, gate_signal=signal, ema=0.7)
    buckets, slots = shape
    stream = random_stream(seed, 80, buckets, 23, skew, records)
    memory = cleared(buckets, slots, 23)
    waved, diagnostics = warm(memory, stream, config, decode)
    assert_same(waved, warm_plainly(memory, stream, config, decode))
    assert diagnostics["waves"] == np.bincount(stream.candidates.bucket).max()
    # a second pass meets its own records and full buckets
    again = dataclasses.replace(stream, signal=stream.signal.flip(0))
    assert_same(warm(waved, again, config, decode)[0], warm_plainly(waved, again, config, decode))


@pytest.mark.parametrize("signal", ["entropy", "residual"])
@pytest.mark.parametrize(("buckets", "slots"), [(512, 32), (2048, 8), (4096, 4)])
def test_waves_are_one_record_at_a_time_in_the_true_geometries(buckets, slots, signal):
    config = NexusConfig(gate_signal=signal, regret_gamma=-0.5)
    stream = random_stream(0, 800, buckets, 60, skew=1.5)
    memory = cleared(buckets, slots, 60)
    waved, diagnostics = warm(memory, stream, config, decode)
    assert_same(waved, warm_plainly(memory, stream, config, decode))
    assert diagnostics["evictions"] > 0 and 0 < diagnostics["gated_density"] < 0.95


@quick
@given(seeds, evictions, st.sampled_from([-math.inf, -0.5, 0.0, 0.5]), st.integers(0, 4))
def test_by_entropy_a_tokens_records_may_lie_in_several_buckets(seed, eviction, gamma, priming):
    config = NexusConfig(eviction=eviction, regret_gamma=gamma, ema=0.7, priming=priming)
    stream = random_stream(seed, 80)
    stream.candidates.bucket = stream.candidates.bucket[torch.from_numpy(np.random.default_rng(seed).permutation(80))]
    warmed = warm_in_full(cleared(), stream, config)
    assert_same(warmed.memory, warm_plainly(cleared(), stream, config))
    for b, tokens in enumerate(warmed.buckets.tokens.tolist()):
        assert tokens == len(stream.candidates.token[stream.candidates.bucket == b].unique())


@quick
@given(seeds, st.integers(1, 3))
def test_a_pass_over_more_records_than_a_block_holds(seed, buckets):
    """Waves far beyond one block of similarities, wide and thin."""
    stream = random_stream(seed, 300, buckets, 9, skew=1.0)
    memory, config = cleared(buckets, 4, 9), NexusConfig(regret_gamma=-1.0)
    assert_same(warm(memory, stream, config)[0], warm_plainly(memory, stream, config))


@quick
@given(seeds)
def test_a_bucket_ends_with_the_highest_priorities_ever_admitted_in_any_order(seed):
    """With admission open and priorities that no read changes."""
    config = NexusConfig(regret_gamma=-math.inf, novelty_weight=0.0, rarity_weight=0.0)
    stream = random_stream(seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(60))
    for rows in (torch.arange(60), order):
        memory, _ = warm(cleared(), stream.take(rows), config)
        for bucket, held in enumerate(memory.record):
            offered = (stream.candidates.bucket == bucket).nonzero()[:, 0].tolist()
            best = sorted(offered, key=lambda i: -float(stream.surprisal[i]))[:3]
            assert sorted(held[held != EMPTY].tolist()) == sorted(best)


@quick
@given(seeds, st.lists(st.floats(-3, 3), min_size=2, max_size=5), evictions)
def test_density_does_not_rise_with_gamma_from_minus_to_plus_infinity(seed, gammas, eviction):
    """With scores fixed: keys at right angles, so that no read changes what the gate sees."""
    stream = random_stream(seed, width=60)
    stream.candidates.key = torch.eye(60, dtype=torch.float64)
    density = []
    for gamma in (-math.inf, *sorted(gammas), math.inf):
        config = NexusConfig(regret_gamma=gamma, eviction=eviction)
        _, seen = warm(cleared(width=60), stream, config)
        assert seen["write_density"] == pytest.approx(seen["primed_density"] + seen["gated_density"])
        density.append(seen["write_density"])
    assert density == sorted(density, reverse=True) and density[0] == 1
    assert seen["gated_density"] == 0 and density[-1] == seen["primed_density"]


@quick
@given(seeds, st.integers(0, 4), signals)
def test_priming_is_counted_apart_and_is_all_that_an_infinite_gamma_admits(seed, priming, signal):
    stream = random_stream(seed)
    expected = np.minimum(np.bincount(stream.candidates.token, minlength=11), priming).sum() / 60
    for gamma, gated in ((-math.inf, 1 - expected), (math.inf, 0)):
        config = NexusConfig(regret_gamma=gamma, priming=priming, gate_signal=signal)
        memory, seen = warm(cleared(), stream, config, decode)
        assert seen["primed_density"] == pytest.approx(expected) and seen["gated_density"] == pytest.approx(gated)
    assert torch.equal(memory.count, torch.bincount(stream.candidates.token, minlength=11))


@quick
@given(seeds, signals, st.floats(-1, 1))
def test_the_similarity_suppressor_stays_between_0_and_1(seed, signal, turn):
    """Also for keys that point away from each other, or are a little longer than 1."""
    config = NexusConfig(gate_signal=signal, surprisal_weight=0, rarity_weight=0, regret_gamma=-math.inf)
    stream = random_stream(seed)
    stream.candidates.key = 1.001 * torch.sign(torch.cos(torch.arange(60) * turn))[:, None] * stream.candidates.key[:1]
    memory, seen = warm(cleared(slots=20), stream, config, decode)
    novelty = memory.priority[memory.record != EMPTY]  # all that the priority is made of here
    assert novelty.min() >= 0 and novelty.max() <= 1 and 0 <= seen["warm_sim_max"] <= 1
    assert novelty.max() == 1  # whoever comes first finds nothing


@quick
@given(seeds, evictions, st.sampled_from([None, "again"]))
def test_what_is_told_of_each_bucket(seed, eviction, records):
    stream, config = random_stream(seed, skew=1.0, records=records), NexusConfig(eviction=eviction, regret_gamma=-0.5)
    warmed = warm_in_full(cleared(), stream, config)
    report, seen = warmed.buckets, warmed.diagnostics
    bucket, token = stream.candidates.bucket.numpy(), stream.candidates.token.numpy()
    for b in range(5):
        offered, tokens = int((bucket == b).sum()), len(set(token[bucket == b]))
        assert int(report.offered[b]) == offered and int(report.tokens[b]) == tokens
        assert int(report.collisions[b]) == max(0, offered - 3)
        assert int(report.token_collisions[b]) == max(0, tokens - 1)
        assert int(report.occupancy[b]) == int((warmed.memory.record[b] != EMPTY).sum())
    assert (report.offered >= report.admitted).all() and (report.admitted >= report.stored).all()
    assert seen["write_density"] == pytest.approx(int(report.admitted.sum()) / 60)
    for name in ("stored", "evictions", "collisions", "token_collisions"):
        assert seen[name] == int(getattr(report, name).sum())
    assert seen["occupancy"] == pytest.approx(int(report.occupancy.sum()) / 15)
    memory, stored, evicted = cleared(), torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)
    for i in range(60):
        before, memory = memory, warm_plainly(memory, stream.take(slice(i, i + 1)), config)
        written = memory.stamp != before.stamp
        stored += written.any(1)
        evicted += (written & (before.record != EMPTY) & (before.record != memory.record)).any(1)
    assert torch.equal(report.stored, stored) and torch.equal(report.evictions, evicted)


def test_a_token_in_two_buckets_is_refused_before_anything_is_done():
    stream = random_stream(0)
    stream.candidates.bucket[7] += 1
    with pytest.raises(ValueError, match="several buckets"):
        warm(cleared(buckets=6), stream, NexusConfig(gate_signal="residual"), decode)


def test_nothing_to_warm_leaves_a_memory_as_it_is():
    memory, _ = warm(cleared(), random_stream(0), NexusConfig())
    again, seen = warm(memory, random_stream(0).take(slice(0)), NexusConfig())
    assert again.equals(memory) and seen["write_density"] == 0 and seen["waves"] == 0


def test_warming_leaves_its_argument_alone():
    memory, _ = warm(cleared(), random_stream(1), NexusConfig())
    before = memory.clone()
    for signal in ("entropy", "residual"):
        warmed, _ = warm(memory, random_stream(0), NexusConfig(gate_signal=signal), decode)
        assert memory.equals(before) and not warmed.equals(before)
