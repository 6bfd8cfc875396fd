"""The plan of a search: which configurations to try, on which seeds, and the winner's run on fresh seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from mantra_ray.config import ExperimentConfig
from mantra_ray.errors import InputError
from mantra_ray.fields import replace
from mantra_ray.sweep.candidates import Candidate, Candidates
from mantra_ray.sweep.knobs import check_space, nuisance_settings, product, scientific, space_of
from mantra_ray.sweep.measured import OBJECTIVES, pareto
from mantra_ray.sweep.options import Options
from mantra_ray.sweep.proposals import Proposer
from mantra_ray.sweep.racing import FIRST, Dropped, Race
from mantra_ray.sweep.spec import SweepSpec, TrialSpec
from mantra_ray.sweep.store import Store

ASKED = 10  # proposals at most for each new configuration; a search that only repeats itself has ended
PROPOSING = ("tpe", "multi")
Batches = Iterator[list[TrialSpec]]


def searches(spec: SweepSpec, options: Options) -> bool:
    """Whether a sweep needs a `SearchPlan`: what runs depends on what was found before."""
    return spec.search in PROPOSING or options.racing or options.nuisance_trials > 1 or options.confirm > 0


class SearchPlan:
    """Batches of trials, each of which may follow from what the earlier ones found.

    Choices are made on validation records of the memory on: the gain over the GNN, seeds pooled, mean over splits. The
    batches are a function of the spec and of the rows that they wait for, so that going through them again asks for
    the same trials. Records per second, an objective of `multi`, is a measured time: another run of the same trials
    finds other values, the same rows do not.

    Raises InputError for a space that cannot be searched or a search without validation records.
    """

    def __init__(self, spec: SweepSpec, options: Options, data_sha256: str, code: str):
        """`spec` with the splits that the data has."""
        self.spec, self.options = spec, options
        if not spec.base.split.validation_fraction > 0:
            problem = "must be above 0: a search, racing, tuning and confirmation choose on validation"
            raise InputError("options", "--validation-fraction", spec.base.split.validation_fraction, problem)
        self.proposing = spec.search in PROPOSING
        self.knobs = scientific(spec.space) or space_of(spec.arms, spec.base)
        check_space(spec.space)
        if self.proposing and not self.knobs:
            raise InputError("options", "--search", spec.search, "needs a recipe with at least one knob left to search")
        self.objectives = tuple(OBJECTIVES) if spec.search == "multi" else ("gain",)
        settings = nuisance_settings(spec.space, options.nuisance_trials)
        self.candidates = Candidates(spec, data_sha256, code, settings)
        # A search by proposals tries the default besides.
        self.count = (options.configurations + 1 if self.proposing else len(spec.arms)) * len(settings)
        last = max(spec.seeds) + 1
        self.fresh = tuple(range(last, last + options.confirm))
        self.rounds = [spec.seeds]
        if options.racing:
            self.rounds = [spec.seeds[:FIRST], *((seed,) for seed in spec.seeds[FIRST:])]
        self.race = Race(self.count, len(self.rounds) - 1, spec.base.evaluation.confidence)
        self.dropped: list[Dropped] = []
        self.confirmed: dict[str, dict[str, Any]] = {}
        self.ended = ""  # why a search ended before its time

    def experiments(self, wanted: Callable[[str], bool]) -> list[ExperimentConfig]:
        """One configuration for every fold that a trial of this plan may need, fresh seeds included.

        Which trials there will be is not known yet, so that whether they are wanted changes nothing.
        """
        arms = self.spec.arms
        if self.proposing:  # a range is the memory's own and changes no stage
            arms = product([knob for knob in self.knobs if of_stages(knob.fields())])
        whole = [arm | setting for arm in ({}, *arms) for setting in self.candidates.settings]
        parts = [{name: overrides[name] for name in of_stages(overrides)} for overrides in whole]
        parts = [part for i, part in enumerate(parts) if part not in parts[:i]]
        return [
            replace(self.spec.base, seed=seed, **{"split.kind": split} | part)
            for seed in (*self.spec.seeds, *self.fresh)
            for split in self.spec.splits
            for part in parts
        ]

    @property
    def searched(self) -> set[str]:
        """Fields that it turns."""
        tuned = {name for setting in self.candidates.settings for name in setting}
        return tuned.union(*(knob.fields() for knob in self.knobs)) if self.proposing else tuned

    @property
    def most(self) -> int:
        """Trials at most, baselines among them; on fresh seeds the winner and the default."""
        return (len(self.spec.seeds) * (self.count + 1) + len(self.fresh) * 3) * len(self.spec.splits)

    def batches(self, store: Store) -> Batches:
        """Trials, a batch at a time; the next one needs the rows of the one before. To be gone through once."""
        yield from self._propose(store) if self.proposing else self._evaluate(self.spec.arms, store)
        if self.fresh:
            yield from self._confirm()

    def _propose(self, store: Store) -> Batches:
        """Generations of proposals, the default configuration with the first."""
        proposer = Proposer(self.knobs, self.objectives, self.options.first_seed)
        proposed: set[str] = set()
        while len(proposed) < self.options.configurations:
            size = min(self.options.batch_configs, self.options.configurations - len(proposed))
            generation, waiting = {}, []
            for _ in range(ASKED * size):
                trial, arm = proposer.ask()
                key = self.candidates.key(arm)
                if key in self.candidates.by_key:
                    self._tell(proposer, trial, arm)
                else:
                    waiting.append((trial, arm))
                    generation[key] = arm
                if len(generation) == size:
                    break
            if not generation:
                self.ended = f"proposals only repeated the {len(proposed)} configurations tried"
                break
            default = [] if proposed else [{}]
            proposed |= generation.keys()
            yield from self._evaluate([*default, *generation.values()], store)
            for trial, arm in waiting:
                self._tell(proposer, trial, arm)

    def _tell(self, proposer: Proposer, trial: Any, arm: dict[str, Any]) -> None:
        """Tell what a proposal was worth, at its best nuisance setting."""
        best = self.candidates.tuned(arm)
        outcome = self._outcome(best)
        known = best.state in ("done", "dropped") and np.isfinite(list(outcome.values())).all()
        proposer.tell(trial, outcome if known else None, best.state == "pruned")

    def _outcome(self, item: Candidate) -> dict[str, float]:
        """A candidate's value in each objective."""
        return {name: self.candidates.worth(item) if name == "gain" else item.cost(name) for name in self.objectives}

    def _evaluate(self, arms: Iterable[dict[str, Any]], store: Store) -> Batches:
        """Run configurations that are new on all seeds, or in rounds of seeds until they are dropped."""
        finished = self.candidates.in_state("done")
        new = self.candidates.add(arms)
        for i, seeds in enumerate(self.rounds):
            running = [item for item in new.values() if item.state == "running"]
            batch = self.candidates.trials([item.overrides for item in running], seeds, self.spec.splits)
            if batch:
                yield batch
            self.candidates.read(running, seeds, store)
            if i + 1 < len(self.rounds):
                self._drop({key: item for key, item in new.items() if item.state == "running"}, finished)
        for item in new.values():
            item.state = "done" if item.state == "running" else item.state

    def _drop(self, running: dict[str, Candidate], finished: dict[str, Candidate]) -> None:
        """End those of the running candidates that are behind."""
        cells = ({key: item.cells for key, item in group.items()} for group in (running, finished))
        fallen = self.race.look(*cells, self._as_cheap if self.spec.search == "multi" else None)
        for fall in fallen:
            running[fall.name].state = "dropped"
        self.dropped += fallen

    def _as_cheap(self, rival: str, name: str) -> bool:
        """Whether a rival is as good in every objective but the gain."""
        pair = self.candidates.by_key[rival], self.candidates.by_key[name]
        return all(np.subtract(*(item.cost(o) * OBJECTIVES[o] for item in pair)) >= 0 for o in self.objectives[1:])

    def _confirm(self) -> Batches:
        """The winner of validation on each split, and the default, on the fresh seeds."""
        batch = []
        for split in self.spec.splits:
            winner = self.candidates.winner(split)
            if winner is None:
                continue
            searched, fresh = self.spec.seeds, self.fresh
            runs = {"searched": (winner.overrides, searched), "fresh": (winner.overrides, fresh)}
            runs |= {"default_searched": ({}, searched), "default": ({}, fresh)}
            ids = {
                name: [trial for (_, where), trial in self.candidates.ids(*run).items() if where == split]
                for name, run in runs.items()
            }
            self.confirmed[split] = {"winner": winner.overrides} | ids
            batch += self.candidates.trials([winner.overrides, {}], fresh, [split])
        if batch:
            yield batch

    def log(self) -> dict[str, Any]:
        """What the plan did, as JSON-like data: for the sweep's description, from which its tables are printed.

        `trials` are those of the configurations that the sweep's tables compare: what was dropped, was poorer at
        another nuisance setting or ran on fresh seeds is not among them.
        """
        compared = self.candidates.compared()
        rows = [{"configuration": item.overrides} | self._outcome(item) for item in compared]
        front = pareto(rows, {name: OBJECTIVES[name] for name in self.objectives})
        named = self.candidates.by_key
        return {
            "search": self.spec.search,
            "ended": self.ended,
            "trials": [trial for item in compared for trial in item.trials.values()],
            "rows": [row | {"best": row in front} for row in rows],
            "confidence": self.race.confidence,
            "level": self.race.level if self.options.racing else None,
            "racing": [
                {
                    "configuration": named[fall.name].overrides,
                    "rival": named[fall.rival].overrides,
                    "seeds": fall.seeds,
                    "behind": fall.lag.behind,
                    "p_value": fall.lag.p_value,
                }
                for fall in self.dropped
            ],
            "confirmed": self.confirmed,
        }


def of_stages(names: Iterable[str]) -> list[str]:
    """Those of the fields on which a stage may depend: neither the memory's nor the judging's."""
    return [name for name in names if not name.startswith(("nexus.", "evaluation."))]
