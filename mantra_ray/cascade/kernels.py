"""Triton kernels of a round of message passing and of the readout on a GPU, where bytes moved are the time taken.

States [V, B, H] (nodes, records, width) may be float32 or bfloat16; every sum is in float32. The first half of the
channels flows down the edges (side 0), the second up (side 1).

Edges: for each row its senders, as a CSR matrix. A program makes one row's sum over some records; rows go through
before records do, so that the messages in use, V x `COLUMNS` numbers, fit into the L2 cache although a row is read once
for each of its edges. Rows with many edges come first, since one program walks along them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for CPUs may come without
    triton = None

COLUMNS = 2048  # bytes of a row's part that a program sums: V = 20,000 rows of them are 41 MB
EDGES = 16  # that a program reads at once
NODES = 32  # whose gradients a program goes through, one after another
RECORDS = 32  # that a readout's program reads at once


def available(states: Tensor) -> bool:
    """Whether the kernels run where the states lie."""
    return triton is not None and states.is_cuda


@dataclass(frozen=True)
class Rows:
    """One side's sums: the senders and weights of each row, and the rows, those with most edges first."""

    first: Tensor  # [V + 1] int32, into the two below
    sender: Tensor  # [E] int32
    weight: Tensor  # [E] float32
    order: Tensor  # [V] int32

    @staticmethod
    def of(first: Tensor, sender: Tensor, weight: Tensor) -> Rows:
        """From a CSR matrix."""
        order = torch.argsort(first.diff(), descending=True, stable=True)
        return Rows(first.int(), sender.int(), weight, order.int())


def sums(rows: tuple[Rows, Rows], message: Tensor) -> Tensor:
    """Messages [V, B, H] summed over the edges of both sides."""
    return _both_sides(rows, message, None, message, message, message, 1.0)


def round_(
    rows: tuple[Rows, Rows], message: Tensor, states: Tensor, gain: Tensor, offset: Tensor, kind: Tensor, slope: float
) -> Tensor:
    """leaky(states + offset + gain * sums(message)) [V, B, H]; gain and offset [C, H] float32 of kind [B]."""
    return _both_sides(rows, message, states, gain.contiguous(), offset.contiguous(), kind, slope)


