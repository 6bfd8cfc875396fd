"""What a sweep is: a base configuration, the knobs swept, seeds and splits; and the trials that follow from it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mantra_ray.config import ExperimentConfig, NexusConfig, SplitKind
from mantra_ray.fields import digest, flatten, identity, replace, unflatten
from mantra_ray.sweep.knobs import Knob, unpinned

Search = Literal["grid", "sample", "tpe", "multi"]
Scheduler = Literal["none", "asha", "median", "pbt"]

GEOMETRIES = {"safe": (512, 32), "aggressive": (2048, 8), "extreme": (4096, 4)}  # buckets, slots


@dataclass(frozen=True)
class TrialSpec:
    """One trial: what is run, on which data, by which code."""

    kind: Literal["nexus", "baselines"]
    config: ExperimentConfig
    data_sha256: str
    code: str

    @functools.cached_property
    def id(self) -> str:
        """Content hash, 16 hex digits."""
        return digest({"kind": self.kind, "config": identity(self.config), "data": self.data_sha256, "code": self.code})

    def to_json(self) -> str:
        """The trial as text, for the road to another process."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return json.dumps(fields | {"config": flatten(self.config)})

    @staticmethod
    def from_json(text: str) -> TrialSpec:
        """The trial that `to_json` wrote."""
        fields = json.loads(text)
        return TrialSpec(**fields | {"config": unflatten(ExperimentConfig, fields["config"])})


@dataclass(frozen=True)
class SweepSpec:
    """A sweep: every arm (dotted overrides of `base`) on every seed and split, so that arms are paired."""

    name: str
    base: ExperimentConfig
    arms: tuple[dict[str, Any], ...]
    seeds: tuple[int, ...]
    splits: tuple[SplitKind, ...] = ()  # empty: the splits that make sense for the data
    space: tuple[Knob, ...] = ()  # nuisance knobs, and those of a search where the arms do not tell them
    search: Search = "grid"

    def pin(self, names: Iterable[str]) -> SweepSpec:
        """Take the fields `names` from `base` in every arm and knob; arms that become equal are one."""
        names = set(names)
        kept = [{knob: value for knob, value in arm.items() if knob not in names} for arm in self.arms]
        arms = tuple(arm for i, arm in enumerate(kept) if arm not in kept[:i])
        return dataclasses.replace(self, arms=arms, space=unpinned(self.space, names))

    def sample(self, count: int, seed: int) -> SweepSpec:
        """`count` arms drawn without replacement, in their given order; seeds and splits stay paired."""
        chosen = sorted(random.Random(seed).sample(range(len(self.arms)), min(count, len(self.arms))))
        return dataclasses.replace(self, arms=tuple(self.arms[i] for i in chosen))

    def trials(self, data_sha256: str, code: str) -> list[TrialSpec]:
        """The trials, each once: one of baselines and one for each arm, per seed and split.

        Raises KeyError if an arm names a field that no configuration has.
        """
        found: dict[str, TrialSpec] = {}
        for seed, split in itertools.product(self.seeds, self.splits):
            paired = replace(self.base, seed=seed, **{"split.kind": split})
            # Baselines do not see the memory's settings, so these must not change their identity.
            specs = [TrialSpec("baselines", replace(paired, nexus=NexusConfig()), data_sha256, code)]
            specs += [TrialSpec("nexus", replace(paired, **arm), data_sha256, code) for arm in self.arms]
            found |= {spec.id: spec for spec in specs}
        return list(found.values())


def grid(**knobs: Sequence[Any]) -> list[dict[str, Any]]:
    """Every combination of the knobs' values, the last knob fastest: `grid(**{"nexus.tau": (0.1, 0.2)})`."""
    return [dict(zip(knobs, values, strict=True)) for values in itertools.product(*knobs.values())]
