"""Forward and backward passes over batches of few shapes, which a GPU replays as CUDA graphs.

A step of a small model launches about a thousand kernels, each shorter than its launch. A graph launches them all at
once; it holds for tensors at the same places and of the same shapes, so that batches are copied to where it reads.
"""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

REPLAY_FROM = 12  # steps of a run from which recording (as long as some steps) is expected to come back
MOST = 4  # graphs of one run, each with activations of its own


class Recorded(NamedTuple):
    """A graph, the tensors that it reads, and those that it leaves: gradients (None where there are none), and told."""

    graph: torch.cuda.CUDAGraph
    batch: list[Tensor]
    gradients: list[Tensor | None]
    told: Tensor


class Descent:
    """Sets gradients to those of a batch's loss.

    `losses` maps the tensors of a batch to the loss and to what is told of it. Apart from them it may only look at what
    stays where it is for the whole run, must not wait for the device, and draws from the default generator alone. On
    a GPU and in runs of many `steps` it is recorded when a shape comes for the second time and replayed from then on:
    the same kernels on the same numbers.
    """

    def __init__(
        self, losses: Callable[..., tuple[Tensor, Tensor]], parameters: Sequence[nn.Parameter], steps: int
    ) -> None:
        self.losses, self.parameters = losses, list(parameters)
        self.replays = steps >= REPLAY_FROM and all(parameter.is_cuda for parameter in self.parameters)
        self._seen: Counter[tuple[torch.Size, ...]] = Counter()
        self._recorded: dict[tuple[torch.Size, ...], Recorded] = {}

    def __call__(self, *batch: Tensor) -> Tensor:
        """What is told of a batch; read it before the next call, which may overwrite it."""
        shapes = tuple(tensor.shape for tensor in batch)
        self._seen[shapes] += 1
        known = self._recorded.get(shapes)
        if known is None and self.replays and self._seen[shapes] > 1 and len(self._recorded) < MOST:
            known = self._record(shapes, batch)
        if known is None:
            return self._run(batch)
        for mine, theirs in zip(known.batch, batch, strict=True):
            mine.copy_(theirs)
        known.graph.replay()
        self._set(known.gradients)
        return known.told

    def _run(self, batch: Sequence[Tensor]) -> Tensor:
        self._set([None] * len(self.parameters))
        loss, told = self.losses(*batch)
        loss.backward()
        return told.detach()

    def _set(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient

    def _record(self, shapes: tuple[torch.Size, ...], batch: Sequence[Tensor]) -> Recorded | None:
        """A graph of the batch's shapes; None, with a warning, and never again where recording does not work."""
        own = [tensor.clone() for tensor in batch]
        graph = torch.cuda.CUDAGraph()
        shared = next(iter(self._recorded.values())).graph.pool() if self._recorded else None
        try:
            # thread_local: what other threads do meanwhile, NCCL's above all, is no error
            with uncollected(), torch.cuda.graph(graph, pool=shared, capture_error_mode="thread_local"):
                told = self._run(own)
        except RuntimeError as error:
            self.replays = False
            warnings.warn(f"steps are launched kernel by kernel: {error}", stacklevel=3)
            return None
        self._recorded[shapes] = Recorded(graph, own, [parameter.grad for parameter in self.parameters], told)
        return self._recorded[shapes]


@contextmanager
def uncollected() -> Iterator[None]:
    """While it lasts no garbage is collected: an earlier graph, freed while one is recorded, would spoil that one."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
