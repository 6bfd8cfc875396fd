"""The head's kernels against softmax in float64: compiled where there is a GPU, else in Triton's interpreter.

The interpreter is chosen when triton is imported, so it has a process of its own, in which this file runs once more.
"""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mantra_ray.nexus import head

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
COMPILED = torch.cuda.is_available() and not INTERPRETED
DEVICE = "cuda" if COMPILED else "cpu"
runs = pytest.mark.skipif(not (INTERPRETED or COMPILED), reason="runs in the interpreter's own process")
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]  # none is made shorter, they are short
quick = settings(max_examples=60 if COMPILED else 15, deadline=None, phases=PHASES)
drawn = given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 5),
    width=st.integers(2, 90),
    spare=st.sampled_from([0, 1, 38]),
    block=st.sampled_from([16, 128]),  # several of them, or one
    scale=st.sampled_from([0.1, 3.0, 300.0]),  # from nearly even to one token alone, whose rivals underflow
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)


@pytest.mark.skipif(INTERPRETED or COMPILED, reason="runs here")
def test_this_file_in_the_interpreter():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "failed" not in done.stdout


def made(seed, rows, width, spare, scale, dtype):
    """Logits with columns that nobody may look at, and the logarithms of their softmax in float64."""
    draw = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(rows, width + spare, generator=draw)).to(dtype)
    logits[:, width:] = 1000.0
    target = torch.randint(0, width, (rows, 3), generator=draw)
    return logits.to(DEVICE), target.to(DEVICE), torch.log_softmax(logits[:, :width].double(), dim=-1).to(DEVICE)


@runs
@quick
@drawn
def test_entropy_and_surprisal(seed, rows, width, spare, block, scale, dtype):
    logits, content, log_p = made(seed, rows, width, spare, scale, dtype)
    before = logits.clone()
    entropy, surprisal = head.describe(logits, width, content, block)
    assert torch.equal(logits, before)
    assert torch.allclose(entropy.double(), torch.special.entr(log_p.exp()).sum(-1), rtol=1e-5, atol=1e-5)
    assert torch.allclose(surprisal.double(), -log_p.gather(1, content).mean(-1), rtol=1e-5, atol=1e-5)


@runs
@quick
@drawn
def test_cross_entropy_and_its_gradient(seed, rows, width, spare, block, scale, dtype):
    logits, target, log_p = made(seed, rows, width, spare, scale, dtype)
    told = target[:, :1]
    loss = head.descend_(logits, width, told[:, 0], block)
    gradient = log_p.exp().scatter_add(1, told, -torch.ones_like(told, dtype=torch.float64))
    rounding = 1e-6 if dtype == torch.float32 else 2**-8 if COMPILED else 2**-7  # the interpreter cuts off
    assert torch.allclose(loss.double(), -log_p.gather(1, told)[:, 0], rtol=1e-5, atol=1e-5)
    assert torch.allclose(logits[:, :width].double(), gradient, rtol=rounding, atol=1e-6)
    assert not logits[:, width:].any()
