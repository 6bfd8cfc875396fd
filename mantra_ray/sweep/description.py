"""The file sweep.json: which trials a sweep's last command is made of, what it cost and what a search found."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mantra_ray.files import atomic
from mantra_ray.sweep.plan import Plan
from mantra_ray.sweep.search import SearchPlan
from mantra_ray.sweep.summary import read_description


@dataclass(frozen=True)
class Timing:
    """Where a run's wall time went, in seconds."""

    total: float
    stages: float
    trials: float
    starting: float  # of `trials`, until the first one ran: processes start and import
    compute: float  # sum over the trials
    count: int
    slots: int

    def overhead(self, starting: bool) -> float:
        """Seconds of a slot that a trial took beyond its own compute, with or without the processes' start."""
        wall = self.trials if starting else self.trials - self.starting
        return (wall * self.slots - self.compute) / self.count


def describe(root: Path, trials: Iterable[str], plan: Plan, timing: Timing | None) -> None:
    """Write which trials the plan has asked for so far, in order; without a timing the one that stands there stays."""
    path = root / "sweep.json"
    described: dict[str, Any] = {"trials": list(trials)}
    if timing is not None:
        cost = {"overhead": timing.overhead(True), "overhead_running": timing.overhead(False)}
        described["timing"] = asdict(timing) | cost
    else:
        described["timing"] = read_description(root)["timing"] if path.exists() else None
    if isinstance(plan, SearchPlan):
        described["search"] = plan.log()
    with atomic(path) as partial:
        partial.write_text(json.dumps(described, indent=1))
