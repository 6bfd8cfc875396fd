"""What a search may turn: knobs with values or a range, scientific (compared) or nuisance (tuned for each of them)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mantra_ray.config import ExperimentConfig
from mantra_ray.errors import InputError
from mantra_ray.fields import flatten

POINTS = 3  # of a range in a grid


@dataclass(frozen=True)
class Knob:
    """One knob: a field's dotted name with its values, or with the range (low, high), on a log scale if `log`.

    A value that is a dict sets several fields that only make sense together, a geometry say; the name is then free.
    A scientific knob is what a sweep asks about. A nuisance knob must only be set well: it is tuned on validation
    for each scientific configuration, so that these are compared at their own best (Godbole et al. 2023, "Deep
    Learning Tuning Playbook"). Raises InputError for a knob without values or with a range that cannot be.
    """

    name: str
    values: tuple[Any, ...] = ()
    range: tuple[float, float] | None = None
    log: bool = False
    kind: Literal["scientific", "nuisance"] = "scientific"

    def __post_init__(self):
        if (self.range is None) == (not self.values):
            raise InputError("knob", self.name, self.values, "needs either values or a range")
        if self.range is not None and not (0 if self.log else -math.inf) < self.range[0] < self.range[1] < math.inf:
            raise InputError("knob", self.name, self.range, "must be a finite range, above 0 on a log scale")

    @property
    def ordered(self) -> bool:
        """Whether its values are numbers, so that neighbours are alike."""
        return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in self.values)

    def at(self, share: float) -> Any:
        """The value at a share in [0, 1] of the way from the first to the last."""
        if self.values:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        low, high = self.range
        return short(low * (high / low) ** share if self.log else low + share * (high - low))

    def levels(self) -> tuple[Any, ...]:
        """Its values in a grid."""
        return self.values or tuple(self.at(i / (POINTS - 1)) for i in range(POINTS))

    def fields(self) -> set[str]:
        """The dotted names of the fields that it sets."""
        return {name for value in self.levels() for name in self.set(value)}

    def set(self, value: Any) -> dict[str, Any]:
        """The dotted overrides that a value stands for."""
        return dict(value) if isinstance(value, Mapping) else {self.name: value}


def short(value: float) -> float:
    """A value to three significant digits: more only makes tables wide."""
    return float(f"{value:.3g}")


# Of a recipe that marks no nuisance knobs of its own.
NUISANCE = (Knob("nexus.learning_rate", range=(1e-3, 6e-2), log=True, kind="nuisance"),)


def arm(knobs: Iterable[Knob], values: Iterable[Any]) -> dict[str, Any]:
    """The dotted overrides of one value of each knob."""
    return {name: field for knob, value in zip(knobs, values, strict=True) for name, field in knob.set(value).items()}


def scientific(space: Iterable[Knob]) -> tuple[Knob, ...]:
    """The knobs that a sweep asks about."""
    return tuple(knob for knob in space if knob.kind == "scientific")


def product(space: Sequence[Knob]) -> tuple[dict[str, Any], ...]:
    """Every combination of the scientific knobs' levels, the last knob fastest, as dotted overrides."""
    knobs = scientific(space)
    return tuple(arm(knobs, values) for values in itertools.product(*(knob.levels() for knob in knobs)))


def unpinned(space: Iterable[Knob], names: Iterable[str]) -> tuple[Knob, ...]:
    """The knobs that set none of the fields `names`, which the user has fixed."""
    names = set(names)
    return tuple(knob for knob in space if not knob.fields() & names)


def nuisance_settings(space: Iterable[Knob], count: int) -> list[dict[str, Any]]:
    """`count` settings of the nuisance knobs; the first is `{}`, which leaves a configuration as it is.

    The others are the points of a Halton sequence over the ranges, the same for every configuration: an even cover
    whose trials do not wait for each other.
    """
    knobs = tuple(knob for knob in space if knob.kind == "nuisance")
    if count < 2 or not knobs:
        return [{}]
    from scipy.stats import qmc  # slow to import, and few sweeps tune

    points = qmc.Halton(len(knobs), scramble=False).random(count)[1:]  # the first point is the corner
    return [{}, *(arm(knobs, map(Knob.at, knobs, point.tolist())) for point in points)]


def space_of(arms: Sequence[Mapping[str, Any]], base: ExperimentConfig) -> tuple[Knob, ...]:
    """The knobs that a recipe's arms turn, with the values they take; what an arm leaves out has its value in `base`.

    Fields whose values always change together (the buckets and slots of a geometry) are one knob.
    """
    default = flatten(base)
    names = list(dict.fromkeys(name for one in arms for name in one))
    columns = {name: tuple(one.get(name, default[name]) for one in arms) for name in names}
    columns = {name: column for name, column in columns.items() if len(set(map(repr, column))) > 1}
    tied: dict[tuple[int, ...], list[str]] = {}
    for name, column in columns.items():
        seen = list(dict.fromkeys(map(repr, column)))
        tied.setdefault(tuple(seen.index(repr(value)) for value in column), []).append(name)
    space = []
    for pattern, fields in tied.items():
        firsts = [pattern.index(i) for i in range(max(pattern) + 1)]
        values = [{name: columns[name][first] for name in fields} for first in firsts]
        alone = len(fields) == 1
        space.append(Knob(" ".join(fields), tuple(value[fields[0]] if alone else value for value in values)))
    return tuple(space)


def check_space(space: Iterable[Knob]) -> None:
    """InputError for a knob that names no field, or whose range would need a network of the GNN for each value."""
    for knob in space:
        for name in knob.fields():
            if name not in flatten(ExperimentConfig()):
                raise InputError("space", knob.name, name, "no configuration has this field")
        if knob.range is not None and not knob.name.startswith("nexus."):
            raise InputError("space", knob.name, knob.range, "needs values: each makes networks anew")


def words(overrides: Mapping[str, Any]) -> str:
    """Overrides as a reader wants them: `slots 32, tau 0.1`; `default` if there are none."""
    shown = {name.removeprefix("nexus."): f"{v:.3g}" if isinstance(v, float) else v for name, v in overrides.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items()) or "default"
