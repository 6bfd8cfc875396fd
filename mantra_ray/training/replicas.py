"""Which workers train which unit: rounds of teams, each a few ranks that train one unit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist

from mantra_ray.cascade.replicas import Replicas


class TrainingUnit(Protocol):
    """What a team of workers trains and leaves at `path`."""

    @property
    def path(self) -> Path: ...

    @property
    def cost(self) -> int: ...

    @property
    def replicas(self) -> int:
        """Workers that it asks for; 0: one, and those that would be idle."""

    def train(
        self, records, device: torch.device | str = "cpu", replicas: Replicas | None = None
    ) -> dict[str, np.ndarray]:
        """The arrays of its file; those of a team are the first one's."""


@dataclass(frozen=True)
class Team:
    """A unit and the ranks that train it."""

    unit: TrainingUnit
    first: int
    size: int

    @property
    def ranks(self) -> range:
        """In the order of their shares."""
        return range(self.first, self.first + self.size)


def rounds(units: Sequence[TrainingUnit], workers: int, spare: bool) -> list[list[Team]]:
    """Rounds of teams with ranks of their own; the longest units first, so that those of one round are alike in length.

    A unit gets as many workers as it asks for, or all if there are fewer. With `spare` those that no unit of a round is
    left for are dealt out among its units that leave their number open.
    """
    waiting, out = sorted(units, key=lambda unit: (-unit.cost, str(unit.path))), []
    while waiting:
        teams, free = [], workers
        while waiting and free and (not teams or _size(waiting[0], workers) <= free):
            unit = waiting.pop(0)
            teams.append(Team(unit, 0, _size(unit, workers)))
            free -= teams[-1].size
        open_ = [i for i, team in enumerate(teams) if not team.unit.replicas] if spare else []
        for turn in range(free if open_ else 0):
            chosen = open_[turn % len(open_)]
            teams[chosen] = replace(teams[chosen], size=teams[chosen].size + 1)
        begun = np.cumsum([0, *(team.size for team in teams)]).tolist()
        out.append([replace(team, first=first) for team, first in zip(teams, begun, strict=False)])
    return out


def needed(units: Sequence[TrainingUnit], workers: int, spare: bool) -> int:
    """How many of the workers have something to do in any round."""
    return max(sum(team.size for team in teams) for teams in rounds(units, workers, spare))


def groups(plan: Sequence[Sequence[Team]], own_gpu: bool) -> dict[range, Replicas]:
    """This worker's place in each team of the plan, by the team's ranks; every worker must call it.

    Teams talk by NCCL where each worker has a GPU of its own, which NCCL asks for, and else by gloo.
    """
    rank, found = dist.get_rank(), {}
    for ranks in dict.fromkeys(team.ranks for teams in plan for team in teams):
        group = dist.new_group(list(ranks), backend="nccl" if own_gpu else "gloo") if len(ranks) > 1 else None
        if rank in ranks:
            found[ranks] = Replicas(group)
    return found


def _size(unit: TrainingUnit, workers: int) -> int:
    return min(max(1, unit.replicas), workers)
