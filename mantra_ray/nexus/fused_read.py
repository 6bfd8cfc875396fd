"""The read of a memory as one pass on a GPU, and the choice between that and the plain form of `cam`."""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mantra_ray.nexus.cam import Memory, Read, read, visible_slots

Form = Literal["plain", "rows", "tiles"]
SWITCH = "MANTRA_READ"  # environment: `plain`, `rows` or `tiles` instead of what `form_of` chooses
DTYPES = (torch.float32, torch.bfloat16)
MOST_SLOTS = 1024  # of a bucket, beyond which a query's weights no longer fit into registers
LEAST_TILED, MOST_TILED = 16, 64  # of a bucket that is read by tiles; with fewer the products are mostly padding
SORTED_FROM = 32  # queries a bucket from which sorting them pays,
SORTED_BYTES = 2**29  # and bytes of keys and values to read from which it pays at all
TILE_BYTES = 2**14  # of slots' keys or values that a program holds at once: by it 128 a thread of 4 warps
WARP_BYTES = 2**12


def recall(
    memory: Memory,
    query: Tensor,
    bucket: Tensor,
    token: Tensor,
    record: Tensor,
    state: Tensor,
    hide_state: Tensor | None,
    hide_token: Tensor | None,
    tau: float,
    form: Form | None = None,
) -> Read:
    """`cam.read` of what `cam.visible_slots` lets the records see, in the form that suits device and sizes.

    query [N, D] unit vectors; bucket, token, record, state [N] and what to hide [N] or None. Differentiable in `query`,
    once. Fused forms add up in float32, whatever the type of keys and values, and return the wider type of query and
    values; they keep no [N, S, D] tensor, and backward they read the memory again, so it must not change in between.
    `form`, or the environment variable MANTRA_READ, overrides the choice. Raises ValueError for a form that
    cannot read this memory.
    """
    asked = form or os.environ.get(SWITCH) or form_of(memory, query)
    if asked == "plain" or not len(query):
        visible = visible_slots(memory, bucket, record, hide_state, hide_token)
        return read(memory, query, bucket, token, state, visible, tau)
    return fused(memory, query, Asked(bucket, token, record, state, hide_state, hide_token), tau, asked)


def form_of(memory: Memory, query: Tensor) -> Form:
    """By tiles where every bucket has many queries and there is much to read, else by rows; plain on a CPU.

    Plain too are other types than float32 and bfloat16, more slots than `MOST_SLOTS`, no queries at all, a memory laid
    out otherwise than by `Memory.empty` and `trim`, and a machine without triton.
    """
    if not (query.is_cuda and memory.key.is_cuda and len(query) and readable(memory, query)) or load_kernels() is None:
        return "plain"
    buckets, slots = memory.record.shape
    gathered = len(query) * slots * (memory.key[0, 0].nbytes + memory.value[0, 0].nbytes)
    many = len(query) >= SORTED_FROM * buckets and gathered >= SORTED_BYTES
    return "tiles" if many and LEAST_TILED <= slots <= MOST_TILED else "rows"


def readable(memory: Memory, query: Tensor) -> bool:
    """Whether the kernels know the memory's types, its size and how it lies."""
    held, size = memory.record.stride(0), {memory.key.element_size(), memory.value.element_size()}
    labels = all(t.stride() == (held, 1) for t in (memory.token, memory.record, memory.state))
    wide = all(t.stride() == (held * t.shape[2], t.shape[2], 1) for t in (memory.key, memory.value))
    types = query.dtype in DTYPES and memory.key.dtype in DTYPES and memory.value.dtype in DTYPES and len(size) == 1
    return labels and wide and types and 1 <= memory.record.shape[1] <= MOST_SLOTS


@cache
def load_kernels() -> dict[str, Any] | None:
    """The Triton kernels by name, imported where they are first needed; None without triton."""
    try:
        from mantra_ray.nexus import kernels, tile_kernels
    except ImportError:
        return None
    names = ("distances", "read_tiles", "read_tiles_backward")
    by_rows = {name: getattr(kernels, name) for name in ("read_rows", "read_rows_backward")}
    return by_rows | {name: getattr(tile_kernels, name) for name in names}


def launch(name: str, device: torch.device, grid: tuple[int, ...], *given: Any, **sizes: int) -> None:
    """Run a kernel where the tensors lie; on a CPU only Triton's interpreter can."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        load_kernels()[name][grid](*given, **sizes)


class Asked(NamedTuple):
    """Where N records read, and what they must not see: as the kernels take it."""

    bucket: Tensor
    token: Tensor
    record: Tensor
    state: Tensor
    hide_state: Tensor | None
    hide_token: Tensor | None


class Tiles(NamedTuple):
    """N queries in tiles of one bucket each. A tile's number counts through the buckets."""

    order: Tensor  # [N] queries, sorted by bucket
    edge: Tensor  # [B + 1] a bucket's first place in `order`, and the next one's
    count: Tensor  # [B] its tiles
    end: Tensor  # [B] the first tile past its own
    which: Tensor  # [T] bucket of each tile; B past the last tile, since T is a bound that nobody needs to wait for

    @staticmethod
    def of(bucket: Tensor, buckets: int, rows: int) -> Tiles:
        """Tiles of up to `rows` queries."""
        narrow = torch.int16 if buckets < 2**15 else torch.int32  # a radix sort takes its time by the byte
        ordered, order = torch.sort(bucket.to(narrow), stable=True)
        edge = torch.searchsorted(ordered, torch.arange(buckets + 1, device=bucket.device, dtype=narrow))
        count = (edge.diff() + rows - 1) // rows
        end = count.cumsum(0)
        most = len(bucket) // rows + min(buckets, len(bucket))
        which = torch.searchsorted(end, torch.arange(most, device=bucket.device), right=True)
        return Tiles(order, edge, count, end, which)


