"""Contributions of slots: they are those of the formula, and add up to the correction."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mantra_ray.nexus.cam import EMPTY
from mantra_ray.nexus.explain import contributions, without

ROUTINGS = {
    "regulator": {},
    "class": {"routing": "class"},
    "levels": {"routing": "levels"},
    "hash": {"routing": "hash", "buckets": 24, "hash_heads": 2},
}


def plainly(case, records, n: int, h: int) -> dict[tuple[int, int], np.ndarray]:
    """What each slot of manifold h adds to record n, by (bucket, slot), in float64 from the memory's tensors."""
    reader, memory = case.model.readers[h], case.memories[h]
    correction = case.full(records)
    bucket, width = int(records.bucket[n, h]), case.model.outputs
    token = int(records.header[n, 0])
    filled = [s for s in range(memory.record.shape[1]) if memory.record[bucket, s] != EMPTY]
    filled = [s for s in filled if memory.record[bucket, s] != records.record[n]]
    own = [s for s in filled if memory.token[bucket, s] == token] if reader.route.hard else []
    part = own or filled
    if not part:
        return {}
    query = reader.query(correction.hidden, records.bucket[:, h])[n].detach().double()
    score = np.array([float(query @ memory.key[bucket, s].double()) for s in part]) / reader.config.tau
    weight = np.exp(score - score.max())
    weight /= weight.sum()
    factor = float(correction.share[n, h]) * float(correction.gate[n, h])
    decoder, transport = reader.decoder.detach().double().numpy(), float(reader.transport.detach())
    added = {}
    for s, w in zip(part, weight, strict=True):
        value = memory.value[bucket, s].double().numpy()
        moved = value[width : 2 * width] - records.base[n].double().numpy()
        added[(bucket, s)] = factor * decoder * w * (value[:width] + transport * moved)
    return added


@pytest.mark.parametrize("routing", ROUTINGS)
def test_each_slot_adds_what_the_formula_says(build, routing):
    case = build(1, **ROUTINGS[routing])
    for records in (case.test, case.train.take(slice(0, 30))):
        _, told = contributions(case.model, case.memories, records)
        count = 0
        for n in range(len(records)):
            for h, memory in enumerate(case.memories):
                expected = plainly(case, records, n, h)
                rows = ((told.row == n) & (told.manifold == h)).nonzero()[:, 0].tolist()
                by_record = {int(memory.record[at]): value for at, value in expected.items()}
                assert {int(told.record[i]) for i in rows} == set(by_record)
                for i in rows:
                    np.testing.assert_allclose(told.value[i], by_record[int(told.record[i])], rtol=1e-3, atol=1e-5)
                count += len(rows)
        assert count == len(told.row) > len(records)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 99), routing=st.sampled_from(list(ROUTINGS)), tau=st.sampled_from((0.02, 0.1, 1.0)))
def test_contributions_add_up_to_the_correction(build, seed, routing, tau):
    case = build(seed, tau=tau, **ROUTINGS[routing])
    for records in (case.train, case.test):
        correction, told = contributions(case.model, case.memories, records)
        total = torch.zeros_like(correction.value).index_add(0, told.row, told.value)
        assert torch.equal(correction.value, case.correct(records)) and correction.value.any()
        assert torch.allclose(total, correction.value, atol=1e-5)
        weights = torch.zeros(len(records), len(case.memories)).index_put((told.row, told.manifold), told.weight, True)
        read = torch.stack([found.weight.any(-1) for found in correction.found], dim=1)
        assert torch.allclose(weights, read.float(), atol=1e-5)


def test_a_slot_is_told_with_its_own_record(case):
    _, told = contributions(case.model, case.memories, case.test)
    own = case.train.take(told.record)  # record ids are places in the training records
    assert torch.equal(told.token, own.header[:, 0]) and torch.equal(told.state, own.state)
    assert torch.equal(told.dose, own.dose)
    key = case.reader.query(case.model.hidden(own), own.bucket[:, 0])
    asked = case.reader.query(case.model.hidden(case.test), case.test.bucket[:, 0])[told.row]
    assert torch.allclose(told.similarity, F.cosine_similarity(key, asked).detach(), atol=1e-5)
    known = case.test.header[told.row, 0] == told.token
    assert torch.equal(told.hard, known) and not told.hard.any()  # all that are tested here are unseen
    _, told = contributions(case.model, case.memories, case.train)
    assert told.hard.all() and torch.equal(told.token, case.train.header[told.row, 0])
    assert (told.record != case.train.record[told.row]).all()


def test_explaining_changes_nothing(case):
    before = [memory.clone() for memory in case.memories]
    case.model.train()
    contributions(case.model, case.memories, case.test)
    without(case.memories, 0, 0.6, 1)
    assert all(memory.equals(old) for memory, old in zip(case.memories, before, strict=True))


def test_without_hides_the_slots_of_one_token_dose_and_state_alone(build):
    case = build(2, routing="levels")
    token, dose, state = 3, 0.6, 1
    same = (case.train.header[:, 0] == token) & (case.train.dose == np.float32(dose)) & (case.train.state == state)
    assert same.sum() == 1
    asked = case.train.take(same.nonzero()[:, 0])
    asked.record = torch.tensor([-2])  # not its own record, so that its own slot is in sight
    _, all_of_them = contributions(case.model, case.memories, asked)
    hidden, told = contributions(case.model, without(case.memories, token, dose, state), asked)
    gone = set(all_of_them.record.tolist()) - set(told.record.tolist())
    assert gone == set(case.train.record[same].tolist())
    held_out = case.train.take(same.nonzero()[:, 0])  # as judging hides it: by its id
    assert torch.equal(hidden.value, case.correct(held_out))


def test_nothing_recalled_is_no_contribution(case):
    correction, told = contributions(case.model, case.model.empty_memory(), case.test)
    assert not correction.value.any() and told.value.shape == (0, case.model.outputs)
