"""What a sweep can find, told before its trials start: the least difference, and the seeds that a wished-for one needs.

Nothing of the test records enters but how many there are of which regulator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.dataset as ds

from mantra_ray.config import EvaluationConfig, ExperimentConfig
from mantra_ray.evaluation.metrics import squared_error
from mantra_ray.evaluation.power import MOST_SEEDS, Components, Design, components, detectable, seeds_needed
from mantra_ray.fields import flatten
from mantra_ray.sweep.paired import errors, shared
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.summary import DEFAULTS, PAIRED, value

if TYPE_CHECKING:
    from mantra_ray.forward import Fold

NEAREST, SHARE = 2, 0.5  # of the correction that stands in for the memory's: more would take in other regulators
MOST_COMPARED = 8  # earlier configurations from which differences are learned
STAND_IN = (
    f"that configurations differ from each other, record by record, as much as the GNN differs from itself with "
    f"{SHARE:g} x the mean residual of the {NEAREST} nearest training records added (out-of-fold and validation "
    "records); like configurations differ less, and need fewer seeds"
)
EARLIER = "that configurations differ from each other as much as those that finished earlier do on validation"


@dataclass(frozen=True)
class Expectation:
    """What the comparison of two configurations on one split can find; differences are shares of the GNN's error."""

    split: str
    seeds: int
    regulators: int  # tested by one seed
    detectable: float  # least difference found with `power` by these seeds; NaN with one regulator
    limit: float  # the same with as many seeds as are tried at most
    effect: float
    needed: int | None  # seeds that find `effect`; None where none are enough
    power: float
    comparisons: int
    assumption: str

    def line(self) -> str:
        """What is expected, in words."""
        if np.isnan(self.detectable):
            return f"On {self.split}: one regulator is tested, from which nothing can be concluded."
        found = f"{least(self.detectable)} is found with {self.power:.0%} power by {counted(self.seeds, 'seed')}"
        holm = f" (Holm over {self.comparisons} comparisons)" if self.comparisons > 1 else ""
        if self.needed is None:
            wish = (
                f"{points(self.effect)} is beyond any number of seeds: {counted(self.regulators, 'tested regulator')} "
                f"a seed leave {least(self.limit)}"
            )
        else:
            wish = f"{points(self.effect)} needs {counted(self.needed, 'seed')}"
        return f"On {self.split}: a difference of {found}{holm}; {wish}."


def points(share: float) -> str:
    """A difference of gains."""
    return f"{100 * share:.2g} points" if share < 0.1 else f"{100 * share:.0f} points"


def least(share: float) -> str:
    """The least difference that can be found, where that is not absurd, as with a handful of records."""
    return points(share) if share <= 1 else "more than 100 points"


def counted(count: int, what: str) -> str:
    """A number of things."""
    return f"{count} {what}" + ("" if count == 1 else "s")


def expected(
    folds: Iterable[Fold],
    evaluation: EvaluationConfig,
    effect: float,
    power: float,
    comparisons: int = 1,
    store: Store | None = None,
) -> list[Expectation]:
    """What each split's comparisons can find with the folds' seeds, from the folds and from earlier trials in `store`.

    effect: wished-for difference of gains, a share of the GNN's error; power: probability of finding it; comparisons:
    tests that Holm corrects for, the first of them at (1 - confidence) / comparisons. Folds are looked at one by one.
    """
    tested: dict[str, list[tuple]] = {}
    differences: dict[str, list[tuple]] = {}
    seen: set[tuple[str, int]] = set()
    for fold in folds:
        kind, seed = fold.meta["kind"], fold.meta["seed"]
        if (kind, seed) in seen:  # of another network, where the sweep varies it
            continue
        seen.add((kind, seed))
        regulator = fold.regulator[fold.test]
        tested.setdefault(kind, []).append((regulator, np.full(len(regulator), seed)))
        gained, reference, who = stand_in_differences(fold)
        differences.setdefault(kind, []).append((gained, reference, who, np.full(len(who), seed)))
    alpha, found = (1 - evaluation.confidence) / comparisons, []
    for kind, pieces in tested.items():
        design = Design.of(*map(np.concatenate, zip(*pieces, strict=True)))
        earlier = [] if store is None else earlier_components(store, kind)
        assumption = EARLIER if earlier else STAND_IN
        parts = earlier or [of_differences(*map(np.concatenate, zip(*differences[kind], strict=True)))]
        mean = Components.mean(parts)
        found.append(
            Expectation(
                split=kind,
                seeds=len(pieces),
                regulators=design.regulators,
                detectable=detectable(mean, design, len(pieces), power, alpha),
                limit=detectable(mean, design, MOST_SEEDS, power, alpha),
                effect=effect,
                needed=seeds_needed(mean, design, effect, power, alpha),
                power=power,
                comparisons=comparisons,
                assumption=assumption,
            )
        )
    return found


