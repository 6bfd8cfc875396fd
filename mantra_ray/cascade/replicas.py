"""Data parallelism: workers that train one network together, each on its share of every batch, all by the same steps.

Every worker holds the network. A share's loss is weighted by its part of the whole batch and the gradients are added
up, so that a step is that of the whole batch to the rounding of sums, whatever the shares' sizes; an empty share adds
nothing. The sum comes out alike on all workers, bit for bit, and so does every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

CLIP = 1.0  # largest norm of a step's gradient

Made = TypeVar("Made")


class Replicas:
    """The workers of one process group, of which this is one; without a group, this one alone.

    Shares and sums lie wherever the caller's tensors do; they travel by NCCL, or by gloo through main memory. Whatever
    one worker calls, all must call.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.group, self.rank, self.count = group, 0, 1
        if group is not None:
            self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)
            nccl = dist.get_backend(group) == "nccl"
            self.wire = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the one that reads and writes files."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """Every `count`-th row of a batch [n]: shares differ by at most one row."""
        return rows if self.count == 1 else rows[self.rank :: self.count]

    def same(self, make: Callable[[], Made]) -> Made:
        """What the first worker makes, on all of them; it is pickled."""
        made = [make() if self.first else None]
        if self.count > 1:
            dist.broadcast_object_list(made, group=self.group, group_src=0)
        return made[0]

    def sum(self, tensor: Tensor) -> Tensor:
        """A tensor added up over the workers."""
        if self.count == 1:
            return tensor
        sent = tensor.to(self.wire, copy=True)
        dist.all_reduce(sent, group=self.group)
        return sent.to(tensor.device)

    def sum_gradients_(self, parameters: list[nn.Parameter]) -> None:
        """Add up all gradients, as one message; a missing one counts as 0."""
        if self.count == 1:
            return
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        whole = self.sum(torch.cat(parts))
        for parameter, part in zip(parameters, whole.split([len(part) for part in parts]), strict=True):
            parameter.grad = part.view_as(parameter)

    def align_(self, parameters: list[nn.Parameter]) -> None:
        """Give all workers the first one's weights: drawn from one seed they may differ between kinds of processors."""
        if self.count == 1:
            return
        sent = torch.cat([p.detach().flatten() for p in parameters]).to(self.wire)
        dist.broadcast(sent, group=self.group, group_src=0)
        for parameter, part in zip(parameters, sent.split([p.numel() for p in parameters]), strict=True):
            parameter.data.copy_(part.view_as(parameter))

    def collect(self, mine: Tensor, rows: list[int]) -> list[Tensor]:
        """On the first worker a tensor [`rows[k]`, width] of each worker k that `rows` names; none on the others."""
        if self.count == 1:
            return [mine]
        sent = torch.zeros(max(rows), mine.shape[1], device=self.wire)
        sent[: len(mine)] = mine
        found = [torch.empty_like(sent) for _ in range(self.count)] if self.first else None
        dist.gather(sent, found, group=self.group, group_dst=0)
        return [tensor[:n] for tensor, n in zip(found, rows, strict=False)] if self.first else []


class Steps:
    """An optimiser's steps under a one-cycle schedule, with gradients added up over the workers and clipped."""

    def __init__(self, optimiser: torch.optim.Optimizer, rate: float, steps: int, replicas: Replicas):
        self.optimiser, self.replicas = optimiser, replicas
        self.parameters = [p for group in optimiser.param_groups for p in group["params"]]
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=max(steps, 2))

    def begin(self) -> None:
        """Forget the gradients of the last step; those that come are added up until `end`."""
        self.optimiser.zero_grad(set_to_none=True)

    def end(self) -> None:
        """Step down the gradients that were added up."""
        self.replicas.sum_gradients_(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimiser.step()
        self.schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """Moments and place in the schedule."""
        return {"optimizer": self.optimiser.state_dict(), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same settings."""
        self.optimiser.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


class Course(Protocol):
    """How far a training is, as `mantra_ray.training.state.Progress` keeps it: its generator, and where to go on."""

    draw: torch.Generator

    def begin(self, phase: str, /, **parts: Any) -> int:
        """The epoch to go on at, once `parts` have the state that they had there."""

    def end_epoch(self, metrics: dict[str, float], /) -> None:
        """Note an epoch's metrics, and keep the state."""


class Unkept:
    """The course of a training that nobody watches and that starts at its beginning."""

    def __init__(self, seed: int):
        self.draw = torch.Generator().manual_seed(seed)

    def begin(self, phase: str, **parts: Any) -> int:
        """The first epoch."""
        return 0

    def end_epoch(self, metrics: dict[str, float]) -> None:
        """Forget them."""
