"""The small transformer: causality, shapes, the tied head."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.nexus.transformer import Block, Transformer


def make(layers=2, heads=2, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    model = Transformer(vocabulary=30, length=9, width=8, layers=layers, heads=heads, dropout=dropout).double().eval()
    for block in model.blocks:  # branches start small: let them speak, so that a leak would be heard
        torch.nn.init.normal_(block.out.weight)
        torch.nn.init.normal_(block.feed[2].weight)
    return model


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 8), st.integers(1, 3))
def test_a_later_token_never_changes_an_earlier_hidden_state(seed, place, layers):
    model = make(layers, seed=seed % 5)
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 30, (4, 9), generator=draw)
    other = tokens.clone()
    other[:, place:] = (other[:, place:] + torch.randint(1, 30, (4, 9 - place), generator=draw)) % 30
    before, after = model(tokens), model(other)
    assert torch.allclose(before[:, :place], after[:, :place], atol=1e-12)
    assert (before[:, place:] - after[:, place:]).abs().amax(-1).min() > 1e-6
    assert torch.allclose(model(tokens[:, :place]), before[:, :place], atol=1e-12)  # nor does its absence


def test_an_earlier_token_and_its_place_reach_later_hidden_states():
    model = make(layers=1)
    tokens = torch.tensor([[1, 2, 3], [4, 2, 3], [2, 1, 3]])
    hidden = model(tokens)
    for a, b in ((0, 1), (0, 2)):
        assert (hidden[a, 2] - hidden[b, 2]).abs().max() > 1e-6


def test_a_block_adds_to_the_stream_what_it_makes_of_the_normed_stream():
    torch.manual_seed(0)
    block = Block(width=8, heads=2, dropout=0.0).double().eval()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    added = block(x) - x
    assert block(x).shape == x.shape
    shifted = 7 * x + 100  # behind the norms the branches see no scale and no offset
    assert torch.allclose(block.attention_norm(shifted), block.attention_norm(x), atol=1e-3)
    torch.nn.init.zeros_(block.feed[2].weight)
    torch.nn.init.zeros_(block.feed[2].bias)
    attention = block(x) - x
    assert torch.allclose(block(shifted) - shifted, attention, atol=1e-3)
    torch.nn.init.zeros_(block.out.weight)
    assert torch.equal(block(x), x) and (attention - added).abs().max() > 1e-3


def test_hidden_states_leave_through_a_norm():
    hidden = make()(torch.randint(0, 30, (5, 9)))
    assert hidden.shape == (5, 9, 8)
    assert torch.allclose(hidden.mean(-1), torch.zeros(5, 9).double(), atol=1e-9)
    assert torch.allclose(hidden.var(-1, unbiased=False), torch.ones(5, 9).double(), atol=1e-3)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"8.*3"):
        Transformer(vocabulary=30, length=9, width=8, layers=1, heads=3, dropout=0.0)


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
    model = make(dropout=0.5)
    tokens = torch.randint(0, 30, (4, 9))
    assert torch.equal(model(tokens), model(tokens)) and torch.equal(model(tokens), make()(tokens))
    model.train()
    assert not torch.allclose(model(tokens), model(tokens))
