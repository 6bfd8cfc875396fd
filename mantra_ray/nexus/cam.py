"""The Centroid-Addressable Manifold: B buckets of S slots, as explicit state with pure reads and writes.

A slot holds (key, value, token, record, priority). `read` and `write` never change their argument; `write_`
does, and demands distinct buckets, so that its rows commute.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

EMPTY = -1
PER_SLOT = ("key", "value", "token", "record", "state", "priority", "stamp")


@dataclass
class Memory:
    """Slots and the gate's per-token statistics. B buckets, S slots, D key and V value width, R tokens."""

    key: Tensor  # [B, S, D] unit vectors, 0 where empty
    value: Tensor  # [B, S, V]
    token: Tensor  # [B, S] int64, EMPTY where empty
    record: Tensor  # [B, S] int64, EMPTY where empty
    state: Tensor  # [B, S] int64, cell state of the record
    priority: Tensor  # [B, S]
    stamp: Tensor  # [B, S] int64, when the slot was filled: its record's place in the stream
    mean: Tensor  # [R] running mean of the gate's signal
    variance: Tensor  # [R] running variance
    count: Tensor  # [R] int64, records of the token seen so far

    @staticmethod
    def empty(buckets: int, slots: int, key: int, value: int, tokens: int, dtype=torch.float32, device="cpu") -> Memory:
        """A cleared memory."""

        def real(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        def label() -> Tensor:
            return torch.full((buckets, slots), EMPTY, dtype=torch.int64, device=device)

        return Memory(
            key=real(buckets, slots, key),
            value=real(buckets, slots, value),
            token=label(),
            record=label(),
            state=label(),
            priority=real(buckets, slots),
            stamp=label(),
            mean=real(tokens),
            variance=real(tokens),
            count=torch.zeros(tokens, dtype=torch.int64, device=device),
        )

    def clone(self) -> Memory:
        return Memory(**{f.name: getattr(self, f.name).clone() for f in fields(self)})

    def equals(self, other: Memory) -> bool:
        """Whether every tensor is the same bit for bit."""
        return all(torch.equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def trim(self) -> Memory:
        """A view without the slots that no bucket has filled: the same reads for less work.

        Buckets fill their slots in order and never free one, so what is empty lies at the end.
        """
        used = max(1, int((self.record != EMPTY).sum(-1).max()))
        slots = {name: getattr(self, name)[:, :used] for name in PER_SLOT}
        return Memory(**slots, mean=self.mean, variance=self.variance, count=self.count)

    def arrange(self, order: Tensor) -> Memory:
        """A copy with the buckets in another order [B]; the statistics are shared."""
        slots = {name: getattr(self, name).index_select(0, order) for name in PER_SLOT}
        return Memory(**slots, mean=self.mean, variance=self.variance, count=self.count)

    @property
    def occupancy(self) -> float:
        """Share of slots that hold a record."""
        return float((self.record != EMPTY).double().mean())

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (getattr(self, f.name) for f in fields(self)))


@dataclass
class Read:
    """What N queries found."""

    value: Tensor  # [N, V] softmax-weighted values, exactly 0 where nothing was visible
    sim_max: Tensor  # [N] largest cosine of the slots that took part, clipped to [0, 1]
    matches: Tensor  # [N] visible slots with the query's own token
    hard: Tensor  # [N] bool, whether only those took part
    spread: Tensor  # [N] weighted variance of the slots' values around what was read, mean over V
    weight: Tensor  # [N, S] softmax weights, 0 where a slot did not take part
    same_state: Tensor  # [N] weight on slots of the query's own cell state

    @property
    def entropy(self) -> Tensor:
        """Entropy of the weights in nats, [N]."""
        return -torch.xlogy(self.weight, self.weight).sum(-1)


def visible_slots(
    memory: Memory,
    bucket: Tensor | slice,
    record: Tensor,
    hide_state: Tensor | None = None,
    hide_token: Tensor | None = None,
) -> Tensor:
    """Slots [N, S] that a record may read: filled and not its own. A slice of N buckets is read without a gather.

    `hide_state` [N] hides all slots of that cell state, `hide_token` [N] all of that token (EMPTY hides none).
    """
    held = memory.record[bucket]
    seen = (held != EMPTY) & (held != record[:, None])
    if hide_state is not None:
        seen &= (memory.state[bucket] != hide_state[:, None]) | (hide_state[:, None] == EMPTY)
    if hide_token is not None:
        seen &= (memory.token[bucket] != hide_token[:, None]) | (hide_token[:, None] == EMPTY)
    return seen


def read(
    memory: Memory, query: Tensor, bucket: Tensor | slice, token: Tensor, state: Tensor, visible: Tensor, tau: float
) -> Read:
    """Softmax read of a bucket's visible slots; if any carries the query's token, only those take part.

    query [N, D] unit vectors, bucket (or a slice of N buckets), token and state [N], visible [N, S].
    Differentiable in `query`.
    """
    matching = visible & (memory.token[bucket] == token[:, None])
    hard = matching.any(-1)
    taking_part = torch.where(hard[:, None], matching, visible)
    similarity = torch.einsum("nd,nsd->ns", query, memory.key[bucket])
    score = (similarity / tau).masked_fill(~taking_part, -torch.inf)
    # rows with nothing to read would give NaN: they get a finite score and their weights are zeroed
    anything = taking_part.any(-1, keepdim=True)
    weight = torch.softmax(score.masked_fill(~anything, 0.0), dim=-1) * anything
    values = memory.value[bucket]
    value = torch.einsum("ns,nsv->nv", weight, values)
    deviation = (values - value[:, None]).square().mean(-1)
    sim_max = similarity.masked_fill(~taking_part, 0.0).amax(-1).clamp(0.0, 1.0)
    same_state = (weight * (memory.state[bucket] == state[:, None])).sum(-1)
    return Read(value, sim_max, matching.sum(-1), hard, (weight * deviation).sum(-1), weight, same_state)


@dataclass
class Candidates:
    """N records offered to the memory, in stream order."""

    bucket: Tensor  # [N]
    key: Tensor  # [N, D]
    value: Tensor  # [N, V]
    token: Tensor  # [N]
    record: Tensor  # [N]
    state: Tensor  # [N]
    stamp: Tensor  # [N]

    def take(self, rows: Tensor | slice) -> Candidates:
        return Candidates(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass
class Written:
    """What became of N candidates: each flag [N] bool."""

    stored: Tensor
    evicted: Tensor  # stored in the slot of another record


def write(memory: Memory, new: Candidates, priority: Tensor, admit: Tensor, eviction: str) -> tuple[Memory, Written]:
    """A new memory with the admitted candidates, applied one after the other; buckets may repeat."""
    memory = memory.clone()
    stored, evicted = torch.zeros_like(admit), torch.zeros_like(admit)
    for rows in waves(new.bucket):
        done = write_(memory, new.take(rows), priority[rows], admit[rows], eviction)
        stored[rows], evicted[rows] = done.stored, done.evicted
    return memory, Written(stored, evicted)


def write_(memory: Memory, new: Candidates, priority: Tensor, admit: Tensor, eviction: str) -> Written:
    """Write candidates of distinct buckets in place.

    A record that is held is rewritten in its slot. Else an empty slot is taken. Else `pss` replaces the slot of
    lowest priority if the newcomer's is higher, `fifo` the slot that was filled first and `random` any slot.
    """
    bucket = new.bucket
    held = memory.record[bucket]
    own, free = held == new.record[:, None], held == EMPTY
    if eviction == "random":
        victim = random_slot(new.stamp, bucket, held.shape[1])
    else:
        victim = (memory.priority if eviction == "pss" else memory.stamp)[bucket].argmin(-1)
    is_held, has_room = own.any(-1), free.any(-1)
    slot = torch.where(is_held, own.int().argmax(-1), torch.where(has_room, free.int().argmax(-1), victim))
    beats = torch.ones_like(admit)
    if eviction == "pss":
        beats = priority > memory.priority[bucket, victim]
    stored = admit & (is_held | has_room | beats)
    evicted = stored & ~is_held & ~has_room
    rows = stored.nonzero()[:, 0]
    put_(memory, (bucket[rows], slot[rows]), new, rows, priority[rows])
    return Written(stored, evicted)


def put_(memory: Memory, at: tuple[Tensor, Tensor], new: Candidates, rows: Tensor, priority: Tensor) -> None:
    """Fill distinct slots in place, at (bucket [n], slot [n]), with rows [n] of the candidates and priorities [n]."""
    for name in ("key", "value", "token", "record", "state", "stamp"):
        getattr(memory, name)[at] = getattr(new, name)[rows]
    memory.priority[at] = priority


def write_batched(memory: Memory, new: Candidates, priority: Tensor) -> tuple[Memory, Written]:
    """A new memory that keeps the S highest priorities of each bucket's own and the candidates', found by sorting.

    It leaves what `write` leaves with eviction `pss` and all admitted, in a number of steps that does not grow with a
    bucket's queue: the same priorities in each bucket, and where no two are equal the same records, if perhaps in
    other slots. Of equals those held before stay, then the earlier ones. Records must be distinct, none of them held,
    and priorities finite. `stored` and `evicted` tell how it ends: a candidate that another replaces is not stored.

    The warming pass takes another road even where priorities hang on no read, since it also tells what each record
    found when its turn came.
    """
    buckets, slots = memory.record.shape
    device, places = new.bucket.device, buckets * slots
    # slots from the last to the first: of equals the first gives way, and of empty ones the first is filled
    held = torch.where(memory.record == EMPTY, -torch.inf, memory.priority).flatten().flip(0)
    own = torch.arange(buckets, device=device).repeat_interleave(slots).flip(0)
    bucket = torch.cat([own, new.bucket])
    order = torch.cat([held, priority.to(held.dtype)]).argsort(descending=True, stable=True)
    order = order[bucket[order].argsort(stable=True)]
    stays = torch.empty_like(bucket, dtype=torch.bool)
    stays[order] = place_among_equals(bucket[order]) < slots
    # as many slots of a bucket are given up as candidates take one, and both lie in the order of buckets
    given = (~stays[:places].flip(0)).nonzero()[:, 0]
    rows = stays[places:].nonzero()[:, 0]
    rows = rows[new.bucket[rows].argsort(stable=True)]
    evicted = torch.zeros_like(stays[places:])
    evicted[rows] = memory.record.flatten()[given] != EMPTY
    memory = memory.clone()
    put_(memory, (given // slots, given % slots), new, rows, priority[rows])
    return memory, Written(stays[places:], evicted)


def random_slot(stamp: Tensor, bucket: Tensor, slots: int) -> Tensor:
    """A slot [N] drawn evenly by (stamp, bucket) alone, so that no order of work and no worker changes it.

    The finaliser of SplitMix64 (Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195) on the pair.
    """
    word = stamp * -7046029254386353131 + bucket * -4417276706812531889  # int64 wraps: odd numbers spread both
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        word = (word ^ ((word >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return word.remainder(slots)


def place_among_equals(label: Tensor) -> Tensor:
    """How many earlier rows have the row's label, [N]."""
    order = torch.argsort(label, stable=True)
    ordered = label[order]
    place = torch.arange(len(label), device=label.device)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    start = torch.cummax(torch.where(first, place, 0), 0).values
    found = torch.empty_like(place)
    found[order] = place - start
    return found


def waves(bucket: Tensor) -> list[Tensor]:
    """Rows [n] in groups of at most one row a bucket, order kept inside each bucket.

    Records that touch different buckets commute, so the groups applied in turn mean one row at a time.
    """
    wave = place_among_equals(bucket)
    by_wave = torch.argsort(wave, stable=True)
    return list(torch.split(by_wave, torch.bincount(wave).tolist()))
