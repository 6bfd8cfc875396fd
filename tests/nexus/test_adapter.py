"""What the memory's reader predicts from, and what it never sees."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.nexus.adapter import Records, hidden_share
from mantra_ray.nexus.cam import EMPTY, Memory
from mantra_ray.nexus.tokens import REG

quick = settings(max_examples=15, deadline=None)
BUCKETS, SEEN, UNSEEN, PROGRAMS = 8, 14, 10, 5  # as in the case


def scrambled(memory: Memory, slots: torch.Tensor) -> Memory:
    """A copy with the values and keys of some slots [B, S] made wild."""
    memory = memory.clone()
    memory.value[slots] = 1e3 * torch.randn_like(memory.value[slots])
    memory.key[slots] = torch.nn.functional.normalize(torch.randn_like(memory.key[slots]), dim=-1)
    return memory


@quick
@given(st.integers(0, SEEN * 6 - 1))
def test_a_record_never_reads_itself_but_its_siblings_do(build, number):
    case = build()
    wild = case.train.residual.clone()
    wild[number] = torch.tensor([1e3, -1e3, 1e3, 5e2, 7e2])
    memory = case.warmed(replace(case.train, residual=wild))
    assert torch.equal(memory.record, case.memory.record) and (memory.record == number).any()
    before, after = case.correct(case.train), case.correct(case.train, memory)
    assert torch.equal(before[number], after[number])
    siblings = (case.train.header[:, REG] == case.train.header[number, REG]) & (case.train.record != number)
    assert ((before - after)[siblings].abs().amax(-1) > 1e-2).all()
    assert torch.equal(before[~siblings], after[~siblings])


def test_the_value_holds_the_whole_record(case):
    """What a sibling reads moves with every program of a record, in that program alone."""
    for program in range(PROGRAMS):
        residual = case.train.residual.clone()
        residual[7, program] += 1e-3
        moved = (
            case.correct(case.train, case.warmed(replace(case.train, residual=residual))) - case.correct(case.train)
        )[6]
        others = np.delete(moved.abs().numpy(), program)
        assert moved[program].abs() > 1e-6 and others.max() < 0.1 * moved[program].abs()


@pytest.mark.parametrize("transport", [0.0, 1.0])
def test_transport_goes_from_the_recalled_miss_to_the_recalled_observation(build, transport):
    case = build()
    with torch.no_grad():
        case.model.transport.fill_(transport)
        case.model.decoder.fill_(1.0)
    memory = case.warmed(case.train.take(slice(0, 1)))  # record 0 is all that its siblings can recall
    sibling = case.train.take(slice(1, 2))
    with torch.no_grad():
        correction, gate, _, _ = case.model(memory, sibling)
    observed = case.train.residual[0] + transport * (case.train.base[0] - sibling.base[0])
    assert torch.allclose(correction[0], gate[0] * observed, atol=1e-5)


@pytest.mark.parametrize("what", ["state", "token"])
def test_hidden_slots_are_not_read(case, what):
    hide = case.train.state if what == "state" else case.train.header[:, REG]
    held = case.memory.state if what == "state" else case.memory.token
    options = {f"hide_{what}": hide}
    used = case.read(case.train, **options).weight > 0
    assert used.any() and not (used & (held[case.train.bucket] == hide[:, None])).any()
    before, shown = case.correct(case.train, **options), case.correct(case.train)
    for value in hide.unique():
        memory = scrambled(case.memory, held == value)
        rows = hide == value
        assert torch.equal(case.correct(case.train, memory, **options)[rows], before[rows])
        assert ((case.correct(case.train, memory) - shown)[rows].abs().amax(-1) > 1e-3).all()


def test_nothing_is_hidden_by_the_mark_of_an_empty_slot(case):
    nothing = torch.full_like(case.train.state, EMPTY)
    hidden = case.correct(case.train, hide_state=nothing, hide_token=nothing)
    assert torch.equal(hidden, case.correct(case.train))


@quick
@given(st.sampled_from([0.0, 1.0]) | st.floats(0.05, 0.95), st.integers(0, 2**31))
def test_the_share_of_records_from_whom_something_is_hidden(share, seed):
    values = torch.arange(1000)
    chosen = hidden_share(values, share, torch.Generator().manual_seed(seed))
    kept = chosen != EMPTY
    assert torch.equal(chosen[kept], values[kept])
    assert abs(float(kept.float().mean()) - share) <= 5 * np.sqrt(share * (1 - share) / 1000)


def test_an_empty_memory_corrects_by_exactly_zero(case):
    empty = case.model.empty_memory()
    for records in (case.train, case.test):
        assert torch.equal(case.correct(records, empty), torch.zeros(len(records), PROGRAMS))
    assert empty.equals(case.model.empty_memory()) and empty.occupancy == 0


def test_an_empty_bucket_corrects_by_exactly_zero_with_a_finite_gradient(build):
    case = build(buckets=512)
    model = copy.deepcopy(case.model)
    correction, gate, found, _ = model(case.memory, case.test)
    assert torch.equal(correction, torch.zeros(len(case.test), PROGRAMS))
    assert torch.equal(found.sim_max, torch.zeros(len(case.test))) and torch.isfinite(gate).all()
    everyone = Records(**{k: torch.cat([v, getattr(case.test, k)]) for k, v in vars(case.train).items()})
    correction, *_ = model(case.memory, everyone)
    assert (correction[: len(case.train)].abs().amax(-1) > 0).all()
    (correction - 1).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@quick
@given(st.integers(0, 2**32 - 1))
def test_predictions_do_not_depend_on_order_nor_on_the_batch(build, seed):
    case, rng = build(), np.random.default_rng(seed)
    order = torch.tensor(rng.permutation(len(case.train)))
    alone = torch.tensor(rng.integers(0, len(case.train), 5))
    whole = case.correct(case.train)
    assert torch.allclose(case.correct(case.train.take(order)), whole[order], atol=1e-5)
    for row in alone:
        assert torch.allclose(case.correct(case.train.take(row[None])), whole[row][None], atol=1e-5)


def test_prediction_changes_nothing_in_the_memory_nor_in_the_model(case):
    memory, weights = case.memory.clone(), copy.deepcopy(case.model.state_dict())
    case.correct(case.train)
    case.correct(case.test, hide_state=case.test.state)
    case.model.stream(case.train)
    case.model.language_loss(case.train)
    assert case.memory.equals(memory)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in case.model.state_dict().items())


def test_the_header_alone_predicts(case):
    """Neither the content, nor the residual, nor its noise of a record touch its own prediction or query."""
    before, keys = case.correct(case.test), case.model.stream(case.test)
    blind = replace(
        case.test,
        content=(case.test.content + 17) % case.model.vocabulary.size,
        residual=torch.full_like(case.test.residual, torch.nan),
        noise=torch.full_like(case.test.noise, torch.nan),
    )
    assert torch.equal(case.correct(blind), before)
    after = case.model.stream(blind)
    assert torch.equal(after.candidates.key, keys.candidates.key) and torch.equal(after.signal, keys.signal)
    assert not torch.equal(after.surprisal, keys.surprisal)


def test_every_part_of_the_header_predicts(case):
    """Two regulators, doses or states that read the same slots are still told apart."""
    first = case.test.take(slice(0, 1))
    before = case.correct(first)
    dose_token = replace(first, header=first.header + torch.tensor([[0, 1, 0]]))
    dose = replace(first, dose=first.dose + 0.3)
    state_token = replace(first, header=first.header + torch.tensor([[0, 0, 1]]))
    known = {"known": torch.tensor([True])}
    other = replace(first, header=first.header + torch.tensor([[1, 0, 0]]))
    for changed in (dose_token, dose, state_token):
        assert (case.correct(changed) - before).abs().max() > 1e-5
    assert (case.correct(replace(other, **known)) - case.correct(replace(first, **known))).abs().max() > 1e-5


def test_regulators_are_corrected_each_in_its_own_way(case):
    """The old fault: one read for every regulator, so that all were corrected alike."""
    same = (case.train.header[:, 1:] == case.train.header[0, 1:]).all(1)
    correction = case.correct(case.train.take(same))
    assert len(correction) == SEEN
    assert torch.pdist(correction).min() > 1e-2


def test_an_unseen_regulators_embedding_is_not_used(case):
    """Unseen regulators of one bucket are one and the same to the model."""
    unseen = case.test.header[:, REG]
    swapped = SEEN + (unseen - SEEN + BUCKETS) % UNSEEN
    other = replace(case.test, header=torch.cat([swapped[:, None], case.test.header[:, 1:]], dim=1))
    assert not torch.equal(other.header, case.test.header)
    with torch.no_grad():
        assert torch.equal(case.model.hidden(other), case.model.hidden(case.test))
    assert torch.equal(case.correct(other), case.correct(case.test))
    model = copy.deepcopy(case.model)
    with torch.no_grad():
        model.transformer.embedding.weight[SEEN : SEEN + UNSEEN] = 1e3
        assert torch.equal(model(case.memory, case.test)[0], case.correct(case.test))
        assert torch.equal(model(case.memory, case.train)[0], case.correct(case.train))


def test_a_seen_regulator_taken_for_unseen_loses_its_embedding(case):
    hidden = case.model.hidden(case.train, known=torch.zeros(len(case.train), dtype=torch.bool))
    same = (case.train.header[:, 1:] == case.train.header[0, 1:]).all(1)
    assert torch.allclose(hidden[same], hidden[same][:1], atol=1e-5)
    assert (torch.pdist(case.model.hidden(case.train)[same][:, 2]) > 1e-2).all()
