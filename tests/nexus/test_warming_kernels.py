"""The warming pass's kernels against one record at a time: compiled where there is a GPU, else in Triton's interpreter.

The interpreter is chosen when triton is imported, so it has a process of its own, in which this file runs once more.
"""

import dataclasses
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mantra_ray.bench.warming import single
from mantra_ray.config import NexusConfig
from mantra_ray.nexus.cam import Candidates, Memory
from mantra_ray.nexus.warming import Stream, Warmed, kernels_run, warm, warm_in_full, warm_plainly

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
COMPILED = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if COMPILED else "cpu"
WIDTH, VALUE, TOKENS = 6, 4, 13
runs = pytest.mark.skipif(not (INTERPRETED or COMPILED), reason="runs in the interpreter's own process")
# the interpreter is slow, and its streams are short: none is made shorter
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]
few = settings(max_examples=80, deadline=None) if COMPILED else settings(max_examples=8, deadline=None, phases=PHASES)
seeds = st.integers(0, 2**32 - 1)
evictions = st.sampled_from(["pss", "fifo", "random"])


def random_stream(seed, count=40, buckets=5, skew=0.0, again=False, strewn=False, width=WIDTH):
    """Tokens by Zipf's law; records may come again and again, and a token's lie strewn over all buckets."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, TOKENS + 1) ** -float(skew)
    token = torch.from_numpy(rng.choice(TOKENS, count, p=share / share.sum())).to(DEVICE)

    def normal(*shape):
        return torch.from_numpy(rng.normal(size=shape)).to(DEVICE)

    def number(below):
        return torch.from_numpy(rng.integers(0, below, count)).to(DEVICE)

    candidates = Candidates(
        bucket=number(buckets) if strewn else token % buckets,
        key=torch.nn.functional.normalize(normal(count, width), dim=-1),
        value=normal(count, VALUE),
        token=token,
        record=token + TOKENS * number(3) if again else torch.arange(count, device=DEVICE),
        state=number(2),
        stamp=torch.arange(count, device=DEVICE),
    )
    surprisal = torch.from_numpy(rng.exponential(size=count)).to(DEVICE)
    return Stream(candidates, 3 + normal(count) / 2, surprisal, normal(count, 0), normal(count, 0))


def cleared(buckets=5, slots=3, width=WIDTH, dtype=torch.float64):
    return Memory.empty(buckets, slots, width, VALUE, TOKENS, dtype, DEVICE)


def assert_same(found: Memory, expected: Memory, tolerance=1e-9):
    """The same records in the same slots, values to float tolerance."""
    for field in dataclasses.fields(Memory):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        assert one.dtype == other.dtype, field.name
        if one.dtype.is_floating_point:
            torch.testing.assert_close(
                one, other, rtol=tolerance, atol=tolerance, msg=lambda text, f=field: f.name + text
            )
        else:
            assert torch.equal(one, other), field.name


def assert_tells_the_same(found: Warmed, expected: Warmed, tolerance=1e-9):
    assert found.diagnostics.keys() == expected.diagnostics.keys()
    for name in found.diagnostics.keys() - {"records_per_second"}:
        assert found.diagnostics[name] == pytest.approx(expected.diagnostics[name], rel=tolerance), name
    for field in dataclasses.fields(found.buckets):
        one, other = getattr(found.buckets, field.name), getattr(expected.buckets, field.name)
        assert one.device.type == "cpu" and torch.equal(one, other), field.name


@pytest.mark.skipif(INTERPRETED or COMPILED, reason="runs here")
def test_this_file_in_the_interpreter():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "failed" not in done.stdout


@runs
@few
@given(
    seeds,
    evictions,
    st.sampled_from([-math.inf, -0.5, 0.0, 0.5, math.inf]),
    st.sampled_from([(4, 8), (5, 3), (16, 1), (1, 5)]),
    st.sampled_from([0.0, 2.0]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
)
def test_kernels_are_one_record_at_a_time(seed, eviction, gamma, shape, skew, again, strewn, priming):
    config = NexusConfig(eviction=eviction, regret_gamma=gamma, ema=0.7, priming=priming)
    memory = cleared(*shape)
    stream = random_stream(seed, 40, shape[0], skew, again, strewn)
    # the second pass meets its own records and full buckets
    for each in (stream, dataclasses.replace(stream, signal=stream.signal.flip(0), surprisal=stream.surprisal.flip(0))):
        before = memory.clone()
        warmed, ledger = (warm_in_full(memory, each, config, kernels=kernels) for kernels in (True, False))
        assert memory.equals(before)
        assert_same(warmed.memory, warm_plainly(memory, each, config))
        assert_tells_the_same(warmed, ledger)
        for name in ("mean", "variance", "count"):  # which no sum in another order touches
            assert torch.equal(getattr(warmed.memory, name), getattr(ledger.memory, name)), name
        memory = warmed.memory


@runs
@few
@given(seeds, st.sampled_from([0.0, 0.3, 2.0]), evictions)
def test_a_memory_that_holds_other_records_already(seed, weight, eviction):
    config = NexusConfig(eviction=eviction, regret_gamma=-0.5, novelty_weight=weight, rarity_weight=0.1)
    first, second = random_stream(seed, 12), random_stream(seed + 1, 24, again=True)
    second.candidates.record += 12
    second.candidates.stamp += 12
    memory = warm_plainly(cleared(slots=4), first, config)
    assert_same(warm(memory, second, config, kernels=True)[0], warm_plainly(memory, second, config))


@runs
@pytest.mark.parametrize("eviction", ["pss", "fifo", "random"])
@pytest.mark.parametrize("width", [1, 5, 16])
def test_in_single_precision(eviction, width):
    """Streams of fixed seeds: at a tie sums of another order may decide otherwise."""
    config = NexusConfig(eviction=eviction, regret_gamma=-0.3)
    stream = single(random_stream(7, 60, skew=1.0, width=width))
    memory = cleared(width=width, dtype=torch.float32)
    warmed, ledger = (warm_in_full(memory, stream, config, kernels=kernels) for kernels in (True, False))
    assert_same(warmed.memory, warm_plainly(memory, stream, config), 1e-5)
    assert_tells_the_same(warmed, ledger, 1e-5)


@runs
def test_similarities_are_clipped():
    """Keys a little longer than 1, alike or opposed."""
    config = NexusConfig(surprisal_weight=0, rarity_weight=0, regret_gamma=-math.inf)
    stream = random_stream(3)
    sign = torch.sign(torch.cos(torch.arange(40, device=DEVICE) * 0.7)).double()
    stream.candidates.key = 1.001 * sign[:, None] * stream.candidates.key[:1]
    memory, seen = warm(cleared(slots=8), stream, config, kernels=True)
    assert_same(memory, warm_plainly(cleared(slots=8), stream, config))
    assert set(memory.priority.unique().tolist()) == {0.0, 1.0} and 0 < seen["warm_sim_max"] < 1


@runs
def test_nothing_to_warm_leaves_a_memory_as_it_is():
    stream = random_stream(0)
    memory, _ = warm(cleared(), stream, NexusConfig(), kernels=True)
    again, seen = warm(memory, stream.take(slice(0)), NexusConfig(), kernels=True)
    assert again.equals(memory) and seen["write_density"] == 0 and seen["waves"] == 0


@runs
@pytest.mark.skipif(not COMPILED, reason="thousands of programs")
@pytest.mark.parametrize("eviction", ["pss", "fifo", "random"])
@pytest.mark.parametrize(("buckets", "slots"), [(512, 32), (2048, 8), (4096, 4)])
def test_the_true_geometries_take_the_kernels_on_a_gpu(buckets, slots, eviction, monkeypatch):
    from mantra_ray.nexus import warming

    monkeypatch.setattr(warming, "warm_by_ledger", None)
    config = NexusConfig(eviction=eviction, regret_gamma=-0.5)
    stream, memory = random_stream(0, 1000, buckets, 1.5, width=256), cleared(buckets, slots, 256)
    assert_same(warm(memory, stream, config)[0], warm_plainly(memory, stream, config))


@runs
def test_buckets_beyond_a_programs_registers_are_left_to_the_ledger():
    from mantra_ray.nexus.warming_kernels import fits

    assert fits(cleared(2, 32, 256)) and fits(cleared(2, 257, 256)) and not fits(cleared(2, 513, 256))


def test_a_cpu_and_the_signal_residual_take_the_plain_path():
    memory = Memory.empty(2, 3, 4, 5, 6)
    assert not kernels_run(memory, NexusConfig())
    assert not kernels_run(cleared(), NexusConfig(gate_signal="residual"))
    with pytest.raises(ValueError, match="residual"):
        warm(memory, random_stream(0), NexusConfig(gate_signal="residual"), kernels=True)
