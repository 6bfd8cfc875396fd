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

from mantra_ray.evaluation.statistics import Interval, nested_gain, nested_p_value, ratio_bootstrap
from mantra_ray.report.findings import Findings
from mantra_ray.sweep.summary import CEILING, MEMORY

KEY = ["seed", "record"]
KEYS_OF_SLICE = ["seed", "arm", "slice", "n"]
FEW = 10  # records, below which resampling their regulators gives intervals that are far too short
RESAMPLES = 10_000  # the least p-value that they can give must survive the correction for many comparisons


def best_baseline(sweep: Findings, split: str) -> str | None:
    """The baseline of least error on test records, which flatters it; None where none ran."""
    arms = [arm for name, arm in sweep.arms[split].items() if name not in (*MEMORY, CEILING, "gnn")]
    return min(arms, key=lambda arm: arm.error).name if arms else None


def record_table(sweep: Findings, split: str) -> pd.DataFrame:
    """Test records of a split, a row a seed and record, with the error of each predictor in a column of its own.

    `gnn`, `memory_on` and `memory_shuffled` are of the configuration that is judged there; `baseline` is the best one
    and `effect` the mean squared change over programs, the error of predicting none (both only where baselines ran).
    """
    baselines, judged = sweep.judged(split)
    arms = {"memory_on": "memory_on", "memory_shuffled": "memory_shuffled"}
    frame = _errors(sweep, judged, arms, ["regulator", "dose", "state", "reference_error"])
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


def slice_table(sweep: Findings, split: str) -> pd.DataFrame:
    """Gain of a slice of the test records by arm and seed: all, rare, outlier, and `others`, all but the rare ones.

    Arms: memory on and shuffled of the configuration that is judged on the split, and the best baseline.
    """
    baselines, judged = sweep.judged(split)
    arms = ["memory_on", "memory_shuffled", best_baseline(sweep, split)]
    trials = [row["trial"] for row in (*baselines, *judged)]
    where = (ds.field("part") == "test") & ds.field("arm").isin([arm for arm in arms if arm])
    where = where & ds.field("slice").isin(["all", "rare", "outlier"])
    where = where & ds.field("metric").isin(["program_mse", "program_mse_gain"])
    rows = sweep.store.read("scores", trials, where=where).to_pandas()
    kept = [*KEYS_OF_SLICE, "value", "lower", "upper"]
    gains, errors_ = (rows.loc[rows["metric"] == name, kept] for name in ("program_mse_gain", "program_mse"))
    gains = gains.rename(columns={"value": "gain"}).merge(errors_[[*KEYS_OF_SLICE, "value"]], how="left")
    gains = pd.concat([gains, _others(gains)], ignore_index=True).drop(columns="value")
    return gains.assign(**{name: 100 * gains[name] for name in ("gain", "lower", "upper")})


def _others(gains: pd.DataFrame) -> pd.DataFrame:
    """The complement of the rare slice, by seed and arm, from sums of errors; without intervals."""
    sums = gains.assign(error=gains["n"] * gains["value"]).assign(base=lambda rows: rows["error"] / (1 - rows["gain"]))
    wide = sums.pivot(index=["seed", "arm"], columns="slice", values=["n", "error", "base"])
    if ("n", "rare") not in wide:
        return gains.iloc[:0]
    left = {name: wide[name, "all"] - wide[name, "rare"] for name in ("n", "error", "base")}
    frame = pd.DataFrame({"n": left["n"], "gain": 1 - left["error"] / left["base"], "slice": "others"}).reset_index()
    return frame[frame["n"] > 0].dropna()


def over_seeds(values: pd.DataFrame, confidence: float) -> dict[str, float | str]:
    """Mean of `gain`, one value a seed in percent, with Student's interval over seeds.

    With one seed the interval is that seed's own over regulators, where `values` holds it (lower, upper; n records).
    """
    known = values.dropna(subset="gain")
    gains = known["gain"].to_numpy(float) / 100
    mean_gain, lower, upper = (gains.mean() if len(gains) else np.nan), np.nan, np.nan
    if len(gains) > 1:
        half = t.ppf((1 + confidence) / 2, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
        lower, upper = mean_gain - half, mean_gain + half
    elif len(gains) and "lower" in known and known["n"].iloc[0] >= FEW:
        lower, upper = known[["lower", "upper"]].to_numpy(float)[0] / 100
    return {"seeds": len(gains)} | interval_columns(Interval(mean_gain, lower, upper, len(gains)))
