"""Where the gain comes from: a sweep's test records by regulator, effect size and slice, as frames.

Gains are in percent of the GNN's error, as in `load`. Names of regulators are not in the tables, only their numbers.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
from load import corrected, interval_columns
from scipy.stats import t

from mantra_ray.evaluation.statistics import Interval, nested_gain, nested_p_value, ratio_bootstrap, ratio_intervals
from mantra_ray.report.findings import Findings
from mantra_ray.report.slices import by_slice, members, unless_few
from mantra_ray.sweep.schema import SLICES
from mantra_ray.sweep.summary import CEILING, MEMORY

KEY = ["seed", "record"]
ARMS = ("memory_on", "memory_shuffled", "baseline")
RESAMPLES = 10_000  # the least p-value that they can give must survive the correction for many comparisons


def best_baseline(sweep: Findings, split: str) -> str | None:
    """The baseline of least error on test records, which flatters it; None where none ran."""
    arms = [arm for name, arm in sweep.arms[split].items() if name not in (*MEMORY, CEILING, "gnn")]
    return min(arms, key=lambda arm: arm.error).name if arms else None


def record_table(sweep: Findings, split: str) -> pd.DataFrame:
    """Test records of a split, a row a seed and record, with the error of each predictor in a column of its own.

    `gnn`, `memory_on` and `memory_shuffled` are of the configuration that is judged there; `baseline` is the best one
    and `effect` the mean squared change over programs, the error of predicting none (both only where baselines ran).
    `training_records`, `rare` and `outlier` tell of the record's regulator.
    """
    baselines, judged = sweep.judged(split)
    arms = {"memory_on": "memory_on", "memory_shuffled": "memory_shuffled"}
    frame = _errors(sweep, judged, arms, ["regulator", "dose", "state", *SLICES, "reference_error"])
    frame = frame.rename(columns={"reference_error": "gnn"})
    others = {best_baseline(sweep, split): "baseline"} if baselines else {}
    beside = _errors(sweep, baselines, {name: title for name, title in others.items() if name}, [])
    effect = _errors(sweep, baselines, {"zero": "effect"}, [])
    return frame.join(beside).join(effect).reset_index()


def _errors(sweep: Findings, trials: list, arms: dict[str, str], beside: list[str]) -> pd.DataFrame:
    """Errors of arms on test by seed and record, each under its new name, and columns that all arms share."""
    where = (ds.field("part") == "test") & ds.field("arm").isin(list(arms))
    names = [*KEY, "arm", "squared_error", *beside]
    rows = sweep.store.read("records", [row["trial"] for row in trials], names, where).to_pandas()
    rows["arm"] = rows["arm"].astype(str).map(arms)
    wide = rows.pivot(index=KEY, columns="arm", values="squared_error")
    return rows.drop_duplicates(KEY).set_index(KEY)[beside].join(wide) if beside else wide


def gain_by(sweep: Findings, records: pd.DataFrame, group: str, arms: Iterable[str] = ("memory_on",)) -> pd.DataFrame:
    """Gain over the GNN of arms by a column of `record_table`, a row each; seeds pooled, interval over regulators.

    p is Holm's over the groups, for each arm. A group with one regulator has no interval and is undecided.
    """
    frames = []
    for arm in (arm for arm in arms if arm in records):
        rows = []
        for name, of in records.groupby(group, observed=True):
            columns = [of[column].to_numpy() for column in (arm, "gnn", "regulator", "seed")]
            gain = nested_gain(*columns, resamples=RESAMPLES, confidence=sweep.confidence)
            who = {group: name, "arm": arm, "regulators": of["regulator"].nunique(), "records": len(of)}
            rows.append(who | interval_columns(gain) | {"p": nested_p_value(*columns, resamples=RESAMPLES)})
        frames.append(corrected(rows, [group, "arm", "regulators", "records"], sweep, ("helps", "harms")))
    return pd.concat(frames).sort_index(kind="stable", ignore_index=True)


def regulator_table(sweep: Findings, records: pd.DataFrame, arm: str = "memory_on") -> pd.DataFrame:
    """Gain over the GNN of each regulator, a row each, with Student's interval over its records; p by Holm.

    A regulator has few test records: resampling two or three of them would give intervals far too short, so the
    spread is that of the records, with the few degrees of freedom that they leave. One record has no interval.
    `share` is the part of all error saved (or cost, below 0), in percent of the GNN's error on all records.
    """
    rows, total = [], records["gnn"].sum()
    for name, of in records.groupby("regulator"):
        saved = (of["gnn"] - of[arm]).to_numpy()
        value, half, p_value = float(saved.sum() / of["gnn"].sum()), np.nan, 1.0
        if of["record"].nunique() > 1 and np.any(saved != 0):
            columns = saved[:, None], of[["gnn"]].to_numpy(), of["record"].to_numpy(), of["seed"].to_numpy()
            spread = ratio_bootstrap(*columns, resamples=1, rng_seed=0).spread
            error, freedom = np.sqrt(spread.variance[0]), spread.freedom[0]
            half = t.ppf((1 + sweep.confidence) / 2, freedom) * error
            p_value = float(2 * t.sf(abs(value) / error, freedom)) if error > 0 else 1.0
        gain = Interval(value, value - half, min(value + half, 1.0), len(of))
        who = {"regulator": name, "records": of["record"].nunique(), "seeds": of["seed"].nunique()}
        rows.append(who | interval_columns(gain) | {"p": p_value, "share": 100 * float(saved.sum() / total)})
    return corrected(rows, ["regulator", "records", "seeds"], sweep, ("helps", "harms"))


def slice_gains(sweep: Findings, records: pd.DataFrame) -> pd.DataFrame:
    """Gain over the GNN by slice of `record_table` and arm, a row each; seeds pooled, as in the report.

    Slices: all, rare, others (all but the rare), outlier; all alone where rows of an earlier version do not say who
    is rare. Intervals are over regulators and uncorrected; a slice of few regulators has none.
    """
    rows, resamples = [], sweep.trials[0]["evaluation.bootstrap"]
    for arm in (arm for arm in ARMS if arm in records):
        known = _columns(records.dropna(subset=arm), squared_error=arm, reference_error="gnn")
        for name, (gain, regulators) in by_slice(known, resamples, sweep.confidence).items():
            who = {"slice": name, "arm": arm, "regulators": regulators, "records": gain.n}
            rows.append(who | interval_columns(gain))
    return pd.DataFrame(rows)


def slice_differences(sweep: Findings, records: pd.DataFrame) -> pd.DataFrame:
    """Gain of the memory less that of another arm on the same records, by slice; as `slice_gains`."""
    rows, resamples = [], sweep.trials[0]["evaluation.bootstrap"]
    for arm in (arm for arm in ARMS[1:] if arm in records):
        known = _columns(records.dropna(subset=arm), mine="memory_on", other=arm, reference="gnn")
        saved = known["other"] - known["mine"]
        for name, inside in members(known).items():
            regulator = known["regulator"][inside]
            columns = saved[inside, None], known["reference"][inside, None], regulator, known["seed"][inside]
            limits = ratio_intervals(*columns, resamples, sweep.confidence, 0)
            difference = unless_few(Interval(*(float(limit[0]) for limit in limits), len(regulator)), regulator)
            rows.append({"slice": name, "what": f"{name}: memory_on less {arm}"} | interval_columns(difference))
    return pd.DataFrame(rows)


def _columns(records: pd.DataFrame, **named: str) -> dict[str, np.ndarray]:
    """Columns of some records under new names, and those that say whose they are."""
    own = {name: name for name in ("regulator", "seed", "rare", "outlier")}
    return {name: records[column].to_numpy() for name, column in (own | named).items()}
