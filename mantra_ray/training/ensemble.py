"""Predictions of several trainings that differ by their seed alone: means, and intervals over the seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from mantra_ray.errors import InputError
from mantra_ray.fields import identity
from mantra_ray.forward import Prediction
from mantra_ray.training.checkpoint import Checkpoint
from mantra_ray.training.predictor import Predictor

KINDS = ("gene", "program", "trait")


@dataclass(frozen=True, eq=False)
class Estimate:
    """What n queries come to, by kind; arrays are float32 [n, names of the kind]."""

    value: dict[str, np.ndarray]  # mean over seeds
    lower: dict[str, np.ndarray]  # NaN where fewer than two seeds tell
    upper: dict[str, np.ndarray]
    added: dict[str, np.ndarray]  # by the memory, mean over seeds
    base: list[np.ndarray]  # of each seed, the values [n, M] that its memory corrects


class Ensemble:
    """The predictors of checkpoints, for the regulators that will be asked for.

    Programs are those of the first checkpoint, since every seed fits its own: another seed's change of them is its
    change of expression times the first one's loadings, where it kept all their genes. Genes are those that any of
    the seeds kept. `seeds` tells how many stand behind each name. Raises InputError for checkpoints of other data or
    settings than the first, for one seed twice, and for what `Predictor` refuses.
    """

    def __init__(self, checkpoints: Sequence[Checkpoint], regulators: Iterable[str]):
        check_alike(checkpoints)
        regulators = list(regulators)
        self.first, self.predictors = checkpoints[0], [Predictor(one, regulators) for one in checkpoints]
        names = self.first.names
        genes = dict.fromkeys(gene for one in checkpoints for gene in one.names["gene"])
        self.names = {"gene": list(genes), "program": names["program"], "trait": names["trait"]}
        place = {gene: i for i, gene in enumerate(genes)}
        self._genes = [np.array([place[gene] for gene in one.names["gene"]], np.int64) for one in checkpoints]
        self._programs = [self._columns(one) for one in checkpoints]
        self.seeds = {
            "gene": sum(np.bincount(columns, minlength=len(genes)) for columns in self._genes),
            "program": np.full(len(names["program"]), sum(columns is not None for columns in self._programs)),
            "trait": np.full(len(names["trait"]), len(checkpoints)),
        }

    @property
    def place(self) -> dict[str, int]:
        """The number of each regulator."""
        return self.predictors[0].place

    def _columns(self, checkpoint: Checkpoint) -> np.ndarray | None:
        """Where the genes of the first checkpoint's programs stand among another's; None where it lacks some."""
        if "loadings" not in self.first.cascade:
            return np.arange(0)
        used = self.first.cascade["loadings"].numpy().any(1)
        place = {gene: i for i, gene in enumerate(checkpoint.names["gene"])}
        at = np.array([place.get(gene, -1) for gene in self.first.names["gene"]], np.int64)
        return None if (at[used] < 0).any() else at

    def predict(self, regulator: np.ndarray, dose: np.ndarray, state: np.ndarray) -> Estimate:
        """Means over seeds of queries [n], with intervals by Student's t at the confidence of the config."""
        answers = [predictor.predict(regulator, dose, state) for predictor in self.predictors]
        value, lower, upper, added = {}, {}, {}, {}
        for kind in KINDS:
            alone, told = (
                np.stack([self._values(kind, i, answer[which]) for i, answer in enumerate(answers)]) for which in (0, 1)
            )
            count = self.seeds[kind]
            value[kind] = _mean(told, count).astype(np.float32)
            added[kind] = _mean(told - alone, count).astype(np.float32)
            half = half_width(told, count, self.first.config.evaluation.confidence)
            lower[kind], upper[kind] = ((value[kind] + sign * half).astype(np.float32) for sign in (-1, 1))
        return Estimate(value, lower, upper, added, [answer[2] for answer in answers])

    def _values(self, kind: str, i: int, found: Prediction) -> np.ndarray:
        """A seed's changes [n, names of the kind] float64, NaN where it does not tell."""
        n, expression = len(found.trait), found.expression
        if kind == "trait":
            return found.trait.astype(np.float64)
        if kind == "gene":
            values = np.full((n, len(self.names["gene"])), np.nan)
            if expression is not None:
                values[:, self._genes[i]] = expression
            return values
        if i == 0 or expression is None:
            return found.program.astype(np.float64)
        if (at := self._programs[i]) is None:
            return np.full((n, len(self.names["program"])), np.nan)
        used = at >= 0
        return expression[:, at[used]].astype(np.float64) @ self.first.cascade["loadings"].numpy()[used]


def check_alike(checkpoints: Sequence[Checkpoint]) -> None:
    """InputError unless all are of the same data and settings, each of a seed of its own."""
    first, seen = checkpoints[0], {}
    for one in checkpoints:
        pairs = {"data sha256": (one.data_sha256, first.data_sha256)}
        pairs |= {f"names, {kind}": (one.names[kind], first.names[kind]) for kind in ("regulator", "state", "trait")}
        mine, theirs = identity(one.config), identity(first.config)
        pairs |= {name: (mine[name], theirs[name]) for name in mine if name != "seed"}
        for field, (found, wanted) in pairs.items():
            if found != wanted:
                mine, theirs = _differing(found, wanted)
                raise InputError(one.path, field, mine, f"differs from that of {first.path}, {theirs!r}")
        if one.config.seed in seen:
            problem = f"is that of {seen[one.config.seed]} too: intervals need trainings of different seeds"
            raise InputError(one.path, "seed", one.config.seed, problem)
        seen[one.config.seed] = one.path


def half_width(values: np.ndarray, count: np.ndarray, confidence: float) -> np.ndarray:
    """Half of the interval of the mean over seeds of values [seeds, n, names], `count` [names] of them not NaN.

    t * s / sqrt(count), t the quantile of Student's distribution with count - 1 degrees of freedom and s the standard
    deviation over the seeds; NaN for fewer than two seeds.
    """
    freedom = np.where(count > 1, count - 1, np.nan)
    squares = np.nansum((values - _mean(values, count)) ** 2, axis=0)
    return student.ppf((1 + confidence) / 2, freedom) * np.sqrt(squares / freedom / count)


def _mean(values: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.nansum(values, axis=0) / count


def _differing(found: Any, wanted: Any) -> tuple:
    """Two values that differ; of lists their first entries that do, or their lengths."""
    if not isinstance(found, list):
        return found, wanted
    if len(found) != len(wanted):
        return len(found), len(wanted)
    return next(pair for pair in zip(found, wanted, strict=True) if pair[0] != pair[1])
