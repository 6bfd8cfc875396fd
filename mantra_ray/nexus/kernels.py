"""Triton kernels of the fused read by rows: a program reads a few queries' slots straight from the memory.

Keys, weights, then values, so that nothing of the size [N, S, D] exists. All sums are in float32 and in a fixed order.
`tile_kernels` has the form for many queries a bucket, and `fused_read` chooses.

Importing this module needs triton.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mantra_ray.nexus import cam

EMPTY = tl.constexpr(cam.EMPTY)


@triton.jit
def labels(pointer, at, mask):
    """Labels, EMPTY where there are none."""
    return tl.load(pointer + at, mask=mask, other=EMPTY)


@triton.jit
def block(pointer, row, there, column, WIDTH: tl.constexpr):
    """Numbers [n, c] of rows [n] and columns [c] of a matrix [·, WIDTH], 0 where there are none."""
    mask = there[:, None] & (column < WIDTH)[None, :]
    return tl.load(pointer + row[:, None] * WIDTH + column[None, :], mask=mask, other=0.0)


@triton.jit
def store_block(pointer, row, there, column, numbers, WIDTH: tl.constexpr):
    """What `block` loads, stored; nobody reads it soon."""
    mask, at = there[:, None] & (column < WIDTH)[None, :], row[:, None] * WIDTH + column[None, :]
    tl.store(pointer + at, numbers, mask=mask, eviction_policy="evict_first")


@triton.jit
def blocks(pointer, at, taking, column, WIDTH: tl.constexpr):
    """Numbers [n, s, c] in float32 of the slots that take part, 0 elsewhere."""
    mask = taking[:, :, None] & (column < WIDTH)[None, None, :]
    return tl.load(pointer + at[:, :, None] * WIDTH + column[None, None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def choose(rows, inside, at, real, token, record, hide_state, hide_token, held_token, held_record, held_state):
    """Which slots take part [n, s], and how many carry the query's own token [n]; slots lie `at` [n or 1, s]."""
    holder, kind = labels(held_record, at, real), labels(held_token, at, real)
    visible = inside[:, None] & (holder != EMPTY) & (holder != labels(record, rows, inside)[:, None])
    if hide_state is not None:
        hidden = labels(hide_state, rows, inside)[:, None]
        visible = visible & ((labels(held_state, at, real) != hidden) | (hidden == EMPTY))
    if hide_token is not None:
        hidden = labels(hide_token, rows, inside)[:, None]
        visible = visible & ((kind != hidden) | (hidden == EMPTY))
    matching = visible & (kind == labels(token, rows, inside)[:, None])
    matches = tl.sum(matching.to(tl.int32), 1)
    return tl.where(matches[:, None] > 0, matching, visible), matches


@triton.jit
def soften(similarity, taking, real, tau):
    """Weights [n, s], exactly 0 where a slot takes no part; similarity with 0 there; the largest of that [n]."""
    filled = tl.where(taking, similarity, 0.0)
    top = tl.max(tl.where(real, filled, float("-inf")), 1)
    score = tl.where(taking, similarity / tau, float("-inf"))
    highest = tl.max(score, 1)
    share = tl.exp(score - tl.where(highest == float("-inf"), 0.0, highest)[:, None])
    total = tl.sum(share, 1)
    return share / tl.where(total == 0.0, 1.0, total)[:, None], filled, top


@triton.jit
def store_found(
    rows, inside, slot, slots, at, state, held_state, weight, filled, top, matches, spread,
    out_weight, out_similarity, out_sim_max, out_spread, out_same_state, out_matches,
):  # fmt: skip
    """All of a read but its value."""
    real = (slot < slots)[None, :]
    place, mask = rows[:, None] * slots + slot[None, :], inside[:, None] & real
    tl.store(out_weight + place, weight, mask=mask)
    if out_similarity is not None:
        tl.store(out_similarity + place, filled, mask=mask)
    own = labels(held_state, at, real) == labels(state, rows, inside)[:, None]
    tl.store(out_same_state + rows, tl.sum(tl.where(own, weight, 0.0), 1), mask=inside)
    tl.store(out_sim_max + rows, tl.minimum(tl.maximum(top, 0.0), 1.0), mask=inside)
    tl.store(out_spread + rows, spread, mask=inside)
    tl.store(out_matches + rows, matches.to(tl.int64), mask=inside)


@triton.jit
def toward_similarity(weight, filled, real, d_weight, d_sim_max, tau):
    """Gradient [n, s] towards the similarities, from those towards weights [n, s] and `sim_max` [n].

    As in torch, equal largest ones share the gradient (slots that take no part count as 0) and the clamp passes it
    within [0, 1], ends included.
    """
    top = tl.max(tl.where(real, filled, float("-inf")), 1)
    largest = real & (filled == top[:, None])
    share = tl.where((top >= 0.0) & (top <= 1.0), d_sim_max, 0.0) / tl.sum(largest.to(tl.float32), 1)
    mean = tl.sum(weight * d_weight, 1)
    return weight * (d_weight - mean[:, None]) / tau + tl.where(largest & (weight > 0.0), share[:, None], 0.0)


