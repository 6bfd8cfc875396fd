"""Configurations against the default one, record by record: paired differences with intervals and adjusted p-values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.dataset as ds

from mantra_ray.evaluation.statistics import Interval, holm, nested_p_value, ratio_intervals
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.summary import DEFAULTS, Configuration

RESAMPLES = 10_000  # of the p-values, whose least value bounds what Holm's correction can find
COLUMNS = ["seed", "record", "regulator", "squared_error", "reference_error"]


@dataclass(frozen=True)
class Paired:
    """One configuration less the default one on one split: gains on the same test records, all seeds pooled."""

    difference: Interval  # of errors, as a share of the default's GNN error; above 0 the configuration is better
    p_value: float  # two-sided, adjusted by Holm over all comparisons of the table
    seeds: int


def default_configuration(found: Sequence[Configuration]) -> Configuration | None:
    """The configuration whose swept knobs all have their default values, if it is among them."""
    return next((item for item in found if item.knobs.items() <= DEFAULTS.items()), None)


def against_default(store: Store, found: Sequence[Configuration], arm: str) -> dict[tuple[int, str], Paired]:
    """Paired comparisons of an arm on test by position in `found` and split, on the seeds that both finished."""
    default = default_configuration(found)
    if default is None:
        return {}
    compared, p_values = {}, []
    for split, reference in default.results.items():
        base = _errors(store, reference.trials, arm)
        for i, item in enumerate(found):
            if item is default or split not in item.results:
                continue
            mine, theirs = _shared(_errors(store, item.results[split].trials, arm), base)
            if not len(mine["seed"]):
                continue
            gained = theirs["squared_error"] - mine["squared_error"]
            who = mine["regulator"], mine["seed"]
            confidence = reference.trials[0]["evaluation.confidence"]
            limits = ratio_intervals(gained[:, None], theirs["reference_error"][:, None], *who, 1000, confidence, 0)
            interval = Interval(*(float(limit[0]) for limit in limits), len(gained))
            p_values.append(nested_p_value(theirs["squared_error"], mine["squared_error"], *who, RESAMPLES))
            compared[i, split] = interval, len(np.unique(mine["seed"]))
    adjusted = holm(np.array(p_values)) if p_values else []
    return {
        key: Paired(interval, float(p), seeds)
        for (key, (interval, seeds)), p in zip(compared.items(), adjusted, strict=True)
    }


def _errors(store: Store, trials: Sequence[dict], arm: str) -> dict[str, np.ndarray]:
    """Errors of an arm on the trials' test records, by seed and record."""
    where = (ds.field("part") == "test") & (ds.field("arm") == arm)
    rows = store.read("records", [row["trial"] for row in trials], COLUMNS, where)
    rows = rows.sort_by([("seed", "ascending"), ("record", "ascending")])
    return {name: rows[name].to_numpy() for name in COLUMNS}


def _shared(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> tuple[dict, dict]:
    """The rows of the seeds that both have; a seed's split is the same for both."""
    seeds = np.intersect1d(one["seed"], other["seed"])
    return tuple({name: a[np.isin(rows["seed"], seeds)] for name, a in rows.items()} for rows in (one, other))
