"""Where the gain comes from: rare and outlier regulators, rare programs, and records that the GNN misses by more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow.dataset as ds
from rich.table import Table

from mantra_ray.evaluation.statistics import Interval, nested_gain
from mantra_ray.report.drawing import (
    PALETTE,
    Look,
    Picture,
    draw_gains,
    fit_gains,
    grid_of,
    hide_rest,
    label,
    panels,
    zero_line,
)
from mantra_ray.report.findings import Findings, Row
from mantra_ray.report.page import Part, Section, absent, sheet
from mantra_ray.sweep.paired import errors
from mantra_ray.sweep.scorecard import student
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.tables import number, span

SLICES = {"all": "all", "rare": "rare regulators", "others": "all but rare", "outlier": "outlier regulators"}
PROGRAMS = "rare programs"
QUARTERS = ("least", "second", "third", "most")  # of the GNN's error on a record
JUDGED = ("squared_error", "reference_error", "regulator", "seed")
FEWEST = 10  # regulators; intervals of fewer are too short (`mantra bench coverage` says what those of ten hold)
LOOK = Look(PALETTE[0], "o", "-")


def section(findings: Findings) -> Section:
    """Gain by slice and by the size of what the GNN misses, of the configuration chosen on each split."""
    chosen = {split: rows for split in findings.splits if (rows := findings.judged(split)[1])}
    if not chosen:
        return Section("Where the gain comes from", [absent("No trial of the memory finished.")])
    return Section("Where the gain comes from", [*rarity_parts(findings, chosen), *size_parts(findings, chosen)])


def rarity_parts(findings: Findings, chosen: dict[str, list[Row]]) -> list[Part]:
    """Gain on slices of the test records, and on rare programs."""
    found, before = {}, []
    for split, trials in chosen.items():
        rows = errors(findings.store, trials, "memory_on", "test", ("rare", "outlier"))
        if rows["rare"].dtype != bool:
            before = [absent("Rows of an earlier version do not say who is rare or an outlier; a new run does.")]
        found[split] = by_slice(rows, trials[0]["evaluation.bootstrap"], findings.confidence)
        if (programs := on_rare_programs(findings, trials)) is not None:
            found[split][PROGRAMS] = programs, None
    found = {split: gains for split, gains in found.items() if len(gains) > 1}
    if not found:
        return before or [absent("No test record is of a rare or an outlier regulator.")]
    table = Table()
    for name in ("split", "slice", "gain, % [interval]", "regulators", "test records"):
        table.add_column(name, justify="left" if name in ("split", "slice") else "right")
    for split, gains in found.items():
        for name, (gain, regulators) in gains.items():
            table.add_row(split, SLICES.get(name, name), span(gain), str(regulators or ""), str(gain.n))
    settings = next(iter(chosen.values()))[0]
    caption = (
        f"Gain over the GNN by slice, for the configuration chosen on each split; {findings.level} intervals over "
        f"regulators, seeds pooled (none with fewer than {FEWEST}); of rare programs over seeds. Uncorrected. Rare: 1 "
        f"to {settings['evaluation.rare_records']} training records; outlier: the GNN's error on the regulator's "
        f"training records is above its {settings['evaluation.outlier_quantile']:g} quantile."
    )
    return [rarity_picture(findings, found), sheet(table, caption), *before]


def by_slice(rows: dict[str, np.ndarray], resamples: int, confidence: float) -> dict[str, tuple[Interval, int]]:
    """Gain and number of regulators by slice of test records [n]; slices that hold none lack."""
    found = {}
    for name, inside in members(rows).items():
        gain, regulator = nested_gain(*(rows[of][inside] for of in JUDGED), resamples, confidence), rows["regulator"]
        found[name] = gain if name == "all" else unless_few(gain, regulator[inside]), len(np.unique(regulator[inside]))
    return found


def members(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Which records [n] are in a slice, bool [n], by its name; `all` alone where rows do not say who is rare."""
    rare, outlier = rows["rare"], rows["outlier"]
    found = {"all": np.ones(len(rare), bool)}
    if rare.dtype == bool and rare.any():  # nulls make it an array of objects
        found |= {"rare": rare, "others": ~rare}
    if outlier.dtype == bool:
        found["outlier"] = outlier
    return {name: inside for name, inside in found.items() if inside.any()}


def unless_few(gain: Interval, regulator: np.ndarray) -> Interval:
    """The interval, without limits where the records are of fewer than `FEWEST` regulators [n]."""
    return gain if len(np.unique(regulator)) >= FEWEST else replace(gain, lower=np.nan, upper=np.nan)


