"""The ladder from the simplest predictor up to the noise ceiling, and every other metric: traits first."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from mantra_ray.report.drawing import (
    FLOOR,
    MUTED,
    PALETTE,
    Look,
    Picture,
    draw_gains,
    grid_of,
    hide_rest,
    label,
    panels,
    zero_line,
)
from mantra_ray.report.findings import Findings
from mantra_ray.report.page import Part, Section, absent, sheet
from mantra_ray.report.roc import roc_picture
from mantra_ray.sweep.scorecard import METRICS, Values, read, scorecard
from mantra_ray.sweep.summary import CEILING, MEMORY, Arm
from mantra_ray.sweep.tables import arm_table, percent

SIMPLE, MEMORIES = Look(MUTED, "o", "-"), Look(PALETTE[0], "s", "-")
PERFECT = {"trait_sign_accuracy": 0.5, "trait_auroc": 0.5, "trait_calibration_slope": 1.0, "trait_correlation": 0.0}
BESIDE = 3  # baselines of a figure of traits


def section(findings: Findings) -> Section:
    """Every arm on every split, best last."""
    arms = {split: found for split, found in findings.arms.items() if found}
    if not arms:
        return Section("Baselines", [absent("No trial has judged records.")])
    caption = (
        "Program MSE on test records, and gain over the GNN in percent "
        f"[{findings.level} interval over regulators, seeds pooled]. The noise ceiling, what the true mean would "
        "score, is a mean over seeds without an interval."
    )
    splits = list(arms)
    pairs = [{split: arms[split] for split in splits[i : i + 2]} for i in range(0, len(splits), 2)]
    return Section("Baselines", [ladder(findings, arms), *(sheet(arm_table(pair), caption) for pair in pairs)])


def ladder(findings: Findings, arms: dict[str, dict[str, Arm]]) -> Picture:
    """A panel a split, arms from the worst to the best."""
    most = max(len(found) for found in arms.values())
    figure, axes = panels(*grid_of(len(arms), 2), 0.2 * most + 0.7)
    for place, (split, found) in zip(axes.flat, arms.items(), strict=False):
        order = sorted((arm for arm in found.values() if arm.name != CEILING), key=lambda arm: arm.gain.value)
        steps(place, order, found.get(CEILING))
        label(place, f"{split}, n = {findings.records(split)} records", "gain, %")
    hide_rest(axes, len(arms))
    caption = (
        "Gain over the GNN on test records of every predictor, the best on top; squares: the memory of the "
        f"configuration chosen on each split, off, shuffled and on; lines over points: {findings.level} intervals over "
        "regulators, seeds pooled; dotted: the noise ceiling, where the noise is known; dashed: the GNN. An arrow "
        f"stands for a gain below -100 %, with its number. n = {findings.sample}."
    )
    judged = {split: [arm for arm in found.values() if arm.name != CEILING] for split, found in arms.items()}
    best = "; ".join(f"{split}: {min(of, key=lambda arm: arm.error).name}" for split, of in judged.items())
    return Picture("baselines", figure, caption, f"Dots of gain by predictor. Highest by split: {best}.")


def steps(place: Axes, order: list[Arm], ceiling: Arm | None) -> None:
    """One arm a line."""
    names = [arm.name for arm in order]
    for look, member in ((SIMPLE, False), (MEMORIES, True)):
        here = [
            (i, arm) for i, arm in enumerate(order) if (arm.name in MEMORY) == member and 100 * arm.gain.value > FLOOR
        ]
        draw_gains(place, [i for i, _ in here], [arm.gain for _, arm in here], look, across=True)
    zero_line(place, across=True)
    low, high = place.get_xlim()
    place.set_xlim(max(low, FLOOR), high)
    for i, arm in enumerate(order):
        if 100 * arm.gain.value <= FLOOR:
            text = f"◄ {percent(arm.gain.value)}"
            place.annotate(text, (0, i), xycoords=("axes fraction", "data"), va="center", fontsize=7, color=MUTED)
    if ceiling is not None:
        place.axvline(100 * ceiling.gain.value, color=PALETTE[1], linestyle=":", linewidth=1.5)
    place.set_yticks(range(len(names)), names, fontsize=7)
    place.set_ylim(-0.7, len(names) - 0.3)


def values_by_split(findings: Findings) -> dict[str, Values]:
    """Values of all metrics on test records by split, one a seed: of the baselines and the configuration chosen."""
    judged = {split: findings.judged(split) for split in findings.splits}
    return {
        split: read(findings.store, [row["trial"] for row in (*baselines, *own)])
        for split, (baselines, own) in judged.items()
    }


def trait_section(findings: Findings, values: dict[str, Values]) -> Section:
    """Sign, ranking, calibration and correlation of predicted trait effects."""
    metrics = METRICS["traits"]
    found = {split: of for split, of in values.items() if any(metric in metrics for _, metric in of)}
    if not found:
        return Section("Traits", [absent("The scores hold no metric of traits: the data came without trait effects.")])
    old = "The scores hold no ROC curve: the trials ran before there was one."
    parts: list[Part] = [trait_picture(found), roc_picture(findings) or absent(old)]
    parts += metric_sheets(findings, found, "traits")
    return Section("Traits", parts)


def metric_section(findings: Findings, values: dict[str, Values]) -> Section:
    """Every other metric of programs and expression."""
    parts = [part for kind in ("programs", "expression") for part in metric_sheets(findings, values, kind)]
    return Section("Every other metric", parts or [absent("The scores hold no other metric.")])


def metric_sheets(findings: Findings, values: dict[str, Values], kind: str) -> list[Part]:
    """A table a split, as `mantra results --metrics` prints them."""
    sheets: list[Part] = []
    for split, of in values.items():
        shown = {name: text for name, text in METRICS[kind].items() if any(name == metric for _, metric in of)}
        if shown:
            caption = f"On {split}, {kind}: mean over seeds ± half of Student's {findings.level} interval."
            sheets.append(sheet(scorecard(of, shown, findings.confidence), caption))
    return sheets


def trait_picture(found: dict[str, Values]) -> Picture:
    """Rows: splits; columns: metrics; a dot a seed and their mean, for the memory, the GNN and the best baselines."""
    metrics = {
        m: t for m, t in METRICS["traits"].items() if any(m == metric for of in found.values() for _, metric in of)
    }
    shown = {split: trait_arms(of) for split, of in found.items()}
    height = 0.22 * max(map(len, shown.values())) + 0.8
    figure, axes = panels(len(found), len(metrics), height)
    for row, (split, of) in zip(axes, found.items(), strict=True):
        for place, (metric, text) in zip(row, metrics.items(), strict=True):
            for i, arm in enumerate(shown[split]):
                values = np.array([value for value in of.get((arm, metric), []) if np.isfinite(value)])
                look = MEMORIES if arm in MEMORY else SIMPLE
                place.plot(values, np.full(len(values), i), "o", color=look.color, markersize=3, alpha=0.5)
                if len(values):
                    place.plot(values.mean(), i, look.marker, color=look.color, markersize=6)
            place.axvline(PERFECT[metric], color=PALETTE[1], linestyle=":", linewidth=1.2)
            first = place is row[0]
            place.set_yticks(range(len(shown[split])), shown[split] if first else [""] * len(shown[split]), fontsize=7)
            place.set_ylim(len(shown[split]) - 0.5, -0.5)
            label(place, f"{split}: {text}" if first else text)
    seeds = max((len(values) for of in found.values() for values in of.values()), default=0)
    caption = (
        "Traits, for the memory of the configuration chosen on each split, the GNN and the baselines of highest sign "
        f"accuracy: small dots are seeds (n = {seeds} at most), larger marks their mean; the tables have its interval. "
        "Dotted: chance for sign accuracy, AUROC and correlation, and the ideal of 1 for the calibration slope (below "
        "1 predictions are too large)."
    )
    return Picture("traits", figure, caption, f"Dots of {', '.join(metrics.values())} by predictor, one row a split.")


def trait_arms(values: Values) -> list[str]:
    """The memory's arms, the GNN and the baselines that tell signs best."""
    mean = {arm: float(np.mean(of)) for (arm, metric), of in values.items() if metric == "trait_sign_accuracy"}
    simple = sorted((arm for arm in mean if arm not in (*MEMORY, "gnn")), key=lambda arm: -mean[arm])[:BESIDE]
    own = [arm for arm in (*reversed(MEMORY), "gnn") if any(arm == name for name, _ in values)]
    return [*own, *simple]
