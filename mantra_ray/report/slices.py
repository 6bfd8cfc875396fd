"""Where the gain comes from: rare and outlier regulators, rare programs, and records that the GNN misses by more."""

from __future__ import annotations

from collections.abc import Sequence

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
from mantra_ray.sweep.scorecard import cell
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.tables import number, span

SLICES = {"all": "all", "rare": "rare regulators", "outlier": "outlier regulators", "rare_programs": "rare programs"}
QUARTERS = ("least", "second", "third", "most")  # of the GNN's error on a record
LOOK = Look(PALETTE[0], "o", "-")


def section(findings: Findings) -> Section:
    """Gain by slice and by the size of what the GNN misses, of the configuration chosen on each split."""
    chosen = {split: rows for split in findings.splits if (rows := findings.judged(split)[1])}
    if not chosen:
        return Section("Where the gain comes from", [absent("No trial of the memory finished.")])
    return Section("Where the gain comes from", [*rarity_parts(findings, chosen), *size_parts(findings, chosen)])


def rarity_parts(findings: Findings, chosen: dict[str, list[Row]]) -> list[Part]:
    """Gain on the slices that the scores hold."""
    found = {split: read_slices(findings.store, rows) for split, rows in chosen.items()}
    found = {split: by_slice for split, by_slice in found.items() if len(by_slice) > 1}
    if not found:
        return [absent("The scores hold no slice of rare or outlier regulators.")]
    table = Table()
    for name in ("split", "slice", "gain, mean of seeds ± half the interval", "seeds", "records"):
        table.add_column(name, justify="left" if name in ("split", "slice") else "right")
    for split, by_slice in found.items():
        for name, (values, records) in by_slice.items():
            table.add_row(split, SLICES[name], cell(values, findings.confidence), str(len(values)), str(records))
    caption = (
        f"Gain over the GNN by slice, a share of its error, mean over seeds ± half of Student's {findings.level} "
        "interval. The scores hold no slice of all others."
    )
    return [rarity_picture(found), sheet(table, caption)]


def read_slices(store: Store, trials: Sequence[Row]) -> dict[str, tuple[list[float], int]]:
    """Gains with the memory on, one a trial, and number of records, by slice of the test records."""
    where = (ds.field("arm") == "memory_on") & (ds.field("part") == "test")
    where = where & (ds.field("metric") == "program_mse_gain")
    columns = ["seed", "slice", "value", "n"]
    rows = store.read("scores", [row["trial"] for row in trials], columns, where)
    rows = rows.sort_by([("seed", "ascending")]).to_pylist()
    found = {name: [row for row in rows if row["slice"] == name] for name in SLICES}
    return {name: ([r["value"] for r in of], sum(r["n"] for r in of)) for name, of in found.items() if of}


def rarity_picture(found: dict[str, dict[str, tuple[list[float], int]]]) -> Picture:
    """A dot a seed, and their mean, by slice."""
    figure, axes = panels(*grid_of(len(found), 2), 1.7)
    cut = False
    for place, (split, by_slice) in zip(axes.flat, found.items(), strict=False):
        for i, (values, _) in enumerate(by_slice.values()):
            gains = 100 * np.array(values)
            place.plot(gains, np.full(len(gains), i), "o", color=PALETTE[5], markersize=4, alpha=0.8)
            place.plot(gains.mean(), i, "D", color=PALETTE[0], markersize=6)
        place.set_yticks(range(len(by_slice)), [SLICES[name] for name in by_slice])
        place.set_ylim(len(by_slice) - 0.5, -0.5)
        zero_line(place, across=True)
        cut |= fit_gains(place, across=True)
        label(place, split, "gain, %")
    hide_rest(axes, len(found))
    sizes = "; ".join(
        f"{split}: " + ", ".join(f"{SLICES[name]} {n}" for name, (_, n) in by_slice.items())
        for split, by_slice in found.items()
    )
    caption = (
        "Gain over the GNN on slices of the test records, for the configuration chosen on each split: small dots are "
        "seeds, the diamond is their mean; the table has its interval. Rare: few training records; outlier: large "
        f"error of the GNN on training records. n, test records of all seeds: {sizes}."
        + (" Below -100 % the axis is cut." if cut else "")
    )
    return Picture("rarity", figure, caption, "Dots of gain by slice of the test records, one panel a split.")


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
    names = ("squared_error", "reference_error", "regulator", "seed")
    return [
        (float(edges[i]), float(edges[i + 1]), nested_gain(*(rows[name][quarter == i] for name in names), *judging))
        for i in range(len(QUARTERS))
    ]
