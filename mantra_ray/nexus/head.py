"""The language head without its logits: entropy, surprisal and cross-entropy by chunks of rows.

The logits of N hidden states over V tokens are N x V numbers, more than all else in a batch together. Here at most
`chunk` of them are there at a time, or one row's. Everything that fits into CHUNK is computed plainly.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 2**25  # logits that are there at a time: 128 MiB in float32,
ON_GPU = 2**27  # and where there is more memory, and each chunk costs launches: 256 MiB in bfloat16
FUSED = (torch.float32, torch.bfloat16)  # types that the kernels read
TILE = 128  # rows come in multiples of this, which a GPU's matrix products are cut into
ALIGNED = 64  # and on a GPU so does the vocabulary: products of odd widths miss its fastest kernels


def rows_at_once(vocabulary: int, chunk: int) -> int:
    """Rows whose logits fit into a chunk, at least 1."""
    rows = max(1, chunk // vocabulary)
    return rows if rows < TILE else rows - rows % TILE


def aligned(weight: Tensor) -> Tensor:
    """weight [V, D] on a GPU with rows of zeros up to a multiple of ALIGNED, whose logits nobody may look at."""
    spare = -len(weight) % ALIGNED
    return F.pad(weight, (0, 0, 0, spare)) if weight.is_cuda and spare else weight


def logits(hidden: Tensor, weight: Tensor, reduced: bool) -> Tensor:
    """hidden [..., D] on weight [V, D], scaled by 1 / sqrt(D), as [..., V]; `reduced`: the product is bfloat16's."""
    return _products(hidden, weight, reduced).to(hidden.dtype)