def on_rare_programs(findings: Findings, trials: Sequence[Row]) -> Interval | None:
    """Gain with the memory on of the programs that few regulators move, with Student's interval over seeds."""
    where = (ds.field("arm") == "memory_on") & (ds.field("part") == "test") & (ds.field("slice") == "rare_programs")
    where = where & (ds.field("metric") == "program_mse_gain")
    rows = findings.store.read("scores", [row["trial"] for row in trials], ["value", "n"], where).to_pydict()
    gain = student(rows["value"], findings.confidence)
    return replace(gain, upper=min(gain.upper, 1.0), n=sum(rows["n"])) if gain.n else None  # NaN stays NaN


def rarity_picture(findings: Findings, found: dict[str, dict[str, tuple[Interval, int | None]]]) -> Picture:
    """Gains by slice, one panel a split."""
    figure, axes = panels(*grid_of(len(found), 2), 1.7)
    cut = False
    for place, (split, gains) in zip(axes.flat, found.items(), strict=False):
        draw_gains(place, range(len(gains)), [gain for gain, _ in gains.values()], LOOK, across=True)
        place.set_yticks(range(len(gains)), [SLICES.get(name, name) for name in gains])
        place.set_ylim(len(gains) - 0.5, -0.5)
        zero_line(place, across=True)
        cut |= fit_gains(place, across=True)
        label(place, split, "gain, %")
    hide_rest(axes, len(found))
    sizes = "; ".join(
        f"{split}: " + ", ".join(f"{SLICES.get(name, name)} {gain.n}" for name, (gain, _) in gains.items())
        for split, gains in found.items()
    )
    caption = (
        "Gain over the GNN on slices of the test records, for the configuration chosen on each split; "
        f"{findings.level} intervals over regulators, of rare programs over seeds. n, test records of all seeds: "
        f"{sizes}." + (" Below -100 % the axis is cut." if cut else "")
    )
    return Picture("rarity", figure, caption, "Gain with its interval by slice of the test records, one panel a split.")


def size_parts(findings: Findings, chosen: dict[str, list[Row]]) -> list[Part]:
    """Gain by quarters of the GNN's error on a record."""
    found = {split: by_size(findings.store, rows) for split, rows in chosen.items()}
    found = {split: quarters for split, quarters in found.items() if quarters}
    if not found:
        return [absent("Too few test records to tell those apart that the GNN misses by more.")]
    figure, axes = panels(*grid_of(len(found), 2), 2.1)
    table, cut = Table(), False
    for name in ("split", "quarter of the GNN's error", "from", "to", "gain, % [interval]", "records"):
        table.add_column(name, justify="left" if name in ("split", "quarter of the GNN's error") else "right")
    for place, (split, quarters) in zip(axes.flat, found.items(), strict=False):
        draw_gains(place, range(len(quarters)), [gain for _, _, gain in quarters], LOOK, joined=True)
        place.set_xticks(range(len(quarters)), QUARTERS)
        zero_line(place)
        cut |= fit_gains(place)
        label(place, split, "quarter of the GNN's error on a record", "gain, %")
        for name, (low, high, gain) in zip(QUARTERS, quarters, strict=True):
            table.add_row(split, name, number(low), number(high), span(gain), str(gain.n))
    hide_rest(axes, len(found))
    caption = (
        "Gain over the GNN by how much the GNN misses: test records in quarters of their reference error, for the "
        f"configuration chosen on each split. Lines over points: {findings.level} intervals over regulators, seeds "
        "pooled. Where the GNN is right by chance any correction looks bad, and where it is wrong by chance good, so "
        f"read the middle. n = {', '.join(f'{sum(g.n for *_, g in q)} test records on {s}' for s, q in found.items())}."
        + (" Below -100 % the axis is cut." if cut else "")
    )
    alt = "Gain by quarter of the GNN's error on a record, one panel a split."
    return [Picture("effect_size", figure, caption, alt), sheet(table, "The same in numbers; error per program.")]


def by_size(store: Store, trials: Sequence[Row]) -> list[tuple[float, float, Interval]]:
    """Limits of each quarter of the GNN's errors on test records, and the gain there; none where they are too few."""
    rows = errors(store, trials, "memory_on", "test")
    reference = rows["reference_error"]
    edges = np.quantile(reference, np.linspace(0, 1, len(QUARTERS) + 1)) if len(reference) else np.zeros(0)
    if len(np.unique(edges)) <= len(QUARTERS):
        return []
    quarter = np.clip(np.searchsorted(edges, reference, side="right") - 1, 0, len(QUARTERS) - 1)
    judging = trials[0]["evaluation.bootstrap"], trials[0]["evaluation.confidence"]
    return [
        (float(edges[i]), float(edges[i + 1]), nested_gain(*(rows[name][quarter == i] for name in JUDGED), *judging))
        for i in range(len(QUARTERS))
    ]
