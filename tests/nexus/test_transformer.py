"""The small transformer: local causal attention, rotary places, the tied head, precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mantra_ray.nexus import transformer
from mantra_ray.nexus.transformer import (
    SHORT,
    Block,
    Transformer,
    last_attention,
    local_attention,
    rotate,
    rotation,
    spelled_attention,
)

quick = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31)


def make(layers=2, heads=2, dropout=0.0, seed=0, window=1024, precision="auto", width=8):
    torch.manual_seed(seed)
    model = Transformer(30, width, layers, heads, dropout, window, precision).double().eval()
    for block in model.blocks:  # branches start small: let them speak, so that a leak would be heard
        torch.nn.init.normal_(block.out.weight)
        torch.nn.init.normal_(block.feed[2].weight)
    return model


def draw(seed, *shape):
    return torch.randint(0, 30, shape, generator=torch.Generator().manual_seed(seed))


def replaced(tokens, place, seed=0):
    """`tokens` [N, L] with other ones at `place`."""
    other = tokens.clone()
    other[:, place] = (other[:, place] + 1 + draw(seed, *other[:, place].shape) % 29) % 30
    return other


@quick
@given(seeds, st.integers(1, 8), st.integers(1, 3), st.sampled_from([2, 3, 9, 1024]))
def test_a_later_token_never_changes_an_earlier_hidden_state(seed, place, layers, window):
    model = make(layers, seed=seed % 5, window=window)
    tokens = draw(seed, 4, 9)
    before, after = model(tokens), model(replaced(tokens, slice(place, None), seed))
    assert torch.allclose(before[:, :place], after[:, :place], atol=1e-12)
    assert (before[:, place:] - after[:, place:]).abs().amax(-1).min() > 1e-6
    assert torch.allclose(model(tokens[:, :place]), before[:, :place], atol=1e-12)  # nor does its absence


@quick
@given(seeds, st.integers(2, 6), st.integers(1, 20), st.integers(0, 19))
def test_one_layer_sees_a_window_and_no_further(seed, window, length, place):
    place %= length
    model, tokens = make(layers=1, window=window), draw(seed, 4, length)
    change = (model(tokens) - model(replaced(tokens, place, seed))).abs().amax((0, 2))
    distance = torch.arange(length) - place
    reached = (distance >= 0) & (distance < window)
    assert (change[reached] > 1e-9).all() and (change[~reached] < 1e-12).all()


@quick
@given(seeds, st.integers(1, 7), st.integers(1, 40))
def test_attention_in_blocks_is_dense_attention_under_a_band(seed, window, length):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 2, 3, length, 4, dtype=torch.float64, generator=generator)
    place = torch.arange(length)
    distance = place[:, None] - place
    score = (q @ k.transpose(-1, -2) / 2).masked_fill((distance < 0) | (distance >= window), -torch.inf)
    assert torch.allclose(local_attention(q, k, v, window), score.softmax(-1) @ v, atol=1e-12)


def test_many_rows_pass_attention_in_parts(monkeypatch):
    q, k, v = torch.randn(3, 7, 2, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    calls, attention = [], F.scaled_dot_product_attention
    for window in (4, 9):
        whole = local_attention(q, k, v, window)
        with monkeypatch.context() as patch:
            patch.setattr(transformer, "MOST", 3)
            patch.setattr(
                F, "scaled_dot_product_attention", lambda q, *a, **o: calls.append(q) or attention(q, *a, **o)
            )
            assert torch.equal(local_attention(q, k, v, window), whole)
            assert torch.allclose(last_attention(q[:, :, -1:], k, v, window), whole[:, :, -1:], atol=1e-12)
    assert max(len(one) for one in calls) == 3


@quick
@given(seeds, st.integers(1, SHORT), st.integers(1, SHORT), st.integers(1, SHORT))
def test_attention_spelled_out_is_attention(seed, length, asking, window):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 2, 3, length, 4, dtype=torch.float64, generator=generator)
    places, first = rotation(length, 4, q), max(length - asking, 0)
    expected = local_attention(rotate(q, places), rotate(k, places), v, window)[:, :, first:]
    assert torch.allclose(spelled_attention(q[:, :, first:], k, v, places, window), expected, atol=1e-12)


@quick
@given(seeds, st.integers(1, 9), st.sampled_from([1, 2, 3, 9, 1024]), st.integers(1, 3))
def test_the_last_state_alone_is_the_last_of_all(seed, length, window, layers):
    model, tokens = make(layers, seed=seed % 5, window=window), draw(seed, 4, length)
    known = torch.tensor([True, False, True, False])
    alone = model(tokens, known, last=True)
    assert alone.shape == (4, 1, 8) and torch.allclose(alone, model(tokens, known)[:, -1:], atol=1e-12)


def test_the_last_state_alone_sends_back_the_same_gradient():
    model, tokens, found = make(layers=2, window=4), draw(0, 4, 9), []
    for hidden in (model(tokens)[:, -1], model(tokens, last=True)[:, 0]):
        model.zero_grad()
        hidden.sin().sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12) and theirs.abs().max() > 0


def test_windows_in_one_batch_are_each_read_as_if_alone():
    """The windows of a stream go through together, and their loss is that of one after the other."""
    model, windows = make(layers=2, window=4).train(), draw(0, 6, 20)
    found = []
    for parts in (windows[None], windows.split(1)):
        model.zero_grad()
        for part in parts:
            hidden = model(part.reshape(-1, 20)[:, :-1])
            (model.cross_entropy(hidden, part.reshape(-1, 20)[:, 1:]) / len(parts)).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.allclose(mine, theirs, atol=1e-12) for mine, theirs in zip(*found, strict=True))


def test_attention_beyond_the_window_needs_memory_linear_in_length(monkeypatch):
    seen = []

    def watched(q, k, v, **options):
        seen.append(q.shape[1] * q.shape[2] * k.shape[2])
        return q

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    for length in (64, 128):
        local_attention(*torch.zeros(3, 1, 2, length, 4), window=8)
    scores = sum(seen[:2]), sum(seen[2:])
    assert len(seen) == 4 and scores[1] / scores[0] < 2.1


@quick
@given(seeds, st.integers(1, 4), st.integers(1, 3), st.integers(1, 20))
def test_a_token_means_the_same_wherever_it_stands(seed, window, layers, shift):
    model, tokens = make(layers, window=window), draw(seed, 2, 16)
    moved = model(torch.cat([draw(seed + 1, 2, shift), tokens], dim=1))[:, shift:]
    first = layers * (window - 1)  # from here on, all that a token sees through all layers stands in both
    assert torch.allclose(moved[:, first:], model(tokens)[:, first:], atol=1e-9)


def test_distance_counts_and_not_the_tokens_alone():
    model = make(layers=1)
    hidden = model(torch.tensor([[1, 2, 3], [4, 2, 3], [2, 1, 3]]))
    for a, b in ((0, 1), (0, 2)):
        assert (hidden[a, 2] - hidden[b, 2]).abs().max() > 1e-6


def test_a_block_adds_to_the_stream_what_it_makes_of_the_normed_stream():
    torch.manual_seed(0)
    block = Block(width=8, heads=2, dropout=0.0, window=4).double().eval()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    places = rotation(5, 4, x)
    added = block(x, places) - x
    assert added.shape == x.shape
    shifted = 7 * x + 100  # behind the norms the branches see no scale and no offset
    torch.nn.init.zeros_(block.feed[2].weight)
    torch.nn.init.zeros_(block.feed[2].bias)
    attention = block(x, places) - x
    assert torch.allclose(block(shifted, places) - shifted, attention, atol=1e-3)
    torch.nn.init.zeros_(block.out.weight)
    assert torch.equal(block(x, places), x) and (attention - added).abs().max() > 1e-3


def test_hidden_states_leave_through_a_norm():
    hidden = make()(draw(0, 5, 9))
    assert hidden.shape == (5, 9, 8)
    assert torch.allclose(hidden.mean(-1), torch.zeros(5, 9).double(), atol=1e-9)
    assert torch.allclose(hidden.var(-1, unbiased=False), torch.ones(5, 9).double(), atol=1e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 3}, r"8.*3"),
        ({"heads": 8}, r"odd"),
        ({"window": 0}, r"window 0"),
        ({"precision": "float16"}, r"float16"),
    ],
)
def test_settings_that_cannot_be_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        Transformer(**{"vocabulary": 30, "width": 8, "layers": 1, "heads": 2, "dropout": 0.0} | wrong)


def test_the_head_is_the_embedding():
    model = make()
    assert sum(p.shape == (30, 8) for p in model.parameters()) == 1
    hidden = torch.randn(4, 8, dtype=torch.float64)
    before = model.logits(hidden)
    assert torch.allclose(before, hidden @ model.embedding.weight.T / 8**0.5)
    with torch.no_grad():
        model.embedding.weight[3] += 1
    changed = (model.logits(hidden) - before).abs().amax(0) > 1e-9
    assert changed.nonzero().flatten().tolist() == [3]


def test_a_regulator_that_is_not_known_embeds_as_nothing_at_the_first_place_alone():
    model = make()
    tokens = torch.tensor([[1, 2, 3], [4, 2, 3]])
    unknown, known = torch.tensor([False, False]), torch.tensor([True, True])
    assert torch.allclose(*model(tokens, unknown), atol=1e-12)
    assert not torch.allclose(*model(tokens, known))
    assert torch.equal(model(tokens, known), model(tokens))
    later = torch.tensor([[1, 2, 3], [1, 5, 3]])
    assert not torch.allclose(*model(later, unknown)[:, 2])


def test_dropout_acts_in_training_alone():
    model = make(dropout=0.5, window=4)
    tokens = draw(0, 4, 9)
    assert torch.equal(model(tokens), model(tokens)) and torch.equal(model(tokens), make(window=4)(tokens))
    model.train()
    assert not torch.allclose(model(tokens), model(tokens))


@pytest.mark.parametrize("window", [4, 1024])
@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_the_gradient_reaches_every_parameter(window, precision):
    model = make(dropout=0.1, window=window, precision=precision).float().train()
    tokens = draw(0, 4, 11)
    F.cross_entropy(model.logits(model(tokens)[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_an_unknown_regulator_leaves_gradients_finite_and_its_embedding_untouched():
    model = make(layers=2).float().train()
    tokens = draw(0, 4, 3) % 10 + torch.tensor([20, 0, 10])  # regulators 20 to 29
    model(tokens, torch.zeros(4, dtype=torch.bool))[:, 2].square().sum(-1).sub(3).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.embedding.weight.grad[20:].abs().max() == 0


def test_bfloat16_changes_the_products_a_little_and_the_types_not_at_all():
    exact = make(precision="float32", width=32, window=4).float()
    reduced = make(precision="bfloat16", width=32, window=4).float()
    tokens = draw(0, 16, 9)
    hidden, rounded = exact(tokens), reduced(tokens)
    logits, rough = exact.logits(hidden), reduced.logits(hidden)
    assert {x.dtype for x in (hidden, rounded, logits, rough)} == {torch.float32}
    for a, b in ((hidden, rounded), (logits, rough)):
        error = (a - b).square().mean().sqrt() / a.square().mean().sqrt()
        assert 1e-5 < error < 0.05
    with torch.autocast("cpu", torch.bfloat16):  # whatever is on outside, float32 is float32
        assert torch.equal(exact(tokens), hidden)


def test_automatic_precision_is_full_without_a_gpu():
    tokens = draw(0, 4, 9)
    assert torch.equal(make().float()(tokens), make(precision="float32").float()(tokens))


def test_it_compiles_into_one_graph():
    model = make(layers=1, window=4, precision="bfloat16").float()
    compiled = torch.compile(model, fullgraph=True, backend="eager")  # a break in the graph raises
    tokens, known = draw(0, 4, 9), torch.tensor([True, False, True, False])
    assert torch.allclose(compiled(tokens, known), model(tokens, known), atol=1e-6)
