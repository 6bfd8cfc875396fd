"""ROC curves of trait signs, and beside them how well predicted trait effects are calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.dataset as ds
from matplotlib.axes import Axes

from mantra_ray.evaluation.pooled import CURVE, RATES
from mantra_ray.report.drawing import MUTED, PALETTE, Look, Picture, label, looks, panels
from mantra_ray.report.findings import Findings
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.summary import CEILING, MEMORY

AREA, SLOPE = "trait_auroc", "trait_calibration_slope"
OWN = ("memory_on", "gnn")
HEIGHT = 3.1  # inches of a panel


@dataclass(frozen=True)
class Judged:
    """One arm's trait signs on the test records of one split: value, lower and upper limit, means over seeds."""

    curve: np.ndarray  # [3, 19] true-positive rates at RATES
    area: np.ndarray  # [3]
    slope: np.ndarray  # [3]
    seeds: int


def read_judged(store: Store, trials: Sequence[str]) -> dict[str, Judged]:
    """Arms of the trials, by name; without those whose scores hold no curve, being of an earlier version.

    An arm that several kinds of trial judge counts once a seed.
    """
    names = (*CURVE, AREA, SLOPE)
    where = (ds.field("part") == "test") & (ds.field("slice") == "all") & ds.field("metric").isin(names)
    limits: dict[str, dict[int, dict[str, tuple[float, float, float]]]] = {}
    for row in store.read("scores", trials, ["arm", "seed", "metric", "value", "lower", "upper"], where).to_pylist():
        of_seed = limits.setdefault(row["arm"], {}).setdefault(row["seed"], {})
        of_seed.setdefault(row["metric"], (row["value"], row["lower"], row["upper"]))
    found = {}
    for arm, seeds in limits.items():
        whole = [[of[name] for name in names] for of in seeds.values() if of.keys() >= set(names)]
        if whole:
            mean = np.mean(whole, axis=0).T
            found[arm] = Judged(mean[:, : len(CURVE)], mean[:, -2], mean[:, -1], len(whole))
    return found


def shown_arms(found: dict[str, Judged]) -> list[str]:
    """The memory, the GNN, and the other predictor with the largest area."""
    others = [arm for arm in found if arm not in (*MEMORY, *OWN, CEILING)]
    return [*(arm for arm in OWN if arm in found), *sorted(others, key=lambda arm: -found[arm].area[0])[:1]]


def roc_picture(findings: Findings) -> Picture | None:
    """A row of panels a split: the curves, and the calibration slopes; None where the scores hold no curve."""
    rows: dict[str, dict[str, Judged]] = {}
    for split in findings.splits:
        baselines, own = findings.judged(split)
        if found := read_judged(findings.store, [row["trial"] for row in (*baselines, *own)]):
            rows[split] = {arm: found[arm] for arm in shown_arms(found)}
    if not rows:
        return None
    figure, axes = panels(len(rows), 2, HEIGHT)
    styles = looks(dict.fromkeys(arm for found in rows.values() for arm in found))
    for (curves, slopes), (split, found) in zip(axes, rows.items(), strict=True):
        draw_curves(curves, found, styles)
        label(curves, split, "false-positive rate", "true-positive rate")
        draw_slopes(slopes, found, styles)
        label(slopes, f"{split}: calibration slope", "slope of observed on predicted effects")
    seeds = max(judged.seeds for found in rows.values() for judged in found.values())
    sizes = ", ".join(f"{findings.records(split)} test records on {split}" for split in rows)
    caption = (
        "How well predicted trait effects tell positive from negative ones: true-positive rate against "
        "false-positive rate as the threshold falls, averaged over traits at the same false-positive rate (Fawcett "
        "2006) and then over seeds; and the slope of observed on predicted effects (1 is calibrated, below it "
        "predictions are too large). Shown are the memory of the configuration chosen on each split, the GNN, and the "
        f"other predictor of largest area on test. Bands, brackets and lines across points: {findings.level} bootstrap "
        "intervals over the regulators of one seed's test records, their limits averaged over seeds, so that more "
        f"seeds do not narrow them. Dotted: chance, and the ideal slope. n = {sizes}, {seeds} seeds at most."
    )
    areas = "; ".join(
        f"{split}: " + ", ".join(f"{arm} {judged.area[0]:.2f}" for arm, judged in found.items())
        for split, found in rows.items()
    )
    return Picture("roc", figure, caption, f"ROC curves of trait signs, one row a split. Areas by split: {areas}.")


def draw_curves(place: Axes, found: dict[str, Judged], styles: dict[str, Look]) -> None:
    """Each arm's curve in its band, with its area in the legend."""
    at = np.array([0.0, *RATES, 1.0])
    for arm, judged in found.items():
        value, lower, upper = (np.array([0.0, *row, 1.0]) for row in judged.curve)
        look, area = styles[arm], judged.area
        span = f" [{area[1]:.2f}, {area[2]:.2f}]" if np.isfinite(area).all() else ""
        place.plot(
            at, value, color=look.color, linestyle=look.line, linewidth=1.6, label=f"{arm}, area {area[0]:.2f}{span}"
        )
        if np.isfinite(lower + upper).all():
            place.fill_between(at, lower, upper, color=look.color, alpha=0.13, linewidth=0)
    place.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1.2)
    place.set_xlim(-0.01, 1.01)
    place.set_ylim(-0.01, 1.01)
    place.legend(loc="lower right", fontsize=7, frameon=False)


def draw_slopes(place: Axes, found: dict[str, Judged], styles: dict[str, Look]) -> None:
    """Each arm's slope with the line of its interval, one arm a line."""
    for i, (arm, judged) in enumerate(found.items()):
        value, lower, upper = judged.slope
        look = styles[arm]
        place.hlines(i, lower, upper, color=look.color, linewidth=1.6)
        place.plot(value, i, look.marker, color=look.color, markersize=6)
    place.axvline(1.0, color=PALETTE[1], linestyle=":", linewidth=1.2)
    place.set_yticks(range(len(found)), list(found), fontsize=8)
    place.set_ylim(len(found) - 0.5, -0.5)
