"""Triton kernels of the fused read by tiles: queries are sorted by bucket, and a program reads a bucket for many.

The same results as by rows, the products on tensor cores where their precision allows it.

Importing this module needs triton.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

from mantra_ray.nexus.kernels import block, choose, labels, soften, store_block, store_found, toward_similarity

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")  # on a CPU, where it multiplies bfloat16 wrongly
# products of float32: "ieee" runs without tensor cores; "tf32x3", three products of parts, errs by about 2^-21
FULL = tl.constexpr("ieee")
NEAR = tl.constexpr("tf32x3")


@triton.jit
def multiply(left, right, total, PRECISION: tl.constexpr):
    """total + left @ right of one type."""
    if INTERPRETED:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), total)
    else:
        return tl.dot(left, right, total, input_precision=PRECISION)


@triton.jit
def product(left, right, total):
    """total + left @ right, as if in float32: a float32 factor of a bfloat16 one goes in two parts of 8 bits each."""
    if left.dtype == right.dtype:
        return multiply(left, right, total, FULL)
    elif right.dtype == tl.float32:
        return multiply(left.to(tl.float32), right, total, FULL)
    else:
        high = left.to(right.dtype)
        low = (left - high.to(tl.float32)).to(right.dtype)
        return multiply(high, right, multiply(low, right, total, FULL), FULL)


@triton.jit
def distances(value, out, held, slots, V: tl.constexpr, PART: tl.constexpr, SLOTS: tl.constexpr, V_TILE: tl.constexpr):
    """Mean squared difference [B, S, S] of two slots' values; grid [B, S / PART].

    A spread is half their mean over both slots by weight, and exactly 0 where one slot has all of it.
    """
    bucket = tl.program_id(0).to(tl.int64)
    one, other = tl.program_id(1) * PART + tl.arange(0, PART), tl.arange(0, SLOTS)
    total = tl.zeros([PART, SLOTS], tl.float32)
    for begin in range(0, V, V_TILE):
        v = begin + tl.arange(0, V_TILE)
        x = block(value, bucket * held + one, one < slots, v, V).to(tl.float32)
        y = block(value, bucket * held + other, other < slots, v, V).to(tl.float32)
        off = x[:, None, :] - y[None, :, :]
        total += tl.sum(off * off, 2)
    mask = (one < slots)[:, None] & (other < slots)[None, :]
    tl.store(out + (bucket * slots + one[:, None]) * slots + other[None, :], total / V, mask=mask)


@triton.jit
def rows_of_tile(order, edge, tiles, end, bucket, ROWS: tl.constexpr):
    """The queries of this program's tile [ROWS], and which of them there are."""
    tile = tl.program_id(0) - (tl.load(end + bucket) - tl.load(tiles + bucket))  # among the bucket's own
    position = tl.load(edge + bucket) + tile * ROWS + tl.arange(0, ROWS)
    inside = position < tl.load(edge + bucket + 1)
    return tl.load(order + position, mask=inside, other=0), inside


@triton.jit
def mean_distance(weight, distance, bucket, slot, slots):
    """By weight [n, s], each slot's mean distance from all [n, s]; terms are at least 0, so that none cancel."""
    real = (slot < slots)[:, None] & (slot < slots)[None, :]
    apart = tl.load(distance + (bucket * slots + slot[:, None]) * slots + slot[None, :], mask=real, other=0.0)
    return multiply(weight, apart, tl.zeros_like(weight), NEAR)


