"""Every metric of every arm: means over seeds with intervals, one table a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow.dataset as ds
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from scipy.stats import t

from mantra_ray.evaluation.statistics import Interval
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.summary import Configuration

# What a table shows side by side, by heading; a metric that no arm has is left out.
METRICS = {
    "programs": {
        "program_mse_weighted": "weighted MSE",
        "program_cosine": "cosine",
        "program_spearman": "Spearman",
        "program_top_overlap": "top overlap",
        "discrimination": "discrimination",
        "spread_ratio": "spread ratio",
    },
    "expression": {
        "expression_pearson": "Pearson",
        "expression_pearson_centred": "Pearson, centred",
        "de_overlap": "DE overlap",
        "de_spearman": "DE Spearman",
        "de_direction": "DE direction",
    },
    "traits": {
        "trait_sign_accuracy": "sign accuracy",
        "trait_auroc": "AUROC",
        "trait_calibration_slope": "calibration slope",
        "trait_correlation": "correlation",
    },
}
COLUMNS = ["arm", "seed", "split", "metric", "value"]
Values = dict[tuple[str, str], list[float]]  # of the seeds, by arm and metric


def print_scorecards(
    store: Store, trials: Sequence[dict[str, Any]], chosen: dict[str, Configuration | None], console: Console
) -> None:
    """Print the tables of all splits: baselines, and the memory of the configuration chosen on each split."""
    for split, item in chosen.items():
        done = [row for row in trials if row["split.kind"] == split and row["status"] == "done"]
        judged = [row["trial"] for row in done if row["kind"] == "baselines"]
        judged += [row["trial"] for row in item.results[split].trials] if item is not None else []
        values = read(store, judged)
        level = done[0]["evaluation.confidence"] if done else 0.95
        for kind, metrics in METRICS.items():
            shown = {name: label for name, label in metrics.items() if any(name == metric for _, metric in values)}
            if shown:
                console.print(
                    f"\nOn {split}, {kind}: mean over seeds ± half of Student's {level:.0%} interval", style="bold"
                )
                console.print(scorecard(values, shown, level))


def read(store: Store, trials: Iterable[str]) -> Values:
    """Values on all test records of the trials, one a seed; an arm that several kinds of trial judge counts once."""
    known = [name for metrics in METRICS.values() for name in metrics]  # points of ROC curves are none
    where = (ds.field("part") == "test") & (ds.field("slice") == "all") & ds.field("metric").isin(known)
    seen: dict[tuple[str, str], dict[int, float]] = {}
    for row in store.read("scores", trials, COLUMNS, where).to_pylist():
        if row["arm"] != "noise_ceiling":
            seen.setdefault((row["arm"], row["metric"]), {}).setdefault(row["seed"], row["value"])
    return {key: list(by_seed.values()) for key, by_seed in seen.items()}


def scorecard(values: Values, metrics: dict[str, str], confidence: float) -> Table:
    """One row an arm, one column a metric, the arms in the order of the values."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("arm", no_wrap=True)
    for label in metrics.values():
        table.add_column(label, justify="right", no_wrap=True)
    for arm in dict.fromkeys(arm for arm, metric in values if metric in metrics):
        cells = [cell(values.get((arm, metric), []), confidence) for metric in metrics]
        table.add_row(arm, *cells, style="bold" if arm == "memory_on" else None)
    return table


def cell(values: Sequence[float], confidence: float) -> str:
    """Mean of the seeds that have a value, ± half of Student's interval where there are two; "-" without any."""
    found = student(values, confidence)
    if not found.n:
        return "-"
    return f"{found.value:.3f}" + ("" if np.isnan(found.upper) else f" ± {found.upper - found.value:.3f}")


def student(values: Sequence[float], confidence: float) -> Interval:
    """Mean of the seeds that have a value with Student's interval, which is NaN with fewer than two."""
    known = np.array([value for value in values if np.isfinite(value)])
    if len(known) < 2:
        return Interval(float(known.mean()) if len(known) else np.nan, np.nan, np.nan, len(known))
    half = t.ppf((1 + confidence) / 2, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known))
    return Interval(float(known.mean()), float(known.mean() - half), float(known.mean() + half), len(known))