def entropy(
    hidden: Tensor,
    weight: Tensor,
    content: Tensor,
    reduced: bool,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Entropy [N] of the next token and mean surprisal [N] of tokens content [N, C], in nats, of hidden [N, D]."""
    chunk = chunk or (ON_GPU if hidden.is_cuda else CHUNK)
    step, padded = rows_at_once(len(weight), chunk), aligned(weight)
    found = [
        _described(_products(part, padded, reduced), len(weight), tokens, hidden.dtype)
        for part, tokens in zip(hidden.split(step), content.split(step), strict=True)
    ]
    signal, surprisal = zip(*found, strict=True)
    return torch.cat(signal), torch.cat(surprisal)


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    reduced: bool,
    chunk: int | None = None,
) -> Tensor:
    """Mean cross-entropy in nats of the tokens target [...] under the logits of hidden [..., D] on weight [V, D].

    Differentiable once in `hidden` and `weight`.
    """
    if target.numel() * len(weight) <= (chunk or CHUNK):
        return F.cross_entropy(logits(hidden, weight, reduced).flatten(0, -2), target.flatten())
    chunk = chunk or (ON_GPU if hidden.is_cuda else CHUNK)
    hidden, target, step = hidden.flatten(0, -2), target.flatten(), rows_at_once(len(weight), chunk)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _CrossEntropy.apply(hidden, weight, target, reduced, step)
    total, padded = hidden.new_zeros((), dtype=torch.float64), aligned(weight)
    for part, tokens in zip(hidden.split(step), target.split(step), strict=True):
        total += _described(_products(part, padded, reduced), len(weight), tokens[:, None], hidden.dtype)[1].sum()
    return (total / len(target)).to(hidden.dtype)


def _products(hidden: Tensor, weight: Tensor, reduced: bool) -> Tensor:
    """The logits in the type in which they are computed."""
    scaled = hidden / hidden.shape[-1] ** 0.5
    with torch.autocast(hidden.device.type, torch.bfloat16, enabled=reduced):
        return scaled @ weight.T


def _described(products: Tensor, width: int, content: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Entropy [N] of the first `width` logits of rows [N, ·] and mean surprisal [N] of content [N, C]."""
    if products.is_cuda and products.dtype in FUSED and load_kernels() is not None:
        return tuple(found.to(dtype) for found in describe(products, width, content))
    log_p = torch.log_softmax(products[:, :width].to(dtype), dim=-1)
    return -(log_p.exp() * log_p).sum(-1), -log_p.gather(1, content).mean(-1)


def _descended(products: Tensor, width: int, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of the first `width` logits of rows [N, ·], and its gradient by all, in the same type.

    The gradient may lie where the logits were.
    """
    if products.is_cuda and products.dtype in FUSED and load_kernels() is not None:
        return descend_(products, width, target).sum(dtype=torch.float64), products
    log_p = torch.log_softmax(products[:, :width].to(dtype), dim=-1)
    log_told = log_p.gather(1, target[:, None])
    gradient = log_p.exp_()
    # p - 1 before it is rounded: near 1 bfloat16 is too coarse to subtract from
    gradient.scatter_(1, target[:, None], torch.expm1(log_told))
    return -log_told.sum(), F.pad(gradient.to(products.dtype), (0, products.shape[1] - width))


@cache
def load_kernels() -> ModuleType | None:
    """The Triton kernels, imported where they are first needed; None without triton."""
    try:
        from mantra_ray.nexus import head_kernels
    except ImportError:
        return None
    return head_kernels


def describe(products: Tensor, width: int, content: Tensor, block: int = 4096) -> tuple[Tensor, Tensor]:
    """By the kernel: entropy and mean surprisal, float32 [N], of logits [N, ·], of which `width` count."""
    found = products.new_empty(2, len(products), dtype=torch.float32)
    tokens, given = content.shape[1], (content.contiguous(), *found)
    padded = 1 << (tokens - 1).bit_length()
    _launch("describe_rows", products, *given, products.stride(0), width, tokens, BLOCK=block, TOKENS=padded)
    return found[0], found[1]


def descend_(products: Tensor, width: int, target: Tensor, block: int | None = None) -> Tensor:
    """By the kernel: cross-entropy, float32 [N], of logits [N, ·]; its gradient takes their place."""
    loss, padded = products.new_empty(len(products), dtype=torch.float32), products.shape[1]
    block = block or (2048 if padded <= 2**14 else 8192)  # the fastest of 1,024 to 65,536 on an H100
    _launch("descend_rows", products, target.contiguous(), loss, products.stride(0), width, padded, BLOCK=block)
    return loss


def _launch(name: str, products: Tensor, *given: Any, **sizes: int) -> None:
    """Run a kernel on every row where the tensors lie; on a CPU only Triton's interpreter can."""
    warps = 4 if sizes["BLOCK"] <= 4096 else 8
    with torch.cuda.device(products.device) if products.is_cuda else nullcontext():
        getattr(load_kernels(), name)[(len(products),)](products, *given, **sizes, num_warps=warps)


class _CrossEntropy(torch.autograd.Function):
    """Linear cross-entropy whose gradients are made chunk by chunk on the way forward, while the logits are there.

    As in Hsu et al. 2024 (Liger Kernel, arXiv:2410.10989, section 3.2): kept for the way back are gradients of the
    size of `hidden` and `weight`. Sums over chunks are in float32, or what `hidden` is in where that is finer.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, reduced: bool, step: int) -> Tensor:
        kind = torch.bfloat16 if reduced else hidden.dtype
        states, tokens = (hidden / hidden.shape[-1] ** 0.5).to(kind), aligned(weight.to(kind))
        total = hidden.new_zeros((), dtype=torch.float64)
        by_hidden, by_weight = torch.empty_like(states), weight.new_zeros(tokens.shape)
        with torch.autocast(hidden.device.type, enabled=False):  # all types are as they should be
            for start in range(0, len(hidden), step):
                rows = slice(start, start + step)
                products = states[rows] @ tokens.T
                loss, gradient = _descended(products, len(weight), target[rows], hidden.dtype)
                del products  # before the next ones are there
                total += loss
                torch.mm(gradient, tokens, out=by_hidden[rows])
                by_weight += gradient.T @ states[rows]
                del gradient
        ctx.save_for_backward(by_hidden, by_weight[: len(weight)])
        return (total / len(hidden)).to(hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden, by_weight = ctx.saved_tensors
        each = by_loss / len(by_hidden)
        hidden = by_hidden.to(by_loss.dtype) * (each / by_hidden.shape[-1] ** 0.5)
        return hidden, by_weight * each, None, None, None