def fused(memory: Memory, query: Tensor, asked: Asked, tau: float, form: str) -> Read:
    """A read by the kernels; ValueError if there are none for this memory or the form is unknown."""
    if form not in ("rows", "tiles"):
        raise ValueError(f"{form} is no form of a read: plain, rows or tiles")
    most = MOST_TILED if form == "tiles" else MOST_SLOTS
    if not readable(memory, query) or memory.record.shape[1] > most or load_kernels() is None:
        told = f"{list(memory.record.shape)} slots, keys {memory.key.dtype}, values {memory.value.dtype}"
        raise ValueError(f"no kernel reads a memory of {told} by {form} for queries {query.dtype}")
    asked = Asked(*(None if part is None else part.contiguous() for part in asked))
    keep = torch.is_grad_enabled() and query.requires_grad
    found = FusedRead.apply(query.contiguous(), memory, asked, float(tau), form, keep)
    value, sim_max, spread, same_state, weight, matches = found
    return Read(value, sim_max, matches, matches > 0, spread, weight, same_state)


class FusedRead(torch.autograd.Function):
    """The kernels of both forms, and their gradient towards the queries."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, memory: Memory, asked: Asked, tau: float, form: str, keep: bool
    ) -> tuple[Tensor, ...]:
        queries, (buckets, slots) = len(query), memory.record.shape
        wider = torch.promote_types(query.dtype, memory.value.dtype)
        value = query.new_empty(queries, memory.value.shape[2], dtype=wider)
        # what the backward pass reads again is kept in full
        weight = query.new_empty(queries, slots, dtype=torch.float32 if keep else wider)
        similarity = query.new_empty(queries, slots, dtype=torch.float32) if keep else None
        sim_max, spread, same_state = (query.new_empty(queries, dtype=wider) for _ in range(3))
        matches = query.new_empty(queries, dtype=torch.int64)
        held = (memory.key, memory.value, memory.token, memory.record, memory.state)
        out = (value, weight, similarity, sim_max, spread, same_state, matches)
        sizes, tiles = sizes_of(memory, queries, form), ()
        shape = (memory.record.stride(0), slots, tau, query.shape[1], value.shape[1])
        if form == "tiles":
            tiles = (*Tiles.of(asked.bucket, buckets, sizes["ROWS"]), distances(memory), buckets)
            grid, given = (len(tiles[4]),), (*tiles, query, *asked[1:], *held, *out)
        else:
            grid, given = (-(-queries // sizes["ROWS"]),), (query, *asked, *held, *out, queries)
        launch(f"read_{form}", query.device, grid, *given, *shape, **sizes)
        ctx.mark_non_differentiable(matches)
        if keep:
            ctx.save_for_backward(memory.key, memory.value, memory.state, asked.bucket, asked.state, weight, similarity)
            ctx.how = form, tiles, grid, shape, sizes, query.dtype
        return value, sim_max, spread, same_state, weight.to(wider), matches

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        value, sim_max, spread, same_state, weight, _ = (part.contiguous() for part in gradients)
        key, values, held_state, bucket, state, *kept = ctx.saved_tensors
        form, tiles, grid, shape, sizes, dtype = ctx.how
        d_query = key.new_empty(len(bucket), key.shape[2], dtype=dtype)
        given = (state, key, values, held_state, *kept, value, weight, sim_max, spread, same_state, d_query)
        given = (*tiles, *given) if form == "tiles" else (bucket, *given, len(bucket))
        launch(f"read_{form}_backward", key.device, grid, *given, *shape, **sizes)
        return d_query, None, None, None, None, None


def distances(memory: Memory) -> Tensor:
    """Mean squared difference of the values of each bucket's slots, two by two: [B, S, S]."""
    buckets, slots, width = memory.value.shape
    out = memory.value.new_empty(buckets, slots, slots, dtype=torch.float32)
    padded, tile = padded_to(slots), min(32, padded_to(width))
    part = min(padded, max(1, 4096 // (padded * tile)))
    given = (memory.value, out, memory.record.stride(0), slots, width, part, padded, tile)
    launch("distances", out.device, (buckets, padded // part), *given)
    return out


def padded_to(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


def sizes_of(memory: Memory, queries: int, form: str) -> dict[str, int]:
    """Rows a program, its tiles of slots and widths, and its warps, by the shapes alone."""
    buckets, slots, size = *memory.record.shape, memory.key.element_size()
    widths = padded_to(memory.key.shape[2]), padded_to(memory.value.shape[2])
    if form == "tiles":
        # float32 products run without tensor cores, where each thread holds whole rows and columns of a tile
        d, v = (max(16, min(width, 64 if size == 2 else 32)) for width in widths)
        rows = 64 if queries >= 128 * buckets else 32
        padded = max(16, padded_to(slots))
        return {"ROWS": rows, "SLOTS": padded, "D_TILE": d, "V_TILE": v, "num_warps": rows // 8, "num_stages": 2}
    padded = padded_to(slots)
    d, v = (min(width, max(16, TILE_BYTES // (padded * size))) for width in widths)
    rows = min(16, max(1, WARP_BYTES // (padded * max(d, v) * size)))
    warps = min(8, max(1, rows * padded * max(d, v) * size // WARP_BYTES))
    return {"ROWS": rows, "SLOTS": padded, "D_TILE": d, "V_TILE": v, "num_warps": warps}
