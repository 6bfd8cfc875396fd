"""What the memory's reader predicts from, and what it never sees."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.nexus.adapter import Memories, trimmed
from mantra_ray.nexus.cam import EMPTY, Memory
from mantra_ray.nexus.records import Records, hidden_share
from mantra_ray.nexus.tokens import REG

quick = settings(max_examples=15, deadline=None)
BUCKETS, SEEN, UNSEEN, PROGRAMS = 8, 14, 10, 5  # as in the case
ROUTINGS = ("regulator", "class", "levels", "hash")


def scrambled(memory: Memory, slots: torch.Tensor) -> Memory:
    """A copy with the values and keys of some slots [B, S] made wild."""
    memory = memory.clone()
    memory.value[slots] = 1e3 * torch.randn_like(memory.value[slots])
    memory.key[slots] = torch.nn.functional.normalize(torch.randn_like(memory.key[slots]), dim=-1)
    return memory


@pytest.mark.parametrize("routing", ROUTINGS)
@settings(max_examples=8, deadline=None)
@given(number=st.integers(0, SEEN * 6 - 1))
def test_a_record_never_reads_itself_but_its_siblings_do(build, routing, number):
    case = build(routing=routing)
    wild = case.train.residual.clone()
    wild[number] = torch.tensor([1e3, -1e3, 1e3, 5e2, 7e2])
    memories = case.warmed(replace(case.train, residual=wild))
    for memory, before in zip(memories, case.memories, strict=True):
        assert torch.equal(memory.record, before.record) and (memory.record == number).any()
    before, after = case.correct(case.train), case.correct(case.train, memories)
    assert torch.equal(before[number], after[number])
    readers = case.readers_of(number, case.train)
    siblings = (case.train.header[:, REG] == case.train.header[number, REG]) & (case.train.record != number)
    assert not readers[number] and readers[siblings].all()
    assert ((before - after)[siblings].abs().amax(-1) > 1e-2).all()
    assert torch.equal(before[~readers], after[~readers])
    if routing != "levels":  # whose pathway level is read by the whole class
        assert torch.equal(readers, siblings)


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
        case.reader.transport.fill_(transport)
        case.reader.decoder.fill_(1.0)
    memories = case.warmed(case.train.take(slice(0, 1)))  # record 0 is all that its siblings can recall
    sibling = case.train.take(slice(1, 2))
    correction, gate, *_ = case.full(sibling, memories)
    observed = case.train.residual[0] + transport * (case.train.base[0] - sibling.base[0])
    assert torch.allclose(correction[0], gate[0] * observed, atol=1e-5)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("what", ["state", "token"])
def test_hidden_slots_are_not_read(build, what, routing):
    case = build(routing=routing)
    hide = case.train.state if what == "state" else case.train.header[:, REG]
    held = [memory.state if what == "state" else memory.token for memory in case.memories]
    options = {f"hide_{what}": hide}
    before, shown = case.full(case.train, **options), case.correct(case.train)
    for read, values, bucket in zip(before.found, held, case.train.bucket.unbind(1), strict=True):
        used = read.weight > 0
        assert used.any() and not (used & (values[bucket] == hide[:, None])).any()
    for value in hide.unique():
        memories = tuple(scrambled(memory, values == value) for memory, values in zip(case.memories, held, strict=True))
        rows = hide == value
        assert torch.equal(case.correct(case.train, memories, **options)[rows], before.value[rows])
        assert ((case.correct(case.train, memories) - shown)[rows].abs().amax(-1) > 1e-3).all()


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


def equal(memories: Memories, others: Memories) -> bool:
    return all(memory.equals(other) for memory, other in zip(memories, others, strict=True))


@pytest.mark.parametrize("routing", ROUTINGS)
def test_an_empty_memory_corrects_by_exactly_zero(build, routing):
    case = build(routing=routing)
    empty = case.model.empty_memory()
    for records in (case.train, case.test):
        assert torch.equal(case.correct(records, empty), torch.zeros(len(records), PROGRAMS))
        assert torch.equal(case.correct(records, trimmed(empty)), torch.zeros(len(records), PROGRAMS))
    assert equal(empty, case.model.empty_memory()) and all(memory.occupancy == 0 for memory in empty)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_an_empty_bucket_corrects_by_exactly_zero_with_a_finite_gradient(build, routing):
    case = build(buckets=512, routing=routing)
    model = copy.deepcopy(case.model)
    # a class that is known has records for its unseen regulators; the last one's is not
    alone = case.test if routing in ("regulator", "hash") else case.test.take(slice(-2, None))
    correction, gate, _, found, _ = model(case.memories, alone)
    assert torch.equal(correction, torch.zeros(len(alone), PROGRAMS))
    assert all(torch.equal(read.sim_max, torch.zeros(len(alone))) for read in found) and torch.isfinite(gate).all()
    everyone = Records(**{k: torch.cat([v, getattr(alone, k)]) for k, v in vars(case.train).items()})
    correction = model(case.memories, everyone).value
    assert (correction[: len(case.train)].abs().amax(-1) > 0).all()
    (correction - 1).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("routing", ROUTINGS)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_predictions_do_not_depend_on_order_nor_on_the_batch(build, routing, seed):
    case, rng = build(routing=routing), np.random.default_rng(seed)
    order = torch.tensor(rng.permutation(len(case.train)))
    alone = torch.tensor(rng.integers(0, len(case.train), 5))
    whole = case.correct(case.train)
    assert torch.allclose(case.correct(case.train.take(order)), whole[order], atol=1e-5)
    for row in alone:
        assert torch.allclose(case.correct(case.train.take(row[None])), whole[row][None], atol=1e-5)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_prediction_changes_nothing_in_the_memory_nor_in_the_model(build, routing):
    case = build(routing=routing)
    memories, weights = tuple(memory.clone() for memory in case.memories), copy.deepcopy(case.model.state_dict())
    case.correct(case.train)
    case.correct(case.test, hide_state=case.test.state)
    case.correct(case.test, trimmed(case.memories))
    case.model.streams(case.train)
    case.model.warm(case.test)
    case.model.language_loss(torch.cat([case.train.header, case.train.content], dim=1))
    assert equal(case.memories, memories)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in case.model.state_dict().items())


@pytest.mark.parametrize("routing", ROUTINGS)
def test_slots_that_no_bucket_filled_add_nothing_to_a_read(build, routing):
    case = build(routing=routing, buckets=32)
    assert all(memory.trim().record.shape[1] < memory.record.shape[1] for memory in case.memories)
    for records in (case.train, case.test):
        whole, trim = case.full(records), case.full(records, trimmed(case.memories))
        assert torch.allclose(trim.value, whole.value, atol=1e-5) and torch.allclose(trim.share, whole.share, atol=1e-6)


def test_the_header_alone_predicts(case):
    """Neither the content, nor the residual, nor its noise of a record touch its own prediction or query."""
    before, (keys,) = case.correct(case.test), case.model.streams(case.test)
    blind = replace(
        case.test,
        content=(case.test.content + 17) % case.model.vocabulary.size,
        residual=torch.full_like(case.test.residual, torch.nan),
        noise=torch.full_like(case.test.noise, torch.nan),
    )
    assert torch.equal(case.correct(blind), before)
    (after,) = case.model.streams(blind)
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
        assert torch.equal(model(case.memories, case.test).value, case.correct(case.test))
        assert torch.equal(model(case.memories, case.train).value, case.correct(case.train))


def test_a_seen_regulator_taken_for_unseen_loses_its_embedding(case):
    hidden = case.model.hidden(case.train, known=torch.zeros(len(case.train), dtype=torch.bool))
    same = (case.train.header[:, 1:] == case.train.header[0, 1:]).all(1)
    assert torch.allclose(hidden[same], hidden[same][:1], atol=1e-5)
    assert (torch.pdist(case.model.hidden(case.train)[same][:, 2]) > 1e-2).all()
