"""Configurations against the default one, record by record: paired differences with intervals and adjusted p-values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.dataset as ds

from mantra_ray.evaluation.robust import improvement_interval, interquartile_interval, pair_gains
from mantra_ray.evaluation.statistics import Interval, holm, ratio_bootstrap
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.summary import DEFAULTS, Configuration

RESAMPLES = 10_000  # of the differences: the p-values' least value bounds what Holm's correction can find
COLUMNS = ["seed", "record", "regulator", "squared_error", "reference_error"]


@dataclass(frozen=True)
class Paired:
    """One configuration less the default one on one split: gains on the same test records, all seeds pooled."""

    difference: Interval  # of errors, as a share of the default's GNN error; above 0 the configuration is better
    middle: Interval  # interquartile mean over (seed, regulator) of that share within each; outliers do not decide it
    improved: Interval  # probability that a (seed, regulator) is better off than with the default, ties counting half
    p_value: float  # of the difference, two-sided, adjusted by Holm over all comparisons of the table that differ
    seeds: int
    same: bool  # every record has the error that it has with the default: nothing to test


def default_configuration(found: Sequence[Configuration]) -> Configuration | None:
    """The configuration whose swept knobs all have their default values, if it is among them."""
    return next((item for item in found if item.knobs.items() <= DEFAULTS.items()), None)


def against_default(store: Store, found: Sequence[Configuration], arm: str) -> dict[tuple[int, str], Paired]:
    """Paired comparisons of an arm on test by position in `found` and split, on the seeds that both finished."""
    default = default_configuration(found)
    if default is None:
        return {}
    compared = {}
    for split, reference in default.results.items():
        base = errors(store, reference.trials, arm, "test")
        for i, item in enumerate(found):
            if item is default or split not in item.results:
                continue
            mine, theirs = shared(errors(store, item.results[split].trials, arm, "test"), base)
            if not len(mine["seed"]):
                continue
            judging = reference.trials[0]["evaluation.bootstrap"], reference.trials[0]["evaluation.confidence"]
            *intervals, p_value = compare(mine, theirs, *judging)
            same = np.array_equal(mine["squared_error"], theirs["squared_error"])
            compared[i, split] = Paired(*intervals, p_value, len(np.unique(mine["seed"])), same)
    tested = [key for key, pair in compared.items() if not pair.same]
    adjusted = holm(np.array([compared[key].p_value for key in tested])).tolist() if tested else []
    return compared | {key: replace(compared[key], p_value=p) for key, p in zip(tested, adjusted, strict=True)}


def compare(
    mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray], resamples: int, confidence: float
) -> tuple[Interval, Interval, Interval, float]:
    """Difference, interquartile mean and probability of improvement, as in `Paired`, of errors on the same records.

    And the difference's p-value: below 1 - confidence where its interval leaves out 0. Intervals are NaN, and the
    p-value 1, with a single regulator.
    """
    gained, reference = theirs["squared_error"] - mine["squared_error"], theirs["reference_error"]
    who = mine["regulator"], mine["seed"]
    lower, upper, p_value = float("nan"), float("nan"), 1.0
    if len(np.unique(mine["regulator"])) > 1:
        drawn = ratio_bootstrap(gained[:, None], reference[:, None], *who, RESAMPLES, 0)
        (lower,), (upper,) = drawn.limits(1 - confidence)
        p_value = drawn.p_value()
    total = reference.sum()
    difference = Interval(float(gained.sum() / total) if total else 0.0, float(lower), float(upper), len(gained))
    pairs = pair_gains(gained, reference, *who)
    middle = interquartile_interval(*pairs, resamples, confidence)
    return difference, middle, improvement_interval(*pairs, resamples, confidence), p_value


def errors(
    store: Store, trials: Sequence[dict], arm: str, part: str, beside: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Errors of an arm on the trials' records of a part, by seed and record, and columns `beside` them."""
    where = (ds.field("part") == part) & (ds.field("arm") == arm)
    rows = store.read("records", [row["trial"] for row in trials], [*COLUMNS, *beside], where)
    rows = rows.sort_by([("seed", "ascending"), ("record", "ascending")])
    return {name: rows[name].to_numpy() for name in (*COLUMNS, *beside)}


def shared(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> tuple[dict, dict]:
    """The rows of the seeds that both have; a seed's split is the same for both."""
    seeds = np.intersect1d(one["seed"], other["seed"])
    return tuple({name: a[np.isin(rows["seed"], seeds)] for name, a in rows.items()} for rows in (one, other))
