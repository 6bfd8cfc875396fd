"""The warming pass on a GPU: Triton kernels that take one record at a time, in stream order, and all buckets at once.

Records of different buckets commute, and by the gate signal `entropy` a token's statistics hang on no read. So one
program a token follows the statistics, then one program a bucket decides on the bucket's records, in two launches for
the whole stream. Keys stay where they lie: a slot knows the row of the stream that it was filled with.

Importing this module needs triton; `warming` does it where it uses the kernels.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from mantra_ray.config import NexusConfig
from mantra_ray.nexus.cam import EMPTY, Memory, place_among_equals, put_, random_slot
from mantra_ray.nexus.gate import DEVIATION_FLOOR, priorities, rates
from mantra_ray.nexus.ledger import Decisions, Stream

LARGEST = 2**17  # numbers of a bucket's keys, padded, beyond which its program's registers would not do
SHARE = 2**10  # of them a warp
ADMIT, STORED, EVICTED, HARD = (tl.constexpr(2**bit) for bit in range(4))  # of a record, in one byte
EXACT = {"enable_fp_fusion": False}  # a product is rounded before it is added to, as in torch and Python


@triton.jit
def follow(start, signal, rate, mean, variance, mean_before, variance_before):
    """A token's running mean and variance, in float64: those before each of its records, and those after the last.

    Grid [R]. start [R + 1] are the tokens' first rows in signal, rate, mean_before and variance_before [N], sorted by
    token; mean and variance [R], changed in place. The steps are those of `gate.drift`.
    """
    token = tl.program_id(0)
    begin, end = tl.load(start + token), tl.load(start + token + 1)
    centre, spread = tl.load(mean + token), tl.load(variance + token)
    for i in range(begin, end):
        tl.store(mean_before + i, centre)
        tl.store(variance_before + i, spread)
        weight = tl.load(rate + i)
        delta = tl.load(signal + i) - centre
        centre = centre + weight * delta
        spread = (1 - weight) * (spread + weight * delta * delta)
    tl.store(mean + token, centre)
    tl.store(variance + token, spread)


@triton.jit
def walk(
    order,  # [B] buckets, the fullest queue first, since the last program to end decides
    start,  # [B + 1] a bucket's first record in what follows, sorted by bucket
    row,  # [N] of the stream, in whose own order lies what is [N', ...]
    token,  # [N]
    record,  # [N]
    stamp,  # [N] as `rank`
    known,  # [N] priority but for the novelty's share
    primed,  # [N] bool
    z,  # [N] float64
    victim,  # [N] slot that eviction `random` takes
    new_key,  # [N', D]
    key,  # [B, S, D] of the memory, as are
    held_token,  # [B, S]
    held_record,  # [B, S]
    rank,  # [B, S] by which the least gives way: priority or stamp, `bottom` where empty
    settings,  # [3] gamma, the novelty's weight and `bottom`, which ranks below whatever is held; float64
    source,  # [B, S] out: row of the stream that a slot was filled with, or EMPTY
    fate,  # [N'] out: ADMIT, STORED, EVICTED and HARD
    novelty,  # [N'] out
    priority,  # [N'] out
    slots: tl.constexpr,
    dim: tl.constexpr,
    FILLED: tl.constexpr,  # whether the memory holds records already
    RANKED: tl.constexpr,  # eviction `pss`
    RANDOM: tl.constexpr,  # eviction `random`
    SLOTS: tl.constexpr,  # S and D, padded to powers of two
    DIM: tl.constexpr,
):
    """Decide on a bucket's records one after the other; grid [B].

    A record waits for the one before it, so what can be known earlier is off that path: the next record's key is on
    its way while this one is decided on, and which slot would give way hangs on no similarity.
    """
    bucket = tl.load(order + tl.program_id(0))
    begin, end = tl.load(start + bucket), tl.load(start + bucket + 1)
    gamma, share, bottom = tl.load(settings), tl.load(settings + 1), tl.load(settings + 2)
    share = share.to(novelty.dtype.element_ty)
    slot, column = tl.arange(0, SLOTS), tl.arange(0, DIM)
    at, real, wide = bucket * slots + slot, slot < slots, column < dim
    tokens = tl.load(held_token + at, mask=real, other=-1)
    records = tl.load(held_record + at, mask=real, other=-1)
    ranks = tl.load(rank + at, mask=real, other=float("inf"))  # what pads gives way last
    bottom = bottom.to(ranks.dtype)
    sources = tl.full([SLOTS], -1, tl.int64)

    this = tl.load(row + begin, mask=begin < end, other=0)
    query = tl.load(new_key + this * dim + column, mask=wide & (begin < end), other=0.0)
    for i in range(begin, end):
        following = tl.load(row + tl.minimum(i + 1, end - 1))
        following_query = tl.load(new_key + following * dim + column, mask=wide, other=0.0)
        its_token, its_record, its_stamp = tl.load(token + i), tl.load(record + i), tl.load(stamp + i)
        its_known, its_primed, its_z = tl.load(known + i), tl.load(primed + i), tl.load(z + i)

        # its own slot comes before an empty one, that before the one that gives way; of equals the first
        own = records == its_record
        low, chosen = tl.min(tl.where(own, float("-inf"), ranks), 0, return_indices=True)
        full = low > bottom
        if RANDOM:
            chosen = tl.where(full, tl.load(victim + i).to(tl.int32), chosen)

        # an empty slot reads a key too, for nothing
        its_source = tl.maximum(sources, 0)[:, None] * dim
        if FILLED:
            since, across = (sources >= 0)[:, None], wide[None, :]
            keys = tl.load(new_key + its_source + column[None, :], mask=since & across, other=0.0)
            keys += tl.load(key + at[:, None] * dim + column[None, :], mask=~since & real[:, None] & across, other=0.0)
        else:
            keys = tl.load(new_key + its_source + column[None, :], mask=wide[None, :], other=0.0)
        similarity = tl.maximum(tl.sum(keys * query[None, :], 1), 0.0)
        seen = (records >= 0) & (records != its_record)
        matching = tl.max(tl.where(seen & (tokens == its_token), similarity, -1.0), 0)
        hard = matching >= 0
        nearest = tl.where(hard, matching, tl.max(tl.where(seen, similarity, 0.0), 0))
        novel = 1 - tl.minimum(nearest, 1.0)

        admit = its_primed | (its_z * novel.to(tl.float64) > gamma)
        worth = its_known + share * novel
        stored = admit
        if RANKED:
            stored = admit & ((low <= bottom) | (worth > low))
            standing = worth.to(ranks.dtype)
        else:
            standing = its_stamp
        told = tl.where(admit, ADMIT, 0) + tl.where(stored, STORED, 0)
        told += tl.where(stored & full, EVICTED, 0) + tl.where(hard, HARD, 0)
        tl.store(fate + this, told.to(tl.int8))
        tl.store(novelty + this, novel)
        tl.store(priority + this, worth)

        here = stored & (slot == chosen)
        tokens = tl.where(here, its_token, tokens)
        records = tl.where(here, its_record, records)
        ranks = tl.where(here, standing, ranks)
        sources = tl.where(here, this, sources)
        this, query = following, following_query
    tl.store(source + at, sources, mask=real)


def fits(memory: Memory) -> bool:
    """Whether a program can hold a bucket."""
    _, slots, dim = memory.key.shape
    return triton.next_power_of_2(slots) * triton.next_power_of_2(dim) <= LARGEST


def grouped(label: Tensor, labels: int) -> tuple[Tensor, Tensor]:
    """Rows [N] sorted by label, in order within each; and where each label's rows start, [labels + 1]."""
    start = label.new_zeros(labels + 1)
    torch.cumsum(torch.bincount(label, minlength=labels), 0, out=start[1:])
    return label.argsort(stable=True), start