def lines(found: Sequence[Expectation]) -> list[str]:
    """What a sweep prints before its trials: a line a split, and what they assume."""
    assumptions = dict.fromkeys(item.assumption for item in found)
    return [item.line() for item in found] + [f"This assumes {assumption}." for assumption in assumptions]


def stand_in_differences(fold: Fold) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors of the base, less those with the stand-in's correction; errors of the base; and regulators, each [n].

    Of the validation records, and of the training records that the split could have tested: there the base is out of
    fold, and the correction uses no record that is left out together with them.
    """
    # Here, since both take torch, which readers of results can do without.
    from mantra_ray.baselines.headers import Headers, stand_ins
    from mantra_ray.baselines.smoothers import neighbours

    kind, train, other = fold.meta["kind"], fold.train, fold.validation
    known = Headers.of(fold, train).grouped(kind)
    residual = fold.residual[train].astype(float)
    judged = stand_ins(known, kind)
    own = neighbours(known, known, NEAREST)(residual)[judged]
    held_out = neighbours(Headers.of(fold, other), known, NEAREST)(residual)
    rows = np.concatenate([train[judged], other])
    left = fold.residual[rows]
    reference = squared_error(left, np.zeros_like(left))
    return reference - squared_error(SHARE * np.concatenate([own, held_out]), left), reference, fold.regulator[rows]


def of_differences(gained: np.ndarray, reference: np.ndarray, regulator: np.ndarray, seed: np.ndarray) -> Components:
    """Variance components of sum(gained) / sum(reference) over records [n], to first order."""
    mean = reference.mean()
    if not mean > 0:
        return Components(0.0, 0.0, 0.0, 0.0)
    return components((gained - gained.mean() / mean * reference) / mean, regulator, seed)


def earlier_components(store: Store, split: str) -> list[Components]:
    """Components of the differences on validation between finished configurations and the default (or the first).

    Of trials on several data or by several states of the code those of which most finished tell: the others may differ
    from them for other reasons than their configurations.
    """
    done = (ds.field("kind") == "nexus") & (ds.field("status") == "done") & (ds.field("split.kind") == split)
    by_configuration: dict[tuple, list[dict[str, Any]]] = {}
    names = [name for name in flatten(ExperimentConfig()) if name not in PAIRED]
    rows = store.read("trials", where=done).to_pylist()
    origins = Counter(map(origin, rows))
    for row in (row for row in rows if origin(row) == origins.most_common(1)[0][0]):
        by_configuration.setdefault(tuple(value(row, name) for name in names), []).append(row)
    if len(by_configuration) < 2:
        return []
    nearest = sorted(by_configuration, key=lambda values: sum(map(differs, names, values)))
    base = errors(store, by_configuration[nearest[0]], "memory_on", "validation")
    found = []
    for values in nearest[1 : 1 + MOST_COMPARED]:
        mine, theirs = shared(errors(store, by_configuration[values], "memory_on", "validation"), base)
        gained = theirs["squared_error"] - mine["squared_error"]
        if len(np.unique(mine["regulator"])) > 1 and gained.any():  # equal predictions tell nothing of others
            found.append(of_differences(gained, theirs["reference_error"], mine["regulator"], mine["seed"]))
    return found


def origin(row: dict[str, Any]) -> tuple[Any, Any]:
    """Data and code of a trial."""
    return row.get("provenance.data_sha256"), row.get("provenance.code")


def differs(name: str, setting: Any) -> bool:
    """Whether a setting is not the default's."""
    return setting != DEFAULTS[name]
