"""Laws of the memory: each against a plain loop or a definition."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.nexus.cam import EMPTY, Candidates, Memory, random_slot, read, visible_slots, waves, write, write_

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def random_candidates(rng, count, buckets, tokens, width=6, records=None):
    unit = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(count, width))), dim=-1)
    token = torch.from_numpy(rng.integers(0, tokens, count))
    record = torch.from_numpy(rng.permutation(count) if records is None else rng.integers(0, records, count))
    return Candidates(
        bucket=token % buckets,
        key=unit,
        value=torch.from_numpy(rng.normal(size=(count, 4))),
        token=token,
        record=record,
        state=torch.from_numpy(rng.integers(0, 3, count)),
        stamp=torch.arange(count),
    )


def random_memory(rng, buckets=4, slots=5, tokens=9, count=14):
    memory = Memory.empty(buckets, slots, 6, 4, tokens, dtype=torch.float64)
    new = random_candidates(rng, count, buckets, tokens)
    priority = torch.from_numpy(rng.normal(size=count))
    return write(memory, new, priority, torch.ones(count, dtype=torch.bool), "pss")[0]


def loop_read(memory, query, bucket, token, visible, tau):
    """One query as nested Python loops in float64."""
    slots = [s for s in range(memory.record.shape[1]) if visible[s]]
    own = [s for s in slots if int(memory.token[bucket, s]) == token]
    slots = own or slots
    if not slots:
        return [0.0] * memory.value.shape[2], 0.0, len(own)
    cosine = {s: sum(float(a) * float(b) for a, b in zip(query, memory.key[bucket, s], strict=True)) for s in slots}
    top = max(cosine.values())
    weight = {s: math.exp((cosine[s] - top) / tau) for s in slots}
    total = sum(weight.values())
    value = [sum(weight[s] * float(memory.value[bucket, s, v]) for s in slots) / total for v in range(4)]
    return value, min(max(top, 0.0), 1.0), len(own)


@quick
@given(seeds, st.sampled_from([0.05, 0.1, 1.0]))
def test_read_equals_a_plain_loop(seed, tau):
    rng = np.random.default_rng(seed)
    memory = random_memory(rng, count=int(rng.integers(0, 20)))
    asked = random_candidates(rng, 12, 4, 9)
    visible = visible_slots(memory, asked.bucket, asked.record, asked.state)
    found = read(memory, asked.key, asked.bucket, asked.token, asked.state, visible, tau)
    for n in range(12):
        value, sim_max, matches = loop_read(
            memory, asked.key[n].tolist(), int(asked.bucket[n]), int(asked.token[n]), visible[n].tolist(), tau
        )
        assert found.value[n].tolist() == pytest.approx(value, abs=1e-12)
        assert float(found.sim_max[n]) == pytest.approx(sim_max, abs=1e-12)
        assert int(found.matches[n]) == matches and bool(found.hard[n]) == (matches > 0)


def test_an_empty_bucket_reads_exactly_zero():
    memory = Memory.empty(3, 2, 6, 4, 9)
    query = torch.nn.functional.normalize(torch.randn(5, 6), dim=-1).requires_grad_()
    bucket = torch.zeros(5, dtype=torch.int64)
    found = read(memory, query, bucket, bucket, bucket, visible_slots(memory, bucket, bucket), 0.1)
    assert torch.equal(found.value, torch.zeros(5, 4)) and torch.equal(found.sim_max, torch.zeros(5))
    (found.value.sum() + found.sim_max.sum() + found.spread.sum()).backward()
    assert torch.isfinite(query.grad).all()


@quick
@given(seeds)
def test_no_record_reads_itself_nor_what_is_hidden(seed):
    rng = np.random.default_rng(seed)
    memory = random_memory(rng)
    asked = random_candidates(rng, 14, 4, 9)
    hide_token = torch.where(torch.from_numpy(rng.random(14) < 0.5), asked.token, EMPTY)
    visible = visible_slots(memory, asked.bucket, asked.record, asked.state, hide_token)
    found = read(memory, asked.key, asked.bucket, asked.token, asked.state, visible, 0.1)
    used = found.weight > 0
    assert not (used & (memory.record[asked.bucket] == asked.record[:, None])).any()
    assert not (used & (memory.state[asked.bucket] == asked.state[:, None])).any()
    hidden = (memory.token[asked.bucket] == hide_token[:, None]) & (hide_token[:, None] != EMPTY)
    assert not (used & hidden).any()


@quick
@given(seeds, st.sampled_from(["pss", "fifo", "random"]), st.booleans())
def test_batched_write_is_one_at_a_time(seed, eviction, repeats):
    rng = np.random.default_rng(seed)
    memory = random_memory(rng)
    new = random_candidates(rng, 30, 4, 9, records=20 if repeats else None)
    priority, admit = torch.from_numpy(rng.normal(size=30)), torch.from_numpy(rng.random(30) < 0.7)
    before = memory.clone()
    batched, done = write(memory, new, priority, admit, eviction)
    assert memory.equals(before)  # pure
    single = memory.clone()
    for i in range(30):
        row = torch.tensor([i])
        one = write_(single, new.take(row), priority[row], admit[row], eviction)
        assert bool(one.stored) == bool(done.stored[i]) and bool(one.evicted) == bool(done.evicted[i])
    assert single.equals(batched)


@quick
@given(seeds)
def test_a_bucket_keeps_the_highest_priorities_ever_admitted(seed):
    rng = np.random.default_rng(seed)
    new = random_candidates(rng, 40, 4, 9)
    priority, admit = torch.from_numpy(rng.permutation(40) * 1.0), torch.from_numpy(rng.random(40) < 0.8)
    contents = []
    for order in (torch.arange(40), torch.from_numpy(rng.permutation(40))):
        memory = Memory.empty(4, 5, 6, 4, 9, dtype=torch.float64)
        memory, _ = write(memory, new.take(order), priority[order], admit[order], "pss")
        contents.append([sorted(row[row != EMPTY].tolist()) for row in memory.record])
    assert contents[0] == contents[1]
    for bucket, held in enumerate(contents[0]):
        offered = [i for i in range(40) if admit[i] and new.bucket[i] == bucket]
        best = sorted(offered, key=lambda i: -float(priority[i]))[:5]
        assert held == sorted(int(new.record[i]) for i in best)


def test_fifo_drops_the_oldest_and_a_held_record_keeps_its_slot():
    rng = np.random.default_rng(0)
    new = random_candidates(rng, 6, 1, 1)
    admit = torch.ones(6, dtype=torch.bool)
    memory, done = write(Memory.empty(1, 4, 6, 4, 1, dtype=torch.float64), new, torch.zeros(6).double(), admit, "fifo")
    assert sorted(memory.record[0].tolist()) == sorted(new.record[2:].tolist())
    assert int(done.evicted.sum()) == 2
    again, done = write(memory, new.take(torch.tensor([5])), torch.tensor([9.0]).double(), admit[:1], "fifo")
    assert torch.equal(again.record, memory.record) and not done.evicted.any()


@quick
@given(seeds)
def test_random_eviction_is_set_by_stamp_and_bucket_whatever_the_order_of_work(seed):
    rng = np.random.default_rng(seed)
    stamp, bucket = torch.from_numpy(rng.integers(0, 2**40, 50)), torch.from_numpy(rng.integers(0, 4096, 50))
    order = torch.from_numpy(rng.permutation(50))
    slot = random_slot(stamp, bucket, 7)
    assert torch.equal(random_slot(stamp[order], bucket[order], 7), slot[order])
    assert torch.equal(slot, torch.cat([random_slot(stamp[i : i + 1], bucket[i : i + 1], 7) for i in range(50)]))
    assert slot.min() >= 0 and slot.max() < 7


def test_random_eviction_takes_every_slot_alike():
    stamp = torch.arange(80_000)
    for slots, bucket in ((4, torch.zeros_like(stamp)), (32, stamp % 512), (32, stamp)):
        share = torch.bincount(random_slot(stamp, bucket, slots), minlength=slots) / len(stamp)
        deviation = (1 / slots * (1 - 1 / slots) / len(stamp)) ** 0.5
        assert (share - 1 / slots).abs().max() < 4.5 * deviation  # of 68 shares: chance 5e-4
    same = random_slot(stamp, torch.zeros_like(stamp), 32) == random_slot(stamp, torch.ones_like(stamp), 32)
    assert float(same.double().mean()) == pytest.approx(1 / 32, abs=0.003)
    after = random_slot(stamp[1:], stamp[1:] * 0, 4)[random_slot(stamp[:-1], stamp[:-1] * 0, 4) == 0]
    assert float((after == 0).double().mean()) == pytest.approx(1 / 4, abs=0.015)


def test_random_eviction_stores_every_admitted_record():
    new = random_candidates(np.random.default_rng(1), 60, 4, 9)
    admit = torch.ones(60, dtype=torch.bool)
    memory, done = write(
        Memory.empty(4, 5, 6, 4, 9, dtype=torch.float64), new, torch.zeros(60).double(), admit, "random"
    )
    assert done.stored.all() and int(done.evicted.sum()) == 60 - int((memory.record != EMPTY).sum())
    last = {int(b): int(r) for b, r in zip(new.bucket, new.record, strict=True)}
    assert all(record in memory.record[bucket] for bucket, record in last.items())


@quick
@given(seeds)
def test_a_slice_of_buckets_reads_as_their_numbers_do(seed):
    rng = np.random.default_rng(seed)
    memory, asked = random_memory(rng), random_candidates(rng, 4, 4, 9)
    bucket = torch.arange(4)
    found = []
    for which in (bucket, slice(0, 4)):
        visible = visible_slots(memory, which, asked.record, asked.state)
        found.append(read(memory, asked.key, which, asked.token, asked.state, visible, 0.1))
    for one, other in zip(vars(found[0]).values(), vars(found[1]).values(), strict=True):
        assert torch.equal(one, other)


def test_buckets_in_another_order_and_back_are_the_same_memory():
    memory = random_memory(np.random.default_rng(3))
    order = torch.tensor([2, 0, 3, 1])
    moved = memory.arrange(order)
    assert torch.equal(moved.record, memory.record[order]) and moved.arrange(order.argsort()).equals(memory)


@quick
@given(st.lists(st.integers(0, 4), max_size=30))
def test_waves_hold_each_bucket_once_and_keep_its_order(buckets):
    bucket = torch.tensor(buckets, dtype=torch.int64)
    groups = waves(bucket)
    assert sorted(torch.cat(groups).tolist() if groups else []) == list(range(len(buckets)))
    for rows in groups:
        assert len(set(bucket[rows].tolist())) == len(rows)
    place = {int(row): wave for wave, rows in enumerate(groups) for row in rows}
    for i in range(len(buckets)):
        assert place[i] == buckets[:i].count(buckets[i])
