"""The fused read against a plain loop in float64, its gradient against autograd of the plain form.

On a GPU the kernels run compiled. Without one Triton interprets them, which must be said before it is imported: so a
process of its own runs this file again.
"""

import importlib.util
import math
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from mantra_ray.nexus import fused_read
from mantra_ray.nexus.cam import EMPTY, Memory
from mantra_ray.nexus.fused_read import SWITCH, Asked, Tiles, form_of, recall

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
READY = DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
compiled = pytest.mark.skipif(not READY, reason="runs in the process that test_the_kernels_in_an_interpreter starts")
slowly = settings(  # an interpreted kernel takes a tenth of a second
    max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate]
)
seeds = st.integers(0, 2**32 - 1)
forms = st.sampled_from(["rows", "tiles"])
FOUND = ("value", "sim_max", "spread", "weight", "same_state")
NUMBERS = ("key", "value", "priority", "mean", "variance")


@pytest.mark.skipif(READY, reason="the kernels run in this process")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")
def test_the_kernels_in_an_interpreter():
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", __file__]
    where = Path(__file__).parents[2]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=where, capture_output=True, text=True
    )
    assert done.returncode == 0 and " 2 skipped" in done.stdout, done.stdout + done.stderr


def make_memory(rng, buckets, slots, width, values, filled=0.7, held=None, dtype=torch.float32):
    """Some slots filled, bucket 0 empty; with room for `held` slots, of which `slots` are to be read."""
    memory = Memory.empty(buckets, held or slots, width, values, 4, dtype=dtype, device=DEVICE)
    shape = buckets, held or slots
    there = torch.from_numpy(rng.random(shape) < filled).to(DEVICE)
    there[0] = False
    numbers = torch.from_numpy(rng.normal(size=(*shape, width + values))).to(DEVICE)
    offset = 10 * torch.from_numpy(rng.normal(size=values)).to(DEVICE)  # spreads are small beside the values
    memory.key.copy_(normalize(numbers[..., :width], dim=-1) * there[..., None])
    memory.value.copy_((numbers[..., width:] + offset) * there[..., None])
    for name, low, high in (("token", EMPTY, 4), ("state", EMPTY, 3), ("record", 0, 40)):
        drawn = torch.from_numpy(rng.integers(low, high, shape)).to(DEVICE)
        getattr(memory, name).copy_(torch.where(there, drawn, EMPTY))
    return Memory(**{f.name: getattr(memory, f.name)[:, :slots] for f in fields(memory)[:7]}, **kept(memory))


def kept(memory):
    return {name: getattr(memory, name) for name in ("mean", "variance", "count")}


def make_queries(rng, count, memory, tokens=6, hide=True):
    """Queries [N, D] and `Asked`; tokens from 4 on are held by no slot."""

    def draw(high):
        return torch.from_numpy(rng.integers(0, high, count)).to(DEVICE)

    query = normalize(torch.from_numpy(rng.normal(size=(count, memory.key.shape[2]))), dim=-1).to(DEVICE)
    state, token = draw(3), draw(tokens)
    hidden = [torch.where(draw(3) == 0, labels, EMPTY) if hide else None for labels in (state, draw(4))]
    return query, Asked(draw(len(memory.key)), token, draw(40), state, *hidden)


def to(dtype, memory):
    return Memory(**{f.name: getattr(memory, f.name) for f in fields(memory)} | {
        name: getattr(memory, name).to(dtype) for name in NUMBERS
    })  # fmt: skip


def loop(memory, query, asked, tau):
    """All that a read finds, one query after another as plain Python in float64."""
    values, slots = memory.value.shape[2], memory.record.shape[1]
    held = {name: getattr(memory, name).double().tolist() for name in ("key", "value", "token", "record", "state")}
    found = {name: [] for name in (*FOUND, "matches", "hard")}
    nothing = [EMPTY] * len(query)
    labels = [nothing if part is None else part.tolist() for part in asked]
    for q, b, token, record, state, hide_state, hide_token in zip(query.double().tolist(), *labels, strict=True):
        key, value, tokens, records, states = (held[name][b] for name in held)
        seen = [s for s in range(slots) if records[s] not in (EMPTY, record)]
        seen = [s for s in seen if hide_state == EMPTY or states[s] != hide_state]
        seen = [s for s in seen if hide_token == EMPTY or tokens[s] != hide_token]
        own = [s for s in seen if tokens[s] == token]
        part = own or seen
        cosine = {s: sum(x * y for x, y in zip(q, key[s], strict=True)) for s in part}
        top = max(cosine.values(), default=0.0)
        power = {s: math.exp((cosine[s] - top) / tau) for s in part}
        weight = [power.get(s, 0.0) / sum(power.values()) if part else 0.0 for s in range(slots)]
        mean = [sum(weight[s] * value[s][v] for s in part) for v in range(values)]
        off = [sum((value[s][v] - mean[v]) ** 2 for v in range(values)) / values for s in range(slots)]
        spread = sum(weight[s] * off[s] for s in part)
        same = sum(weight[s] for s in part if states[s] == state)
        row = (mean, min(max(top, 0.0), 1.0), spread, weight, same, len(own), bool(own))
        for name, what in zip(found, row, strict=True):
            found[name].append(what)
    return {name: torch.tensor(what) for name, what in found.items()}


