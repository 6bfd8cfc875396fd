"""Which trials a sweep runs: a plan hands them out in batches and reads from the store what became of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from mantra_ray.config import ExperimentConfig
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.sweep.store import Store


class Plan(Protocol):
    """Batches of trials, each a function of the rows of the batches before it.

    Because it depends on nothing else, a sweep that was stopped is resumed by asking again from the start: trials
    with rows are not run a second time, and the plan comes to where it was.
    """

    def experiments(self, wanted: Callable[[str], bool]) -> Sequence[ExperimentConfig]:
        """Configurations that have every fold among them which a trial, if `wanted(its id)`, may need."""

    @property
    def most(self) -> int:
        """Trials at most."""

    def batches(self, store: Store) -> Iterator[list[TrialSpec]]:
        """Trials to run; the next batch is asked for when all of one have ended, well or not."""


class Grid:
    """All trials at once, whatever comes of them."""

    def __init__(self, trials: Sequence[TrialSpec]):
        self.trials = list(trials)

    def experiments(self, wanted: Callable[[str], bool]) -> list[ExperimentConfig]:
        """Configurations of the trials that are to be run."""
        return [trial.config for trial in self.trials if wanted(trial.id)]

    @property
    def most(self) -> int:
        """Number of trials."""
        return len(self.trials)

    def batches(self, store: Store) -> Iterator[list[TrialSpec]]:
        """One batch."""
        yield self.trials


class Work:
    """The trials of a plan that are still to be run, batch by batch, and a record of all that it asked for."""

    def __init__(self, plan: Plan, store: Store, retry_failed: bool = False, again: bool = True):
        """`retry_failed` runs only trials that failed before; `again` takes pruned trials for unfinished ones."""
        self.plan, self.store = plan, store
        status = store.ended()
        over = ("done",) if again else ("done", "pruned")
        self.skipped = {trial for trial, told in status.items() if told in over}
        self.failed = {trial for trial, told in status.items() if told == "failed"} if retry_failed else None
        self.trials: dict[str, TrialSpec] = {}  # every trial asked for so far, by id

    def __iter__(self) -> Iterator[list[TrialSpec]]:
        for batch in self.plan.batches(self.store):
            new = {trial.id: trial for trial in batch if trial.id not in self.trials}
            self.trials |= new
            todo = [trial for name, trial in new.items() if self.wanted(name)]
            if todo:
                yield todo

    def wanted(self, trial: str) -> bool:
        """Whether a trial is to be run."""
        return trial not in self.skipped if self.failed is None else trial in self.failed
