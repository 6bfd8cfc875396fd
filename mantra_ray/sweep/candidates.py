"""The configurations of a search, what their trials found, and which of them are worth most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mantra_ray.fields import replace as replace_fields
from mantra_ray.sweep.measured import Cells, gain, measure
from mantra_ray.sweep.racing import lag
from mantra_ray.sweep.spec import SweepSpec, TrialSpec
from mantra_ray.sweep.store import Store

STATES = ("running", "pruned", "failed", "dropped", "done")  # the later ones are preferred


@dataclass
class Candidate:
    """A configuration in the search: a scientific one with one setting of the nuisance knobs."""

    arm: dict[str, Any]  # the scientific overrides
    nuisance: dict[str, Any]
    state: str = "running"
    trials: dict[tuple[int, str], str] = field(default_factory=dict)  # by seed and split
    cells: Cells = field(default_factory=dict)
    costs: list[dict[str, float]] = field(default_factory=list)

    @property
    def overrides(self) -> dict[str, Any]:
        """All that it sets."""
        return self.arm | self.nuisance

    def cost(self, objective: str) -> float:
        """Mean of a cost over its trials; NaN where one has none."""
        values = [np.nan if costs[objective] is None else costs[objective] for costs in self.costs]
        return float(np.mean(values)) if values else float("nan")


class Candidates:
    """All candidates of a search by key; equal configurations have the same key."""

    def __init__(self, spec: SweepSpec, data_sha256: str, code: str, settings: Sequence[dict[str, Any]]):
        """`settings` of the nuisance knobs are tried for every scientific configuration."""
        self.spec, self.origin, self.settings = spec, (data_sha256, code), tuple(settings)
        self.by_key: dict[str, Candidate] = {}
        self.asked: set[str] = set()  # trials
        self._ids: dict[tuple, str] = {}  # hashing a configuration takes a millisecond

    def add(self, arms: Iterable[dict[str, Any]]) -> dict[str, Candidate]:
        """Take in scientific configurations, each with every nuisance setting; returns those that are new."""
        found = [Candidate(arm, setting) for arm in arms for setting in self.settings]
        new = {}
        for item in found:
            if (key := self.key(item.overrides)) not in self.by_key:
                new[key] = self.by_key[key] = item
        return new

    def trials(self, arms: Iterable[dict[str, Any]], seeds: Sequence[int], splits: Sequence[str]) -> list[TrialSpec]:
        """The trials of configurations, and the baselines, that were not asked for before."""
        arms = tuple(arms)
        spec = replace(self.spec, arms=arms, seeds=tuple(seeds), splits=tuple(splits))
        trials = [trial for trial in spec.trials(*self.origin) if trial.id not in self.asked] if arms else []
        self.asked |= {trial.id for trial in trials}
        return trials

    def ids(self, overrides: dict[str, Any], seeds: Sequence[int]) -> dict[tuple[int, str], str]:
        """Trials of a configuration by seed and split."""
        return {(seed, split): self._id(overrides, seed, split) for seed in seeds for split in self.spec.splits}

    def _id(self, overrides: dict[str, Any], seed: int, split: str) -> str:
        known = (*map(repr, sorted(overrides.items())), seed, split)
        if known not in self._ids:
            config = replace_fields(self.spec.base, seed=seed, **{"split.kind": split} | overrides)
            self._ids[known] = TrialSpec("nexus", config, *self.origin).id
        return self._ids[known]

    def key(self, overrides: dict[str, Any]) -> str:
        """A configuration's first trial, which stands for it."""
        return self._id(overrides, self.spec.seeds[0], self.spec.splits[0])

    def read(self, items: Iterable[Candidate], seeds: Sequence[int], store: Store) -> None:
        """Take in what the candidates' trials on `seeds` found; a trial that is not done ends its candidate."""
        here = {}
        for item in items:
            ids = self.ids(item.overrides, seeds)
            item.trials |= ids
            here |= {trial: (item, place) for place, trial in ids.items()}
        found = measure(store, here)
        for trial, (item, place) in here.items():
            outcome = found.get(trial)
            if outcome is None or outcome.status != "done":
                item.state = "pruned" if outcome is not None and outcome.status == "pruned" else "failed"
            elif item.state == "running":
                item.costs.append(outcome.costs)
                if outcome.cell is not None:
                    item.cells[place] = outcome.cell

    def in_state(self, state: str) -> dict[str, Candidate]:
        """Candidates in a state, by key."""
        return {key: item for key, item in self.by_key.items() if item.state == state}

    def worth(self, item: Candidate) -> float:
        """A candidate's gain on validation; NaN without records.

        One that was dropped lacks seeds: it is worth the best's gain, less what it is behind it where both ran, so that
        easy seeds do not flatter it.
        """
        default = self.by_key.get(self.key({}))
        reference = default.cells if default else None
        done = [other for other in self.in_state("done").values() if other.cells]
        if item.state != "dropped" or not done:
            return gain(item.cells, reference)
        best = max(done, key=lambda other: gain(other.cells, reference))
        return gain(best.cells, reference) - lag(item.cells, best.cells).behind

    def tuned(self, arm: dict[str, Any]) -> Candidate:
        """A scientific configuration with the nuisance setting of highest gain on validation."""
        tried = [self.by_key[self.key(arm | setting)] for setting in self.settings]
        return max(tried, key=lambda item: (STATES.index(item.state), np.nan_to_num(self.worth(item), nan=-np.inf)))

    def compared(self) -> list[Candidate]:
        """What the tables compare: each scientific configuration at its best; none that was dropped or failed."""
        arms = {self.key(item.arm): item.arm for item in self.by_key.values()}
        best = {self.key(item.overrides): item for item in map(self.tuned, arms.values())}
        return [item for item in best.values() if item.state == "done"]

    def winner(self, split: str) -> Candidate | None:
        """The highest gain on one split's validation records among those compared; None without records."""
        gains = [(gain({p: cell for p, cell in item.cells.items() if p[1] == split}), item) for item in self.compared()]
        return max((pair for pair in gains if np.isfinite(pair[0])), key=lambda pair: pair[0], default=(0, None))[1]
