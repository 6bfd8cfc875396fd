"""Triton kernels of the language head: what a row of logits says, and its gradient in its own place.

A program has a row, which it passes block by block, for the gradient a second time, mostly from a cache (one block for
the whole row is slower: few programs then fit on a multiprocessor). Sums are in float32 and in a fixed order.

Importing this module needs triton.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def block_of(row, start, width, BLOCK: tl.constexpr):
    """Logits [BLOCK] from a column on in float32, -inf past the end of the row."""
    column = start + tl.arange(0, BLOCK)
    return tl.load(row + column, mask=column < width, other=float("-inf")).to(tl.float32)


@triton.jit
def sums(row, width, BLOCK: tl.constexpr):
    """Of a row: its largest logit, and sums of exp(x - largest) and of that times (x - largest)."""
    top, total, moment = -3.0e38, 0.0, 0.0  # below every logit, and finite: 0 times it is 0
    for start in range(0, width, BLOCK):
        x = block_of(row, start, width, BLOCK)
        higher = tl.maximum(top, tl.max(x, 0))
        shrunk = tl.exp(top - higher)
        moment = shrunk * (moment + total * (top - higher))
        lower = tl.where(x == float("-inf"), 0.0, x - higher)
        weight = tl.exp(x - higher)
        total = total * shrunk + tl.sum(weight, 0)
        moment += tl.sum(weight * lower, 0)
        top = higher
    return top, total, moment


@triton.jit
def describe_rows(
    logits, content, entropy, surprisal, stride, width, tokens, BLOCK: tl.constexpr, TOKENS: tl.constexpr
):
    """Entropy of each row's softmax, and the mean surprisal of its tokens of content [N, tokens], in nats."""
    number = tl.program_id(0).to(tl.int64)
    row = logits + number * stride
    top, total, moment = sums(row, width, BLOCK)
    place = tl.arange(0, TOKENS)
    token = tl.load(content + number * tokens + place, mask=place < tokens, other=0)
    told = tl.load(row + token, mask=place < tokens, other=0.0).to(tl.float32)
    below = tl.where(place < tokens, told - top, 0.0)
    tl.store(entropy + number, tl.log(total) - moment / total)
    tl.store(surprisal + number, tl.log(total) - tl.sum(below, 0) / tokens)


@triton.jit
def descend_rows(logits, target, loss, stride, width, padded, BLOCK: tl.constexpr):
    """Cross-entropy of each row's target, and its gradient in the logits' place: 0 in the columns past `width`."""
    number = tl.program_id(0).to(tl.int64)
    row, token = logits + number * stride, tl.load(target + number)
    top, total, _ = sums(row, width, BLOCK)
    told = tl.load(row + token).to(tl.float32)
    tl.store(loss + number, tl.log(total) + top - told)
    tl.debug_barrier()  # every thread has read the target before one writes over it
    for start in range(0, padded, BLOCK):
        column = start + tl.arange(0, BLOCK)
        weight = tl.exp(block_of(row, start, width, BLOCK) - top)
        tl.store(row + column, weight / total - (column == token).to(tl.float32), mask=column < padded)
