"""The benchmark of the transformer and its training: that it checks, what it counts, and what it is made of."""

import pytest
import torch

from mantra_ray.bench import gpu_language
from mantra_ray.bench.gpu_language import block_flop, header_flop, rows
from mantra_ray.bench.made import QUICK, Size, make_model, make_records
from mantra_ray.bench.measured import Card
from mantra_ray.nexus.transformer import Transformer

CARD = Card("CPU", "cpu", 1e10, 1e11)


def test_all_rows_are_sound_and_have_a_rate_a_floor_and_their_goals():
    found = list(rows(CARD, quick=True))
    assert len({row.work for row in found}) == len(found) == 5
    assert all(row.sound and row.rate > 0 and row.floor > 0 and row.bound == "FLOP" for row in found)
    assert [row.goal for row in found] == [None, None, 1e7, 1e5, 5e6]


@pytest.mark.parametrize("broken", ["entropy", "cross_entropy"])
def test_a_wrong_head_is_found(monkeypatch, broken):
    true = getattr(gpu_language.head, broken)

    def wrong(*arguments, **options):
        found = true(*arguments, **options)
        return tuple(1.01 * one for one in found) if isinstance(found, tuple) else 1.01 * found

    monkeypatch.setattr(gpu_language.head, broken, wrong)
    row = gpu_language.entropy_row if broken == "entropy" else gpu_language.loss_row
    assert not row(CARD, QUICK).sound


def test_a_wrong_gradient_and_a_wrong_hidden_state_are_found(monkeypatch):
    forward = Transformer.forward

    def wrong(self, tokens, known=None, last=False):
        hidden = forward(self, tokens, known, last)
        return hidden if hidden.dtype == torch.float64 else hidden + 0.01

    monkeypatch.setattr(Transformer, "forward", wrong)
    assert not gpu_language.header_row(CARD, QUICK, False).sound
    assert not gpu_language.stream_row(CARD, QUICK, False).sound


def test_headers_are_distinct_and_records_are_of_20_tokens_of_the_vocabulary():
    vocabulary, records = make_records(QUICK, 300, "cpu")
    assert len({tuple(header) for header in records.header.tolist()}) == 300
    tokens = torch.cat([records.header, records.content], dim=1)
    assert tokens.shape[1] == vocabulary.length == 20 and tokens.max() == vocabulary.special("ENDREC")
    assert (records.header[:, 0] < vocabulary.first_dose).all()
    assert (records.header[:, 2] >= vocabulary.first_state).all()
    assert (records.header[:, 2] < vocabulary.first_program).all()


def test_operations_are_those_of_the_blocks_products():
    """12 D^2 weights a block and token, each multiplied and added; a header costs about 19 MFLOP at full size."""
    vocabulary, _ = make_records(QUICK, 3, "cpu")
    model = make_model(QUICK, vocabulary, "cpu", False)
    weights = sum(p.numel() for p in model.transformer.blocks.parameters() if p.dim() == 2)
    attention = 4 * QUICK.width * QUICK.layers * (1 + 2 + 3 + 4)
    assert block_flop(QUICK, 4) == 2 * 4 * weights + attention
    assert 0.8 * 19e6 < header_flop(Size()) < block_flop(Size(), 3) < 1.02 * 19e6
