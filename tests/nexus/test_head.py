"""The head by chunks against the head with all its logits: entropy, surprisal, cross-entropy and its gradients."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mantra_ray.nexus import adapter, compiled, head, transformer
from mantra_ray.nexus.adapter import distinct
from mantra_ray.nexus.compiled import Compiled
from mantra_ray.nexus.transformer import Transformer

quick = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)
sizes = {"rows": st.integers(1, 40), "vocabulary": st.integers(2, 300), "chunk": st.integers(1, 6000)}
scales = st.sampled_from([0.1, 1.0, 30.0, 1000.0])  # from nearly even to one token alone, whose rivals underflow


def draw(seed, rows, vocabulary, scale, width=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    hidden = scale * torch.randn(rows, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    target = torch.randint(0, vocabulary, (rows, 3), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), target


def plain(hidden, weight):
    return hidden @ weight.T / hidden.shape[-1] ** 0.5


@quick
@given(seed=seeds, scale=scales, **sizes)
def test_entropy_and_surprisal_are_those_of_the_logits(seed, scale, rows, vocabulary, chunk):
    hidden, weight, content = draw(seed, rows, vocabulary, scale)
    log_p = torch.log_softmax(plain(hidden, weight), dim=-1)
    found = head.entropy(hidden, weight, content, reduced=False, chunk=chunk)
    expected = torch.special.entr(log_p.exp()).sum(-1), -log_p.gather(1, content).mean(-1)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == (rows,) and torch.allclose(mine, theirs, rtol=1e-9, atol=1e-9)


@quick
@given(seed=seeds, scale=scales, factor=st.sampled_from([1.0, -2.5]), **sizes)
def test_cross_entropy_and_its_gradients_are_those_of_the_logits(seed, scale, factor, rows, vocabulary, chunk):
    found = []
    for by_chunks in (False, True):
        hidden, weight, target = draw(seed, rows, vocabulary, scale)
        if by_chunks:
            loss = head.cross_entropy(hidden, weight, target[:, 0], reduced=False, chunk=chunk)
        else:
            loss = F.cross_entropy(plain(hidden, weight), target[:, 0])
        (factor * loss).backward()
        found.append((loss, hidden.grad, weight.grad))
    for mine, theirs in zip(*found, strict=True):
        assert mine.dtype == theirs.dtype and torch.allclose(mine, theirs, rtol=1e-9, atol=1e-9 * scale)


@quick
@given(seed=seeds, scale=scales, **sizes)
def test_without_a_gradient_the_loss_is_the_same(seed, scale, rows, vocabulary, chunk):
    hidden, weight, target = draw(seed, rows, vocabulary, scale)
    with torch.no_grad():
        loss = head.cross_entropy(hidden, weight, target[:, 0], reduced=False, chunk=chunk)
    assert not loss.requires_grad
    assert torch.allclose(loss, head.cross_entropy(hidden, weight, target[:, 0], reduced=False), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reduced", [False, True])
def test_one_chunk_is_the_plain_form_bit_for_bit(reduced):
    hidden, weight, target = draw(0, 20, 100, 1.0, dtype=torch.float32)
    logits = head.logits(hidden, weight, reduced)
    log_p = torch.log_softmax(logits, dim=-1)
    signal, surprisal = head.entropy(hidden, weight, target, reduced, chunk=2000)
    assert torch.equal(signal, -(log_p.exp() * log_p).sum(-1))
    assert torch.equal(surprisal, -log_p.gather(1, target).mean(-1))
    loss = head.cross_entropy(hidden, weight, target[:, 0], reduced, chunk=2000)
    assert torch.equal(loss, F.cross_entropy(logits, target[:, 0]))
    mine = torch.autograd.grad(loss, (hidden, weight))
    theirs = torch.autograd.grad(F.cross_entropy(logits, target[:, 0]), (hidden, weight))
    assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))


def test_in_bfloat16_chunks_are_as_near_to_the_truth_as_the_plain_form():
    """Products are rounded to bfloat16; sums over tokens and over chunks are not."""
    errors = {}
    for chunk in (2**20, 2000):
        hidden, weight, target = draw(3, 400, 500, 2.0, width=32, dtype=torch.float32)
        exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
        F.cross_entropy(plain(*exact), target[:, 0]).backward()
        loss = head.cross_entropy(hidden, weight, target[:, 0], reduced=True, chunk=chunk)
        loss.backward()
        found = zip((hidden.grad, weight.grad), (one.grad for one in exact), strict=True)
        errors[chunk] = [float((mine - true).square().mean() / true.square().mean()) ** 0.5 for mine, true in found]
        assert loss.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    for whole, by_chunks in zip(*errors.values(), strict=True):
        assert 1e-5 < by_chunks < 1.2 * whole < 0.03


class Largest(TorchDispatchMode):
    """Notes the most numbers that any tensor made meanwhile holds."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


def test_no_more_logits_than_a_chunk_are_ever_there():
    rows, vocabulary, chunk = 500, 400, 10_000
    hidden, weight, target = draw(0, rows, vocabulary, 1.0)
    with Largest() as seen:
        plain(hidden, weight)
    assert seen.numbers == rows * vocabulary
    for work in (
        lambda: head.cross_entropy(hidden, weight, target[:, 0], False, chunk=chunk).backward(),
        lambda: head.entropy(hidden.detach(), weight.detach(), target, False, chunk=chunk),
        lambda: head.cross_entropy(hidden.detach(), weight.detach(), target[:, 0], False, chunk=chunk),
    ):
        with Largest() as seen:
            work()
        assert chunk / 2 < seen.numbers <= chunk


