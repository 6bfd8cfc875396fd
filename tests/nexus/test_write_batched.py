"""The batched write by sorting: what admitted, distinct records leave under priority eviction."""

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.nexus.cam import EMPTY, Candidates, Memory, write, write_batched

quick = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32 - 1)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def offered(rng, count, buckets, first=0) -> Candidates:
    """Candidates whose contents tell which they are."""
    record = first + torch.from_numpy(rng.permutation(count))
    return Candidates(
        bucket=torch.from_numpy(rng.integers(0, buckets, count)).to(DEVICE),
        key=record[:, None].double().repeat(1, 3).to(DEVICE),
        value=-record[:, None].double().to(DEVICE),
        token=(record % 7).to(DEVICE),
        record=record.to(DEVICE),
        state=(record % 2).to(DEVICE),
        stamp=torch.arange(first, first + count, device=DEVICE),
    )


def written(memory: Memory, new: Candidates, priority):
    return write(memory, new, priority, torch.ones_like(priority, dtype=torch.bool), "pss")


def contents(memory: Memory, name: str) -> list[list]:
    """Sorted, of the filled slots of each bucket."""
    filled = memory.record != EMPTY
    return [sorted(row[there].tolist()) for row, there in zip(getattr(memory, name), filled, strict=True)]


@quick
@given(seeds, st.integers(1, 6), st.integers(1, 5), st.integers(0, 40), st.integers(0, 15), st.booleans())
def test_it_leaves_what_one_at_a_time_leaves(seed, buckets, slots, count, before, ties):
    """The same priorities always, and the same records where no two are equal."""
    rng = np.random.default_rng(seed)
    priority = torch.from_numpy(rng.integers(-3, 3, before + count) * 1.0 if ties else rng.normal(size=before + count))
    priority = priority.to(DEVICE)
    memory = Memory.empty(buckets, slots, 3, 1, 7, torch.float64, DEVICE)
    memory, _ = written(memory, offered(rng, before, buckets), priority[:before])
    kept, new = memory.clone(), offered(rng, count, buckets, before)
    batched, done = write_batched(memory, new, priority[before:])
    assert memory.equals(kept)
    expected, _ = written(memory, new, priority[before:])
    for name in ("priority",) if ties else ("priority", "record", "stamp"):
        assert contents(batched, name) == contents(expected, name)
    filled = batched.record != EMPTY
    assert (filled.int().diff(dim=1) <= 0).all()  # what is empty lies at the end
    # each slot holds a record whole, and the flags tell which candidates those are
    assert torch.equal(batched.key[..., 0][filled], batched.record[filled].double())
    assert torch.equal(batched.value[..., 0][filled], -batched.record[filled].double())
    assert torch.equal(batched.token[filled], batched.record[filled] % 7)
    assert torch.equal(batched.state[filled], batched.record[filled] % 2)
    assert torch.equal(done.stored, torch.isin(new.record, batched.record))
    gone = (kept.record != EMPTY) & (batched.record != kept.record)
    assert int(done.evicted.sum()) == int(gone.sum()) and not (done.evicted & ~done.stored).any()
    # a record that stays keeps its slot
    stays = torch.isin(kept.record, batched.record) & (kept.record != EMPTY)
    assert torch.equal(batched.record[stays], kept.record[stays])


@quick
@given(seeds)
def test_a_bucket_keeps_its_highest_priorities_in_any_order(seed):
    rng = np.random.default_rng(seed)
    new, priority = offered(rng, 30, 3), torch.from_numpy(rng.permutation(30) * 1.0).to(DEVICE)
    for order in (torch.arange(30, device=DEVICE), torch.from_numpy(rng.permutation(30)).to(DEVICE)):
        memory = Memory.empty(3, 4, 3, 1, 7, torch.float64, DEVICE)
        memory, _ = write_batched(memory, new.take(order), priority[order])
        for bucket, held in enumerate(contents(memory, "record")):
            rows = (new.bucket == bucket).nonzero()[:, 0].tolist()
            best = sorted(rows, key=lambda i: -float(priority[i]))[:4]
            assert held == sorted(int(new.record[i]) for i in best)


def test_of_equals_those_held_stay_and_then_the_earlier_ones():
    rng = np.random.default_rng(0)
    memory = Memory.empty(1, 3, 3, 1, 7, torch.float64, DEVICE)
    flat = torch.zeros(5, dtype=torch.float64, device=DEVICE)
    first = offered(rng, 5, 1)
    memory, done = write_batched(memory, first, flat)
    assert done.stored.tolist() == [True] * 3 + [False] * 2 and not done.evicted.any()
    assert memory.record[0].tolist() == first.record[:3].tolist()
    again, done = write_batched(memory, offered(rng, 5, 1, 5), flat)
    assert again.equals(memory) and not done.stored.any()
    # among those held the first slot gives way, as one at a time
    higher = flat.clone()
    higher[4] = math.pi
    new = offered(rng, 5, 1, 5)
    again, done = write_batched(memory, new, higher)
    assert again.equals(written(memory, new, higher)[0]) and done.evicted.tolist() == [False] * 4 + [True]