@triton.jit
def read_rows(
    query, bucket, token, record, state, hide_state, hide_token,  # [N, D], then [N]; what hides may be None
    key, value, held_token, held_record, held_state,  # of the memory
    out_value, out_weight, out_similarity, out_sim_max, out_spread, out_same_state, out_matches,
    count, held, slots, tau,  # N; slots a bucket has room for; those to read, S
    D: tl.constexpr, V: tl.constexpr,
    ROWS: tl.constexpr, SLOTS: tl.constexpr, D_TILE: tl.constexpr, V_TILE: tl.constexpr,
):  # fmt: skip
    """A read of N queries, ROWS a program."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside, slot = rows < count, tl.arange(0, SLOTS)
    real = inside[:, None] & (slot < slots)[None, :]
    at = tl.load(bucket + rows, mask=inside, other=0)[:, None] * held + slot[None, :]
    taking, matches = choose(
        rows, inside, at, real, token, record, hide_state, hide_token, held_token, held_record, held_state
    )
    similarity = tl.zeros([ROWS, SLOTS], tl.float32)
    for begin in range(0, D, D_TILE):
        d = begin + tl.arange(0, D_TILE)
        q, k = block(query, rows, inside, d, D).to(tl.float32), blocks(key, at, taking, d, D)
        similarity += tl.sum(q[:, None, :] * k, 2)
    weight, filled, top = soften(similarity, taking, (slot < slots)[None, :], tau)
    spread = tl.zeros([ROWS], tl.float32)
    for begin in range(0, V, V_TILE):
        v = begin + tl.arange(0, V_TILE)
        x = blocks(value, at, taking, v, V)
        mean = tl.sum(weight[:, :, None] * x, 1)
        off = x - mean[:, None, :]
        spread += tl.sum(tl.sum(weight[:, :, None] * off * off, 1), 1)
        store_block(out_value, rows, inside, v, mean, V)
    store_found(
        rows, inside, slot, slots, at, state, held_state, weight, filled, top, matches, spread / V,
        out_weight, out_similarity, out_sim_max, out_spread, out_same_state, out_matches,
    )  # fmt: skip


@triton.jit
def read_rows_backward(
    bucket, state, key, value, held_state, weight, similarity,
    d_value, d_weight, d_sim_max, d_spread, d_same_state, d_query,
    count, held, slots, tau,
    D: tl.constexpr, V: tl.constexpr,
    ROWS: tl.constexpr, SLOTS: tl.constexpr, D_TILE: tl.constexpr, V_TILE: tl.constexpr,
):  # fmt: skip
    """Gradient towards the queries, ROWS a program; slots of weight 0 are not touched."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside, slot = rows < count, tl.arange(0, SLOTS)
    real = inside[:, None] & (slot < slots)[None, :]
    at = tl.load(bucket + rows, mask=inside, other=0)[:, None] * held + slot[None, :]
    place = rows[:, None] * slots + slot[None, :]
    w = tl.load(weight + place, mask=real, other=0.0)
    own = labels(held_state, at, real) == labels(state, rows, inside)[:, None]
    dw = tl.load(d_weight + place, mask=real, other=0.0).to(tl.float32)
    dw += tl.where(own, tl.load(d_same_state + rows, mask=inside, other=0.0).to(tl.float32)[:, None], 0.0)
    pull = tl.load(d_spread + rows, mask=inside, other=0.0).to(tl.float32) / V
    for begin in range(0, V, V_TILE):
        v = begin + tl.arange(0, V_TILE)
        x, dv = blocks(value, at, w > 0.0, v, V), block(d_value, rows, inside, v, V).to(tl.float32)
        # weights sum up to 1, so that distances from the mean serve for the value's gradient too, and round less
        off = x - tl.sum(w[:, :, None] * x, 1)[:, None, :]
        dw += tl.sum(off * (dv[:, None, :] + pull[:, None, None] * off), 2)
    d_top = tl.load(d_sim_max + rows, mask=inside, other=0.0).to(tl.float32)
    filled = tl.load(similarity + place, mask=real, other=0.0)
    ds = toward_similarity(w, filled, (slot < slots)[None, :], dw, d_top, tau)
    for begin in range(0, D, D_TILE):
        d = begin + tl.arange(0, D_TILE)
        dq = tl.sum(ds[:, :, None] * blocks(key, at, w > 0.0, d, D), 1)
        store_block(d_query, rows, inside, d, dq, D)
