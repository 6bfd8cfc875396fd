"""The language head without its logits: entropy, surprisal and cross-entropy by chunks of rows.

The logits of N hidden states over V tokens are N x V numbers, more than all else in a batch together. Here at most
`chunk` of them are there at a time, or one row's. Everything that fits into one chunk is computed plainly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mantra_ray.nexus.compiled import Compiled

CHUNK = 2**25  # logits that are there at a time: 128 MiB in float32
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
    hidden: Tensor, weight: Tensor, content: Tensor, reduced: bool, compiled: bool = False, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Entropy [N] of the next token and mean surprisal [N] of tokens content [N, C], in nats, of hidden [N, D]."""
    step, padded = rows_at_once(len(weight), chunk), aligned(weight)
    found = [
        _entropy(compiled, _products(part, padded, reduced)[:, : len(weight)], tokens, hidden.dtype)
        for part, tokens in zip(hidden.split(step), content.split(step), strict=True)
    ]
    signal, surprisal = zip(*found, strict=True)
    return torch.cat(signal), torch.cat(surprisal)


def cross_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, reduced: bool, compiled: bool = False, chunk: int = CHUNK
) -> Tensor:
    """Mean cross-entropy in nats of the tokens target [...] under the logits of hidden [..., D] on weight [V, D].

    Differentiable once in `hidden` and `weight`.
    """
    if target.numel() * len(weight) <= chunk:
        return F.cross_entropy(logits(hidden, weight, reduced).flatten(0, -2), target.flatten())
    hidden, target, step = hidden.flatten(0, -2), target.flatten(), rows_at_once(len(weight), chunk)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _CrossEntropy.apply(hidden, weight, target, reduced, compiled, step)
    total, padded = hidden.new_zeros((), dtype=torch.float64), aligned(weight)
    for part, tokens in zip(hidden.split(step), target.split(step), strict=True):
        total += _loss(compiled, _products(part, padded, reduced)[:, : len(weight)], tokens, hidden.dtype)
    return (total / len(target)).to(hidden.dtype)


def _products(hidden: Tensor, weight: Tensor, reduced: bool) -> Tensor:
    """The logits in the type in which they are computed."""
    scaled = hidden / hidden.shape[-1] ** 0.5
    with torch.autocast(hidden.device.type, torch.bfloat16, enabled=reduced):
        return scaled @ weight.T


def _rows_entropy(products: Tensor, content: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    log_p = torch.log_softmax(products.to(dtype), dim=-1)
    return -(log_p.exp() * log_p).sum(-1), -log_p.gather(1, content).mean(-1)


def _rows_loss(products: Tensor, target: Tensor, dtype: torch.dtype) -> Tensor:
    return F.cross_entropy(products.to(dtype), target, reduction="sum")


def _rows_gradient(products: Tensor, target: Tensor, dtype: torch.dtype, width: int) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of the first `width` columns of rows, and its gradient by all of them in their own type."""
    told, spare = target[:, None], products.shape[1] - width
    log_p = torch.log_softmax(products[:, :width], dim=-1, dtype=dtype)
    log_told = log_p.gather(1, told)
    gradient = log_p.exp_().to(products.dtype)
    # p - 1 at the target, rounded once: near 1 bfloat16 is too coarse to subtract from
    gradient.scatter_(1, told, torch.expm1(log_told).to(products.dtype))
    return -log_told.sum(), F.pad(gradient, (0, spare)) if spare else gradient


_entropy = Compiled(_rows_entropy, batched=2)
_loss = Compiled(_rows_loss, batched=2)
_loss_and_gradient = Compiled(_rows_gradient, batched=2)


class _CrossEntropy(torch.autograd.Function):
    """Linear cross-entropy whose gradients are made chunk by chunk on the way forward, while the logits are there.

    As in Hsu et al. 2024 (Liger Kernel, arXiv:2410.10989, section 3.2): kept for the way back are gradients of the
    size of `hidden` and `weight`. Sums over chunks are in float32, or what `hidden` is in where that is finer.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, reduced: bool, compiled: bool, step: int
    ) -> Tensor:
        kind = torch.bfloat16 if reduced else hidden.dtype
        states, tokens = (hidden / hidden.shape[-1] ** 0.5).to(kind), aligned(weight.to(kind))
        total = hidden.new_zeros((), dtype=torch.float64)
        by_hidden, by_weight = torch.empty_like(states), weight.new_zeros(tokens.shape)
        with torch.autocast(hidden.device.type, enabled=False):  # all types are as they should be
            for start in range(0, len(hidden), step):
                rows = slice(start, start + step)
                products = states[rows] @ tokens.T
                loss, gradient = _loss_and_gradient(compiled, products, target[rows], hidden.dtype, len(weight))
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
        return hidden, by_weight * each, None, None, None, None