@quick
@given(st.integers(1, 10**6), st.integers(1, 10**9))
def test_chunks_hold_rows_in_whole_tiles_where_they_hold_a_tile(vocabulary, chunk):
    rows = head.rows_at_once(vocabulary, chunk)
    assert rows >= 1 and (rows == 1 or rows * vocabulary <= chunk)
    assert rows % head.TILE == 0 or rows < head.TILE
    assert rows >= min(chunk // vocabulary, head.TILE) and 2 * rows * vocabulary > chunk - vocabulary


def test_chunks_are_the_same_bit_for_bit_when_asked_for_determinism():
    found = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            hidden, weight, target = draw(1, 60, 90, 1.0, dtype=torch.float32)
            head.cross_entropy(hidden, weight, target[:, 0], reduced=False, chunk=900).backward()
            found.append((hidden.grad, weight.grad))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that are compiled meanwhile; they run as they are. Small calls are compiled as well."""
    made, compile = [], torch.compile

    def backend(graph, examples):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend=backend, **options))
    monkeypatch.setattr(compiled, "FEW", 0)
    torch._dynamo.reset()
    yield made
    torch._dynamo.reset()


def test_one_graph_serves_any_number_of_rows(graphs):
    function = Compiled(lambda x, y, exponent: (x * y).sum(-1) ** exponent, batched=2)
    for rows in (5, 9, 4):
        x, y = torch.rand(2, rows, 3)
        assert torch.allclose(function(True, x, y, 2), (x * y).sum(-1) ** 2) and len(graphs) == 1
        function(False, x, y, 2)
    function(True, torch.rand(5, 4), torch.rand(5, 4), 2)
    assert len(graphs) == 2


def test_small_calls_are_never_compiled(graphs, monkeypatch):
    monkeypatch.setattr(compiled, "FEW", 13)
    function = Compiled(torch.sin)
    function(True, torch.rand(4, 3))
    assert not graphs
    function(True, torch.rand(5, 3))
    assert len(graphs) == 1


def test_where_the_compiler_fails_the_function_runs_as_written(monkeypatch):
    def backend(graph, examples):
        raise RuntimeError("no compiler here")

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend=backend, **options))
    monkeypatch.setattr(compiled, "FEW", 0)
    function, x = Compiled(lambda x: x.square().sum(-1)), torch.rand(5, 3)
    with pytest.warns(UserWarning, match=r"(?s)uncompiled.*no compiler here"):
        assert torch.equal(function(True, x), x.square().sum(-1))
    assert torch.equal(function(True, x), x.square().sum(-1))  # and is not tried again


@pytest.mark.parametrize("last", [False, True])
def test_a_compiled_transformer_is_the_one_as_written(graphs, monkeypatch, last):
    torch.manual_seed(0)
    monkeypatch.setattr(transformer, "_block", Compiled(transformer._through))
    model = Transformer(30, 16, 3, 2, 0.0).double()
    other = copy.deepcopy(model)
    other.compiled = True
    for rows in (7, 12):
        tokens, target = torch.randint(0, 30, (rows, 5)), torch.randint(0, 30, (rows, 1 if last else 5))
        for one in (model, other):
            one.zero_grad()
            one.cross_entropy(one(tokens, last=last), target).backward()
        for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
            assert torch.allclose(p.grad, q.grad, atol=1e-9), name
    assert 2 <= len(graphs) <= 4  # blocks share theirs, but for the last one, and the first, whose input is none


def test_compiling_is_for_long_runs_on_a_gpu_alone():
    model = Transformer(30, 16, 1, 2, 0.0)
    model.compile_for_(2**40)
    assert not model.compiled


@quick
@given(seeds, st.integers(0, 50), st.integers(1, 4))
def test_distinct_headers_are_each_there_once_and_found_again(seed, rows, vocabulary):
    generator = torch.Generator().manual_seed(seed)
    header = torch.randint(0, vocabulary, (rows, 3), generator=generator)
    known = torch.rand(rows, generator=generator) < 0.7
    found, seen, place = distinct(header, known, vocabulary)
    assert torch.equal(found[place, 1:], header[:, 1:]) and torch.equal(seen[place], known)
    assert torch.equal(found[place, 0][known], header[known, 0])
    rows = [(*one[1:], kept and one[0], kept) for one, kept in zip(found.tolist(), seen.tolist(), strict=True)]
    assert len(set(rows)) == len(found) and sorted(place.unique().tolist()) == list(range(len(found)))


def test_hidden_states_of_distinct_headers_are_those_of_all(build, monkeypatch):
    case, sizes = build(), []
    monkeypatch.setattr(adapter, "AT_ONCE", 10)
    case.model.transformer.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    twice = case.test.take(torch.arange(len(case.test)).repeat(2))
    known = torch.arange(len(twice)) % 3 > 0
    with torch.no_grad():
        expected = case.model.hidden(twice, known)[:, -1:]
        found = case.model._each_once(twice.header, known)
    assert torch.allclose(found, expected, atol=1e-6)
    assert sizes[0] == len(twice) == 40 and max(sizes[1:]) == 10
    named = zip(twice.header.tolist(), known.tolist(), strict=True)
    assert sum(sizes[1:]) == len({(*rest, kept and first, kept) for (first, *rest), kept in named})