@triton.jit
def read_tiles(
    order, edge, tiles, end, which, distance, buckets,  # of `fused_read.Tiles`, and of `distances`
    query, token, record, state, hide_state, hide_token,
    key, value, held_token, held_record, held_state,
    out_value, out_weight, out_similarity, out_sim_max, out_spread, out_same_state, out_matches,
    held, slots, tau,
    D: tl.constexpr, V: tl.constexpr,
    ROWS: tl.constexpr, SLOTS: tl.constexpr, D_TILE: tl.constexpr, V_TILE: tl.constexpr,
):  # fmt: skip
    """A read of queries sorted by bucket, up to ROWS of one bucket a program."""
    bucket = tl.load(which + tl.program_id(0))
    if bucket >= buckets:  # there are more programs than tiles, since nobody waits to count these
        return
    rows, inside = rows_of_tile(order, edge, tiles, end, bucket, ROWS)
    slot = tl.arange(0, SLOTS)
    where, there = bucket * held + slot, slot < slots
    at, real = where[None, :], there[None, :]
    taking, matches = choose(
        rows, inside, at, real, token, record, hide_state, hide_token, held_token, held_record, held_state
    )
    similarity = tl.zeros([ROWS, SLOTS], tl.float32)
    for begin in range(0, D, D_TILE):
        d = begin + tl.arange(0, D_TILE)
        q, k = block(query, rows, inside, d, D), block(key, where, there, d, D)
        similarity = product(q, tl.trans(k), similarity)
    weight, filled, top = soften(similarity, taking, real, tau)
    spread = tl.sum(weight * mean_distance(weight, distance, bucket, slot, slots), 1) / 2
    store_found(
        rows, inside, slot, slots, at, state, held_state, weight, filled, top, matches, spread,
        out_weight, out_similarity, out_sim_max, out_spread, out_same_state, out_matches,
    )  # fmt: skip
    for begin in range(0, V, V_TILE):
        v = begin + tl.arange(0, V_TILE)
        mean = product(weight, block(value, where, there, v, V), tl.zeros([ROWS, V_TILE], tl.float32))
        store_block(out_value, rows, inside, v, mean, V)


@triton.jit
def read_tiles_backward(
    order, edge, tiles, end, which, distance, buckets,
    state, key, value, held_state, weight, similarity,
    d_value, d_weight, d_sim_max, d_spread, d_same_state, d_query,
    held, slots, tau,
    D: tl.constexpr, V: tl.constexpr,
    ROWS: tl.constexpr, SLOTS: tl.constexpr, D_TILE: tl.constexpr, V_TILE: tl.constexpr,
):  # fmt: skip
    """Gradient towards queries sorted by bucket."""
    bucket = tl.load(which + tl.program_id(0))
    if bucket >= buckets:
        return
    rows, inside = rows_of_tile(order, edge, tiles, end, bucket, ROWS)
    slot = tl.arange(0, SLOTS)
    where, there = bucket * held + slot, slot < slots
    at, real = where[None, :], there[None, :]
    place, asked = rows[:, None] * slots + slot[None, :], inside[:, None] & real
    w = tl.load(weight + place, mask=asked, other=0.0)
    own = labels(held_state, at, real) == labels(state, rows, inside)[:, None]
    dw = tl.load(d_weight + place, mask=asked, other=0.0).to(tl.float32)
    dw += tl.where(own, tl.load(d_same_state + rows, mask=inside, other=0.0).to(tl.float32)[:, None], 0.0)
    # the derivative of the spread but for a term that is the same for all slots, so that no score feels it
    pull = tl.load(d_spread + rows, mask=inside, other=0.0).to(tl.float32)
    dw += pull[:, None] * mean_distance(w, distance, bucket, slot, slots)
    for begin in range(0, V, V_TILE):
        v = begin + tl.arange(0, V_TILE)
        dv, x = block(d_value, rows, inside, v, V), block(value, where, there, v, V)
        dw = product(dv, tl.trans(x), dw)
    d_top = tl.load(d_sim_max + rows, mask=inside, other=0.0).to(tl.float32)
    filled = tl.load(similarity + place, mask=asked, other=0.0)
    ds = toward_similarity(w, filled, real, dw, d_top, tau)
    for begin in range(0, D, D_TILE):
        d = begin + tl.arange(0, D_TILE)
        dq = product(ds, block(key, where, there, d, D), tl.zeros([ROWS, D_TILE], tl.float32))
        store_block(d_query, rows, inside, d, dq, D)
