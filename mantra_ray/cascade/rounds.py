"""A round of message passing over the signed graph, and the readout, with as few large tensors as they can do with."""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch.nn.functional as F

from mantra_ray.cascade import kernels
from mantra_ray.cascade.graph_inputs import GrnInputs

BLOCK = 2**22  # numbers of a block of records on a CPU, so that a round's intermediate states stay near its caches


class SignedEdges:
    """The graph's two operators: messages down the edges (to targets) and up (to regulators), weights fixed."""

    def __init__(self, inputs: GrnInputs, nodes: int, device: torch.device):
        from torch_geometric import EdgeIndex  # a second or more to import, and needed here alone

        incoming = np.bincount(inputs.target, np.abs(inputs.weight), minlength=nodes)
        outgoing = np.bincount(inputs.source, np.abs(inputs.weight), minlength=nodes)
        # A sum of messages with mixed signs grows like the root of their number.
        self.down = inputs.weight / np.sqrt(np.maximum(incoming, 1))[inputs.target]
        self.up = inputs.weight / np.sqrt(np.maximum(outgoing, 1))[inputs.source]
        ends = torch.from_numpy(np.stack([inputs.target, inputs.source])).to(device)
        weights = [torch.from_numpy(weight.astype(np.float32)).to(device) for weight in (self.down, self.up)]
        self.forth, self.back = [], []  # a side's sums, and those of its transpose, which lie along the other side
        for side, index in enumerate((ends, ends.flip(0))):
            edges, order = EdgeIndex(index.contiguous(), sparse_size=(nodes, nodes)).sort_by("row")
            edges = edges.fill_cache_()
            self.forth.append((edges, weights[side][order]))
            self.back.insert(0, (edges, weights[1 - side][order]))
        self._rows: dict[bool, tuple[kernels.Rows, kernels.Rows]] = {}

    def rows(self, back: bool = False) -> tuple[kernels.Rows, kernels.Rows]:
        """Both sides' sums as the kernels take them, or those of gradients; made at first use."""
        if back not in self._rows:
            sides = self.back if back else self.forth
            self._rows[back] = tuple(kernels.Rows.of(*edges.get_csr()[0], weight) for edges, weight in sides)
        return self._rows[back]

    def pass_along(self, message: torch.Tensor) -> torch.Tensor:
        """Sum messages [V, ..., H] over edges; the first half of the channels flows down, the second up."""
        halves = [half.reshape(len(half), -1) for half in message.chunk(2, -1)]
        shape = (*message.shape[:-1], message.shape[-1] // 2)
        return torch.cat([self.sums(side, half).view(shape) for side, half in enumerate(halves)], -1)

    def sums(self, side: int, messages: torch.Tensor, back: bool = False) -> torch.Tensor:
        """Messages [V, n] summed over edges down (side 0) or up (1); `back` against the edges, as gradients go."""
        edges, weight = (self.back if back else self.forth)[side]
        with warnings.catch_warnings():
            # PyG multiplies by a CSR tensor, which torch calls a beta feature whose invariants go unchecked.
            warnings.filterwarnings("ignore", "Sparse (CSR tensor support|invariant checks)", UserWarning)
            return edges.matmul(messages, input_value=weight)


def block_of(states: torch.Tensor) -> int:
    """Records of states [V, B, H] that a round takes at once; on a GPU all."""
    return states.shape[1] if states.is_cuda else max(1, BLOCK // (states.shape[0] * states.shape[2]))


class Round(torch.autograd.Function):
    """leaky(x + offset + gain * A(x W^T)) of states x [V, B, H], with FiLM's gain and offset [C, H] of condition [B].

    Autograd alone would keep four tensors of the size of x; this keeps x and the result, which is the next round's
    x, and makes messages anew for the gradient (activation checkpointing, Chen et al. 2016, arXiv:1604.06174). What
    was received is never needed again: with q = A^T(gradient), the gradient of the gain is the sum of q * (x W^T).
    Records go through in blocks of `at_once`, since they do not touch; all else is made for a block alone. On a GPU
    kernels do it, for all records at once (`_forward`, `_backward`). States may be bfloat16, all else is float32.
    """

    @staticmethod
    def forward(ctx, states, weight, gain, offset, condition, edges: SignedEdges, slope: float, at_once: int):
        ctx.edges, ctx.slope, ctx.at_once = edges, slope, at_once
        if kernels.available(states):
            out = _forward(states.contiguous(), weight, gain, offset, condition, edges, slope)
            ctx.save_for_backward(states, weight, gain, condition, out)
            return out
        out, half = torch.empty_like(states), states.shape[2] // 2
        for first in range(0, states.shape[1], at_once):
            block = slice(first, first + at_once)
            x, kind = _widened(states[:, block]), condition[block]
            made = out[:, block] if x.dtype == out.dtype else torch.empty_like(x)
            flat = x.reshape(-1, 2 * half)
            for side in (0, 1):
                own = slice(side * half, (side + 1) * half)
                received = edges.sums(side, (flat @ weight[own].T).view(len(x), -1)).view(len(x), -1, half)
                place = made[:, :, own]
                torch.addcmul(x[:, :, own], received, gain[kind][:, own], out=place)
                place += offset[kind][:, own]
            if slope != 1:
                F.leaky_relu_(made, slope)
            if x.dtype != out.dtype:
                out[:, block] = made
        ctx.save_for_backward(states, weight, gain, condition, out)
        return out

    @staticmethod
    def backward(ctx, gradient):
        states, weight, gain, condition, out = ctx.saved_tensors
        if kernels.available(states):
            return *_backward(gradient, states, weight, gain, condition, out, ctx.edges, ctx.slope), *4 * [None]
        half = states.shape[2] // 2
        to_states, to_weight = torch.empty_like(states), torch.zeros_like(weight)
        to_gain, to_offset = torch.zeros_like(gain), torch.zeros_like(gain)
        for first in range(0, states.shape[1], ctx.at_once):
            block = slice(first, first + ctx.at_once)
            kind, flat = condition[block], _widened(states[:, block]).reshape(-1, 2 * half)
            coming, made = _widened(gradient[:, block]), _widened(out[:, block])
            into = torch.ops.aten.leaky_relu_backward(coming, made, ctx.slope, True).contiguous()
            to_offset.index_add_(0, kind, into.sum(0))
            back = [ctx.edges.sums(i, part.reshape(len(into), -1), True) for i, part in enumerate(into.chunk(2, 2))]
            into, gains = into.view(-1, 2 * half), gain[kind]
            for side, sent in enumerate(back):
                own = slice(side * half, (side + 1) * half)
                sent = sent.view(len(states), -1, half)
                if ctx.needs_input_grad[2]:
                    messages = (flat @ weight[own].T).view_as(sent)
                    to_gain[:, own] = to_gain[:, own].index_add(0, kind, (messages * sent).sum(0))
                sent = (sent * gains[:, own]).view(-1, half)
                into.addmm_(sent, weight[own])
                if ctx.needs_input_grad[1]:
                    to_weight[own].addmm_(sent.T, flat)
            to_states[:, block] = into.view(len(states), -1, 2 * half)
        return to_states, to_weight, to_gain, to_offset, None, None, None, None


def _widened(states: torch.Tensor) -> torch.Tensor:
    """In float32, if they are bfloat16."""
    return states.float() if states.dtype == torch.bfloat16 else states


def _forward(states, weight, gain, offset, condition, edges: SignedEdges, slope: float) -> torch.Tensor:
    """A round by kernels: one product makes both sides' messages, then each row is summed, modulated and written."""
    message = F.linear(states, weight.to(states.dtype))
    return kernels.round_(edges.rows(), message, states, gain, offset, condition, slope)


def _backward(gradient, states, weight, gain, condition, out, edges: SignedEdges, slope: float) -> tuple:
    """Gradients of states, weight, gain and offset, with no messages made again.

    With q_b = A^T(gradient) of record b and P_b = q_b^T x_b [H, H], the gradient of its gain is the diagonal of
    P_b W^T, that of the weight is the sum of P_b with rows times the gain, and x_b gets q_b (gain W).
    """
    into, offsets = kernels.into(gradient, out, slope)
    back = kernels.sums(edges.rows(back=True), into)
    gains = gain[condition][:, :, None]
    pairs = torch.bmm(back.permute(1, 2, 0), states.transpose(0, 1)).float()
    to_gain = torch.zeros_like(gain).index_add_(0, condition, (pairs * weight).sum(2))
    to_offset = torch.zeros_like(gain).index_add_(0, condition, offsets)
    into.transpose(0, 1).baddbmm_(back.transpose(0, 1), (gains * weight).to(into.dtype))
    return into, (gains * pairs).sum(0), to_gain, to_offset


class Spread(torch.autograd.Function):
    """leaky(x[:, condition] + added) [V, B, H] of states x [V, C, H], where `added` [n, H/2] are few half rows.

    `place` [n], each one once, numbers the halves of the result's states in order. A row that nothing is added to is
    that of its condition, so that the rectifier and its gradient see [V, C, H] and the added rows alone. The result
    is of type `kind`; sums are in float32.
    """

    @staticmethod
    def forward(ctx, states, added, place, condition, kind: torch.dtype, slope: float):
        kinds, batch, half = states.shape[1], len(condition), states.shape[2] // 2
        entry, side = place // 2, place % 2
        source = 2 * (entry // batch * kinds + condition[entry % batch]) + side
        before = states.reshape(-1, half)[source] + added
        out = F.leaky_relu(states, slope).to(kind).index_select(1, condition)
        out.view(-1, half)[place] = F.leaky_relu(before, slope).to(kind)
        ctx.save_for_backward(states, place, source, before > 0, condition)
        ctx.slope = slope
        return out

    @staticmethod
    def backward(ctx, gradient):
        states, place, source, rises, condition = ctx.saved_tensors
        gradient, half = gradient.contiguous(), states.shape[2] // 2
        there = gradient.view(-1, half)[place].float()
        to_added = torch.where(rises, there, there * ctx.slope)
        members = F.one_hot(condition, states.shape[1]).T.to(gradient.dtype)
        to_states = torch.matmul(members, gradient).float()
        to_states = torch.where(states > 0, to_states, to_states * ctx.slope)
        alone = torch.where(states.reshape(-1, half)[source] > 0, there, there * ctx.slope)
        to_states.view(-1, half).index_add_(0, source, to_added - alone)
        return to_states, to_added, None, None, None, None


class ReadOut(torch.autograd.Function):
    """Each gene's own readout [G, B] of states [V, B, H], and the perturbed nodes' states [B, H].

    One gradient of the size of the states serves both; autograd alone would fill, write and add three.
    """

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, weight: torch.Tensor, node: torch.Tensor, batch: torch.Tensor):
        ctx.save_for_backward(hidden, weight, node, batch)
        if kernels.available(hidden):
            own = kernels.read_out(hidden, weight)
        else:
            own = torch.bmm(weight[:, None], _widened(hidden[: len(weight)]).transpose(1, 2))[:, 0]
        return own, _widened(hidden[node, batch])

    @staticmethod
    def backward(ctx, own: torch.Tensor, perturbed: torch.Tensor):
        hidden, weight, node, batch = ctx.saved_tensors
        own, genes = own.contiguous(), len(weight)
        if kernels.available(hidden):
            gradient, to_weight = kernels.read_out_back(own, hidden, weight)
        else:
            gradient = hidden.new_zeros(hidden.shape) if genes < len(hidden) else torch.empty_like(hidden)
            torch.mul(own[:, :, None], weight[:, None], out=gradient[:genes])
            to_weight = torch.bmm(own[:, None], _widened(hidden[:genes]))[:, 0]
        gradient[node, batch] += perturbed.to(hidden.dtype)
        return gradient, to_weight, None, None
