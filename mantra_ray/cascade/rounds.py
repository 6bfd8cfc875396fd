"""A round of message passing over the signed graph, and the readout, with as few large tensors as they can do with."""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch_geometric import EdgeIndex

from mantra_ray.cascade.graph_inputs import GrnInputs

BLOCK = 2**22  # numbers of a block of records on a CPU, so that a round's intermediate states stay near its caches


class SignedEdges:
    """The graph's two operators: messages down the edges (to targets) and up (to regulators), weights fixed."""

    def __init__(self, inputs: GrnInputs, nodes: int, device: torch.device):
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
    Records go through in blocks of `at_once`, since they do not touch; all else is made for a block alone.
    """

    @staticmethod
    def forward(ctx, states, weight, gain, offset, condition, edges: SignedEdges, slope: float, at_once: int):
        out, half = torch.empty_like(states), states.shape[2] // 2
        for first in range(0, states.shape[1], at_once):
            block = slice(first, first + at_once)
            x, kind = states[:, block], condition[block]
            flat = x.reshape(-1, 2 * half)
            for side in (0, 1):
                own = slice(side * half, (side + 1) * half)
                received = edges.sums(side, (flat @ weight[own].T).view(len(x), -1)).view(len(x), -1, half)
                place = out[:, block, own]
                torch.addcmul(x[:, :, own], received, gain[kind][:, own], out=place)
                place += offset[kind][:, own]
            if slope != 1:
                F.leaky_relu_(out[:, block], slope)
        ctx.save_for_backward(states, weight, gain, condition, out)
        ctx.edges, ctx.slope, ctx.at_once = edges, slope, at_once
        return out

    @staticmethod
    def backward(ctx, gradient):
        states, weight, gain, condition, out = ctx.saved_tensors
        half = states.shape[2] // 2
        to_states, to_weight = torch.empty_like(states), torch.zeros_like(weight)
        to_gain, to_offset = torch.zeros_like(gain), torch.zeros_like(gain)
        for first in range(0, states.shape[1], ctx.at_once):
            block = slice(first, first + ctx.at_once)
            kind, flat = condition[block], states[:, block].reshape(-1, 2 * half)
            into = torch.ops.aten.leaky_relu_backward(gradient[:, block], out[:, block], ctx.slope, True).contiguous()
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


class ReadOut(torch.autograd.Function):
    """Each gene's own readout [G, B] of states [V, B, H], and the perturbed nodes' states [B, H].

    One gradient of the size of the states serves both; autograd alone would fill, write and add three.
    """

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, weight: torch.Tensor, node: torch.Tensor, batch: torch.Tensor):
        ctx.save_for_backward(hidden, weight, node, batch)
        own = torch.bmm(weight[:, None], hidden[: len(weight)].transpose(1, 2))[:, 0]
        return own, hidden[node, batch]

    @staticmethod
    def backward(ctx, own: torch.Tensor, perturbed: torch.Tensor):
        hidden, weight, node, batch = ctx.saved_tensors
        own, genes = own.contiguous(), len(weight)
        gradient = hidden.new_zeros(hidden.shape) if genes < len(hidden) else torch.empty_like(hidden)
        torch.mul(own[:, :, None], weight[:, None], out=gradient[:genes])
        gradient[node, batch] += perturbed
        return gradient, torch.bmm(own[:, None], hidden[:genes])[:, 0], None, None