def standing_by_kernel_(memory: Memory, stream: Stream, count: Tensor, decay: float) -> Tensor:
    """z [N] of each record by its token's statistics before it, which are left as they stand after the last one.

    `count` [N] are the records of its token before each.
    """
    token, signal = stream.candidates.token, stream.signal
    rows, start = grouped(token, len(memory.count))
    rate = rates(count, decay, signal.dtype)[rows].double()
    ordered, mean, variance = signal[rows].double(), memory.mean.double(), memory.variance.double()
    before = torch.empty(2, len(rows), dtype=torch.float64, device=signal.device)
    follow[(len(memory.count),)](start, ordered, rate, mean, variance, before[0], before[1], num_warps=1, **EXACT)
    memory.mean, memory.variance = mean.to(memory.mean.dtype), variance.to(memory.variance.dtype)
    memory.count = memory.count + start.diff()
    z = torch.empty_like(ordered)
    z[rows] = (ordered - before[0]) / before[1].sqrt().clamp_min(DEVIATION_FLOOR)
    return z


def warm_by_kernels(memory: Memory, stream: Stream, config: NexusConfig) -> tuple[Memory, Decisions]:
    """A warmed copy of the memory, and what became of each record; for the gate signal `entropy`.

    Means one record at a time, as `warming.warm_plainly` does.
    """
    with torch.cuda.device_of(memory.key):  # kernels start on the current device
        return _warm(memory.clone(), stream, config)