def _both_sides(rows, message, states, gain, offset, kind, slope) -> Tensor:
    nodes, batch, hidden = message.shape
    half, out = hidden // 2, torch.empty_like(message)
    wide = triton.next_power_of_2(half)
    records = min(max(1, COLUMNS // message.element_size() // wide), triton.next_power_of_2(batch))
    grid = (nodes, triton.cdiv(batch, records))
    shape = {"HALF": half, "WIDE": wide, "RECORDS": records, "EDGES": EDGES}
    with torch.cuda.device_of(message):  # else Triton takes the current one
        for side, mine in enumerate(rows):
            _sums[grid](
                mine.order, mine.first, mine.sender, mine.weight, message, message if states is None else states, gain,
                offset, kind, out, batch, side * half, slope, MODULATED=states is not None, **shape,
            )  # fmt: skip
    return out


def into(gradient: Tensor, out: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """The gradient [V, B, H] before the rectifier that gave `out`, and its sum over nodes [B, H] float32."""
    nodes, batch, hidden = out.shape
    width, chunks = batch * hidden, triton.cdiv(nodes, NODES)
    before, partial = torch.empty_like(out), out.new_empty(chunks, width, dtype=torch.float32)
    with torch.cuda.device_of(out):
        _into[(chunks, triton.cdiv(width, 1024))](
            gradient.contiguous(), out, before, partial, nodes, width, slope, NODES=NODES, COLUMNS=1024
        )
    return before, partial.sum(0).view(batch, hidden)


def read_out(hidden: Tensor, weight: Tensor) -> Tensor:
    """[G, B] float32: the first G nodes' states, each times its gene's weights [G, H]."""
    genes, (_, batch, width) = len(weight), hidden.shape
    own = hidden.new_empty(genes, batch, dtype=torch.float32)
    shape = {"WIDTH": width, "WIDE": triton.next_power_of_2(width), "RECORDS": RECORDS}
    with torch.cuda.device_of(hidden):
        _read_out[(genes, triton.cdiv(batch, RECORDS))](hidden, weight.contiguous(), own, batch, **shape)
    return own


def read_out_back(own: Tensor, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of states [V, B, H] and weights [G, H], from that of the readout [G, B]."""
    nodes, batch, width = hidden.shape
    to_hidden, to_weight = torch.empty_like(hidden), torch.empty_like(weight, memory_format=torch.contiguous_format)
    shape = {"WIDTH": width, "WIDE": triton.next_power_of_2(width), "RECORDS": RECORDS}
    with torch.cuda.device_of(hidden):
        _read_out_back[(nodes,)](
            own.contiguous(), hidden, weight.contiguous(), to_hidden, to_weight, len(weight), batch, **shape
        )
    return to_hidden, to_weight


if triton is not None:

    @triton.jit
    def _sums(
        order, first, sender, weight, message, states, gain, offset, kind, out, batch, begin, slope,
        MODULATED: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr, RECORDS: tl.constexpr, EDGES: tl.constexpr,
    ):  # fmt: skip
        """One row's sum over one side's edges for some records, and what the round makes of it."""
        row = tl.load(order + tl.program_id(0)).to(tl.int64)
        column = tl.arange(0, RECORDS * WIDE)
        record = tl.program_id(1) * RECORDS + column // WIDE
        channel = begin + column % WIDE
        inside = (record < batch) & (column % WIDE < HALF)
        place = record * (2 * HALF) + channel
        total = tl.zeros([RECORDS * WIDE], tl.float32)
        last = tl.load(first + row + 1)
        for edge in range(tl.load(first + row), last, EDGES):
            edges = edge + tl.arange(0, EDGES)
            node = tl.load(sender + edges, mask=edges < last, other=0).to(tl.int64)
            factor = tl.load(weight + edges, mask=edges < last, other=0.0)
            there = (edges < last)[:, None] & inside[None, :]
            sent = tl.load(message + (node * batch * (2 * HALF))[:, None] + place[None, :], mask=there, other=0.0)
            total += tl.sum(sent.to(tl.float32) * factor[:, None], 0)
        at = row * batch * (2 * HALF) + place
        if MODULATED:
            film = tl.load(kind + record, mask=inside, other=0) * (2 * HALF) + channel
            stay = tl.load(states + at, mask=inside, other=0.0).to(tl.float32)
            total = (
                stay
                + tl.load(offset + film, mask=inside, other=0.0)
                + total * tl.load(gain + film, mask=inside, other=0.0)
            )
            total = tl.where(total > 0, total, total * slope)
        tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)

    @triton.jit
    def _into(gradient, out, before, partial, nodes, width, slope, NODES: tl.constexpr, COLUMNS: tl.constexpr):
        """The rectifier's gradient for some nodes and columns, and its sum over these nodes."""
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        total = tl.zeros([COLUMNS], tl.float32)
        for i in range(NODES):
            node = tl.program_id(0) * NODES + i
            inside = (column < width) & (node < nodes)
            at = node.to(tl.int64) * width + column
            slow = tl.load(out + at, mask=inside, other=0.0).to(tl.float32) <= 0
            value = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
            value = tl.where(slow, value * slope, value)
            tl.store(before + at, value.to(before.dtype.element_ty), mask=inside)
            total += value
        tl.store(partial + tl.program_id(0).to(tl.int64) * width + column, total, mask=column < width)

    @triton.jit
    def _read_out(hidden, weight, own, batch, WIDTH: tl.constexpr, WIDE: tl.constexpr, RECORDS: tl.constexpr):
        """One gene's readout of some records."""
        gene = tl.program_id(0).to(tl.int64)
        record, channel = tl.program_id(1) * RECORDS + tl.arange(0, RECORDS), tl.arange(0, WIDE)
        factor = tl.load(weight + gene * WIDTH + channel, mask=channel < WIDTH, other=0.0)
        inside = (record < batch)[:, None] & (channel < WIDTH)[None, :]
        at = gene * batch * WIDTH + record[:, None] * WIDTH + channel[None, :]
        states = tl.load(hidden + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(own + gene * batch + record, tl.sum(states * factor[None, :], 1), mask=record < batch)

    @triton.jit
    def _read_out_back(
        own, hidden, weight, to_hidden, to_weight, genes, batch,
        WIDTH: tl.constexpr, WIDE: tl.constexpr, RECORDS: tl.constexpr,
    ):  # fmt: skip
        """One node's gradients; 0 beyond the genes."""
        node = tl.program_id(0).to(tl.int64)
        channel = tl.arange(0, WIDE)
        read = (channel < WIDTH) & (node < genes)
        factor = tl.load(weight + node * WIDTH + channel, mask=read, other=0.0)
        total = tl.zeros([WIDE], tl.float32)
        for begin in range(0, batch, RECORDS):
            record = begin + tl.arange(0, RECORDS)
            value = tl.load(own + node * batch + record, mask=(record < batch) & (node < genes), other=0.0)
            inside = (record < batch)[:, None] & (channel < WIDTH)[None, :]
            at = node * batch * WIDTH + record[:, None] * WIDTH + channel[None, :]
            states = tl.load(hidden + at, mask=inside & (node < genes), other=0.0).to(tl.float32)
            total += tl.sum(states * value[:, None], 0)
            tl.store(to_hidden + at, (value[:, None] * factor[None, :]).to(to_hidden.dtype.element_ty), mask=inside)
        tl.store(to_weight + node * WIDTH + channel, total, mask=read)