def near(one, other, tolerance):
    one, other = one.cpu().double(), other.cpu().double()
    assert float((one - other).abs().max()) <= tolerance * (1 + float(other.abs().max()))


sizes = st.tuples(
    st.integers(1, 4),  # buckets
    st.integers(1, 9),  # slots
    st.sampled_from([3, 16, 21]),  # key width
    st.sampled_from([1, 5, 32, 37]),  # value width
    st.integers(1, 12),  # queries
)


@compiled
@slowly
@given(seeds, forms, sizes, st.sampled_from([0.1, 1.0]), st.booleans(), st.sampled_from([4, 6]))
def test_a_fused_read_is_a_plain_loop(seed, form, size, tau, hide, tokens):
    rng = np.random.default_rng(seed)
    buckets, slots, width, values, count = size
    memory = make_memory(rng, buckets, slots, width, values, held=slots + int(rng.integers(0, 3)))
    query, asked = make_queries(rng, count, memory, tokens, hide)
    found = recall(memory, query.float(), *asked, tau, form)
    for name, wanted in loop(memory, query.float(), asked, tau).items():
        near(getattr(found, name), wanted, 3e-6 / min(tau, 1.0))
    silent = found.weight.sum(-1) == 0
    assert not found.value[silent].any() and not found.sim_max[silent].any() and not found.spread[silent].any()


@compiled
@slowly
@given(seeds, forms, sizes)
def test_its_gradient_is_that_of_the_plain_form(seed, form, size):
    rng = np.random.default_rng(seed)
    buckets, slots, width, values, count = size
    memory = make_memory(rng, buckets, slots, width, values, filled=0.9)
    query, asked = make_queries(rng, count, memory)
    near(*gradients(memory, query, asked, form, rng, torch.float32), 2e-4)


def gradients(memory, query, asked, form, rng, dtype, tau=0.1):
    """Towards the queries, of random sums of all results: by the kernels and by the plain form in float64."""
    given = query.to(dtype).requires_grad_(), query.to(dtype).double().requires_grad_()
    reads = (
        recall(memory, given[0], *asked, tau, form),
        recall(to(torch.float64, memory), given[1], *asked, tau, "plain"),
    )
    factors = {name: torch.from_numpy(rng.normal(size=getattr(reads[1], name).shape)).to(DEVICE) for name in FOUND}
    grads = []
    for read, asks in zip(reads, given, strict=True):
        total = sum((getattr(read, name) * by.to(dtype).to(asks.dtype)).sum() for name, by in factors.items())
        grads.append(torch.autograd.grad(total, asks)[0])
    assert grads[0].dtype == dtype
    return grads


@compiled
@slowly
@given(seeds, forms)
def test_ties_and_ends_of_the_clamp_pass_gradients_as_torch_does(seed, form):
    rng = np.random.default_rng(seed)
    memory = make_memory(rng, 3, 5, 8, 3)
    # products of halves are exact: equal cosines, 0 beside hidden slots, 1 and beyond all happen
    memory.key.copy_(
        torch.from_numpy(rng.integers(-1, 2, memory.key.shape) / 2) * (memory.record != EMPTY)[..., None].cpu()
    )
    query, asked = make_queries(rng, 30, memory)
    query = torch.from_numpy(rng.integers(-1, 2, query.shape) / 2).to(DEVICE)
    near(*gradients(memory, query, asked, form, rng, torch.float32, tau=1.0), 1e-5)


@compiled
@pytest.mark.parametrize("form", ["rows", "tiles"])
def test_an_empty_bucket_reads_exactly_zero_and_gives_no_gradient(form):
    rng = np.random.default_rng(0)
    memory = make_memory(rng, 2, 3, 8, 5, filled=1.0)
    query, asked = make_queries(rng, 6, memory, hide=False)
    query = query.float().requires_grad_()
    found = recall(memory, query, torch.zeros_like(asked.bucket), *asked[1:], 0.1, form)
    assert not any(getattr(found, name).any() for name in (*FOUND, "matches", "hard"))
    sum(getattr(found, name).sum() for name in FOUND).backward()
    assert not query.grad.any()


@compiled
@pytest.mark.parametrize("form", ["rows", "tiles"])
@pytest.mark.parametrize("query_dtype", [torch.bfloat16, torch.float32])
def test_a_memory_in_bfloat16_is_read_in_float32(form, query_dtype):
    rng = np.random.default_rng(1)
    memory = make_memory(rng, 3, 7, 32, 20, dtype=torch.bfloat16)
    query, asked = make_queries(rng, 50, memory)
    query = query.to(query_dtype)
    found = recall(memory, query, *asked, 0.1, form)
    tolerance = 2e-5 if query_dtype == torch.float32 else 2**-7  # that of the result's own type
    for name, wanted in loop(memory, query, asked, 0.1).items():
        near(getattr(found, name), wanted, tolerance)
    assert all(getattr(found, name).dtype == query_dtype for name in FOUND)
    near(*gradients(memory, query, asked, form, rng, query_dtype), 2e-4 if query_dtype == torch.float32 else 2**-6)