def _warm(memory: Memory, stream: Stream, config: NexusConfig) -> tuple[Memory, Decisions]:
    new, real = stream.candidates, memory.key.dtype
    buckets, slots, dim = memory.key.shape
    count = memory.count[new.token] + place_among_equals(new.token)
    # all of the priority but the novelty's share
    known = priorities(stream.surprisal, count, torch.ones_like(stream.surprisal), config).to(real)
    z = standing_by_kernel_(memory, stream, count, config.ema)
    rows, start = grouped(new.bucket, buckets)

    ranked = config.eviction == "pss"
    rank_dtype = real if ranked else torch.float64
    held, bottom = memory.record != EMPTY, torch.finfo(rank_dtype).min
    rank = (memory.priority if ranked else memory.stamp).to(rank_dtype).where(held, bottom)
    settings = [config.regret_gamma, config.novelty_weight, bottom]
    padded = triton.next_power_of_2(slots), triton.next_power_of_2(dim)
    source = torch.empty_like(memory.record)
    fate = torch.empty_like(rows, dtype=torch.int8)
    novelty, priority = (torch.empty_like(rows, dtype=real) for _ in range(2))
    primed = count < config.priming
    walk[(buckets,)](
        start.diff().argsort(descending=True),
        start,
        rows,
        new.token[rows],
        new.record[rows],
        new.stamp[rows].to(rank_dtype),
        known[rows],
        primed[rows],
        z[rows],
        random_slot(new.stamp, new.bucket, slots)[rows],
        new.key.contiguous(),
        memory.key,
        memory.token,
        memory.record,
        rank,
        torch.tensor(settings, dtype=torch.float64, device=rows.device),
        source,
        fate,
        novelty,
        priority,
        slots,
        dim,
        FILLED=bool(held.any()),
        RANKED=ranked,
        RANDOM=config.eviction == "random",
        SLOTS=padded[0],
        DIM=padded[1],
        num_warps=min(16, max(1, math.prod(padded) // SHARE)),
        **EXACT,
    )
    line, slot = (source != EMPTY).nonzero(as_tuple=True)
    row = source[line, slot]
    put_(memory, (line, slot), new, row, priority[row])
    admit, stored, evicted, hard = ((fate & bit.value) != 0 for bit in (ADMIT, STORED, EVICTED, HARD))
    return memory, Decisions(new.bucket, new.token, primed, admit, stored, evicted, hard, novelty)