@compiled
@pytest.mark.parametrize("form", ["rows", "tiles"])
def test_one_record_recalled_alone_has_no_spread_and_the_same_read_gives_the_same_bits(form):
    rng = np.random.default_rng(2)
    memory = make_memory(rng, 3, 6, 16, 40, filled=1.0)
    memory.token.copy_(torch.arange(6).expand(3, 6))
    query, asked = make_queries(rng, 90, memory, hide=False)
    query = query.float().requires_grad_()
    reads, grads = [], []
    for _ in range(2):
        reads.append(recall(memory, query, *asked, 0.1, form))
        grads += torch.autograd.grad(sum(getattr(reads[-1], name).sum() for name in FOUND), query)
    assert torch.equal(*grads)
    assert all(torch.equal(one, other) for one, other in zip(*(vars(read).values() for read in reads), strict=True))
    alone = reads[0].hard
    assert alone.any() and (reads[0].matches[alone] == 1).all() and not reads[0].spread[alone].any()


@compiled
def test_a_memory_written_before_the_backward_pass_is_refused():
    rng = np.random.default_rng(3)
    memory = make_memory(rng, 2, 3, 8, 5)
    query, asked = make_queries(rng, 4, memory)
    found = recall(memory, query.float().requires_grad_(), *asked, 0.1, "rows")
    memory.value.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.value.sum().backward()


@compiled
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_a_gpu_reads_by_rows_and_by_tiles_where_buckets_have_many_queries(monkeypatch):
    memory = make_memory(np.random.default_rng(4), 2, 3, 8, 5)
    query = torch.ones(64, 8, device=DEVICE)
    assert form_of(memory, query) == "rows" and form_of(memory, query[:0]) == "plain"
    monkeypatch.setattr(fused_read, "SORTED_BYTES", 0)
    assert form_of(memory, query) == "rows"  # 3 slots
    monkeypatch.setattr(fused_read, "LEAST_TILED", 3)
    assert form_of(memory, query) == "tiles" and form_of(memory, query[:63]) == "rows"
    assert form_of(to(torch.float64, memory), query) == "plain"
    monkeypatch.setattr(fused_read, "load_kernels", lambda: None)
    assert form_of(memory, query) == "plain"


@given(seeds, st.integers(1, 5), st.sampled_from([1, 4, 32]))
@settings(max_examples=40, deadline=None)
def test_every_query_lies_in_one_tile_of_its_bucket(seed, buckets, rows):
    rng = np.random.default_rng(seed)
    bucket = torch.from_numpy(rng.integers(0, buckets, int(rng.integers(1, 100))))
    tiles = Tiles.of(bucket, buckets, rows)
    seen = []
    for tile, b in enumerate(tiles.which.tolist()):
        if b < buckets:
            first = int(tiles.edge[b]) + (tile - int(tiles.end[b] - tiles.count[b])) * rows
            own = tiles.order[first : min(first + rows, int(tiles.edge[b + 1]))]
            assert len(own) and (bucket[own] == b).all()
            seen += own.tolist()
    assert sorted(seen) == list(range(len(bucket)))
    assert int(tiles.count.sum()) == int((tiles.which < buckets).sum())  # the bound leaves none out


def test_a_cpu_reads_plainly_unless_another_form_is_asked_for(monkeypatch):
    rng = np.random.default_rng(5)
    memory = make_memory(rng, 2, 3, 8, 5, dtype=torch.float64)
    memory = Memory(**{name: t.cpu() for name, t in vars(memory).items()})
    query, asked = make_queries(rng, 4, memory)
    query, asked = query.cpu(), Asked(*(part.cpu() for part in asked))
    assert form_of(memory, query) == "plain"
    plain = recall(memory, query, *asked, 0.1)
    for form in ("rows", "sideways"):
        with pytest.raises(ValueError):  # float64, and no such form
            recall(memory, query, *asked, 0.1, form)
        monkeypatch.setenv(SWITCH, form)
        with pytest.raises(ValueError):
            recall(memory, query, *asked, 0.1)
    monkeypatch.setenv(SWITCH, "plain")
    again = recall(memory, query, *asked, 0.1)
    assert all(torch.equal(one, other) for one, other in zip(vars(plain).values(), vars(again).values(), strict=True))


def test_without_triton_there_are_no_kernels(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("kernels", "tile_kernels"):
        monkeypatch.delitem(sys.modules, f"mantra_ray.nexus.{name}", raising=False)
        monkeypatch.delattr(f"mantra_ray.nexus.{name}", raising=False)
    assert fused_read.load_kernels.__wrapped__() is None


def test_a_cpu_imports_no_triton():
    code = (
        "import sys, torch; from mantra_ray.nexus import reader; from mantra_ray.nexus.cam import Memory\n"
        "zero = torch.zeros(1, dtype=torch.int64); memory = Memory.empty(1, 1, 2, 2, 1)\n"
        "reader.recall(memory, torch.ones(1, 2), zero, zero, zero, zero, None, None, 0.1)\n"
        "sys.exit('triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
