"""What the memory holds and what it costs: write density, occupancy, collisions, and gain against throughput."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from mantra_ray.report.drawing import (
    PALETTE,
    Look,
    Picture,
    draw_gains,
    fit_gains,
    grid_of,
    hide_rest,
    label,
    legend,
    looks,
    panels,
    zero_line,
)
from mantra_ray.report.findings import Findings
from mantra_ray.report.page import Part, Section, absent, sheet
from mantra_ray.sweep.frames import mean
from mantra_ray.sweep.measured import OBJECTIVES, pareto
from mantra_ray.sweep.summary import Configuration
from mantra_ray.sweep.tables import describe, geometry, percent, span

LARGEST = 40  # configurations that have a line of their own
HELD = {"occupancy": "occupancy, %", "collisions": "collisions", "evictions": "evictions"}
RATE = "records_per_second"
FRONT = {name: OBJECTIVES[name] for name in ("gain", RATE)}


def section(findings: Findings) -> Section:
    """Write density against gain, and what each configuration's memory holds."""
    if not findings.found:
        return Section("What the memory holds", [absent("No trial of the memory finished.")])
    parts: list[Part] = []
    dense = [item for item in findings.found if np.isfinite(item.mean("write_density"))]
    parts.append(
        density_picture(findings, dense)
        if dense and findings.spoken
        else absent("No trial tells its write density, or all equal the GNN.")
    )
    held = {name: text for name, text in HELD.items() if any(np.isfinite(item.mean(name)) for item in findings.found)}
    parts.append(held_picture(findings, held) if held else absent("No trial tells its occupancy or collisions."))
    return Section("What the memory holds", parts)


def cost_section(findings: Findings) -> Section:
    """The Pareto front of gain and throughput."""
    title = "Gain and throughput"
    fronts = {split: front(findings.found, split) for split in findings.spoken}
    if not any(fronts.values()):
        return Section(title, [absent("No trial tells its records per second together with a gain on validation.")])
    table = Table()
    for name in ("split", "configuration", "gain on validation, %", "gain on test, % [interval]", "records/s"):
        table.add_column(name, justify="left" if name in ("split", "configuration") else "right")
    for split, members in fronts.items():
        for item in members:
            result, rate = item.results[split], mean(item.results[split].trials, RATE)
            table.add_row(split, describe(item), percent(result.validation, "+"), span(result.test), f"{rate:,.0f}")
    caption = "The front: no other configuration has both a higher gain on validation and a higher rate."
    return Section(title, [pareto_picture(findings, fronts), sheet(table, caption)])


def density_picture(findings: Findings, dense: Sequence[Configuration]) -> Picture:
    """A point a configuration: share of the training records written, and gain."""
    styles = looks(geometry(item) for item in dense)
    figure, axes = panels(*grid_of(len(findings.spoken), 2), 2.4)
    cut = False
    for place, split in zip(axes.flat, findings.spoken, strict=False):
        for name, look in styles.items():
            here = [item for item in dense if geometry(item) == name and split in item.results]
            shares = [mean(item.results[split].trials, "write_density") for item in here]
            known = [i for i, share in enumerate(shares) if share is not None]
            gains = [here[i].results[split].test for i in known]
            draw_gains(place, [100 * shares[i] for i in known], gains, look, name)
        zero_line(place)
        cut |= fit_gains(place)
        if np.ptp(place.get_xlim()) < 12:  # no difference must look like one
            place.set_xlim(-3, 103)
        label(place, split, "training records written, %", "gain, %")
    hide_rest(axes, len(findings.spoken))
    legend(figure, axes.flat)
    caption = (
        "Write density against gain over the GNN on test records: a point a configuration, density a mean over seeds, "
        f"lines over points {findings.level} intervals of the gain over regulators, seeds pooled; n = {len(dense)} "
        f"configurations, {findings.sample}.{findings.unspoken}" + (" Below -100 % the axis is cut." if cut else "")
    )
    alt = f"Scatter plots of gain against write density for {len(dense)} configurations, one panel a split."
    return Picture("write_density", figure, caption, alt)


def held_picture(findings: Findings, held: dict[str, str]) -> Picture:
    """A line a configuration: mean over its trials, and from the least to the most of them."""
    shown = (
        sorted(findings.found, key=worth, reverse=True)[:LARGEST] if len(findings.found) > LARGEST else findings.found
    )
    figure, axes = panels(1, len(held), 0.21 * len(shown) + 0.9, sharey=True)
    look = Look(PALETTE[0], "o", "-")
    for place, (name, text) in zip(axes[0], held.items(), strict=True):
        for i, item in enumerate(shown):
            values = np.array([row[name] for row in item.trials if row[name] is not None], float)
            if len(values):
                values *= 100 if name == "occupancy" else 1
                place.hlines(i, values.min(), values.max(), color=look.color, linewidth=2, alpha=0.45)
                place.plot(values.mean(), i, look.marker, color=look.color, markersize=4.5)
        place.set_xlim(left=0)
        label(place, x=text)
    axes[0, 0].set_yticks(range(len(shown)), [describe(item) for item in shown], fontsize=7)
    axes[0, 0].set_ylim(len(shown) - 0.5, -0.5)
    rest = f", the {len(shown)} of highest gain on validation" if len(shown) < len(findings.found) else ""
    trials = sum(len(item.trials) for item in shown)
    caption = (
        f"Occupancy (share of the slots that is filled), collisions (writes to a bucket of other regulators) and "
        f"evictions by configuration{rest}: mean over seeds and splits, the line from the least to the most of them. "
        f"n = {len(shown)} configurations, {trials} trials."
    )
    alt = f"{', '.join(held)} of {len(shown)} configurations as dots with ranges."
    return Picture("occupancy", figure, caption, alt)


def worth(item: Configuration) -> float:
    """Mean gain on validation over the splits; the least where there is none."""
    gains = [result.validation for result in item.results.values() if np.isfinite(result.validation)]
    return float(np.mean(gains)) if gains else -np.inf


def front(found: Sequence[Configuration], split: str) -> list[Configuration]:
    """The configurations that none beats in both gain on validation and records per second, the highest gain first."""
    here = [item for item in found if split in item.results]
    rows = [
        {"item": item, "gain": item.results[split].validation, RATE: mean(item.results[split].trials, RATE)}
        for item in here
    ]
    return [row["item"] for row in sorted(pareto(rows, FRONT), key=lambda row: -row["gain"])]


def pareto_picture(findings: Findings, fronts: dict[str, list[Configuration]]) -> Picture:
    """A point a configuration: records per second of the warming pass, and gain; those of the front are filled."""
    figure, axes = panels(*grid_of(len(fronts), 2), 2.4)
    looks_of = {"on the front": Look(PALETTE[1], "s", "-"), "behind it": Look(PALETTE[0], "o", "-")}
    cut = False
    for place, (split, members) in zip(axes.flat, fronts.items(), strict=False):
        for name, look in looks_of.items():
            here = [i for i in findings.found if split in i.results and (i in members) == (name == "on the front")]
            rates = {id(item): mean(item.results[split].trials, RATE) for item in here}
            here = [item for item in here if rates[id(item)]]
            gains = [item.results[split].test for item in here]
            draw_gains(place, [rates[id(i)] for i in here], gains, look, name, filled=name == "on the front")
        zero_line(place)
        cut |= fit_gains(place)
        place.locator_params(axis="x", nbins=6)
        label(place, split, "records/s of the warming pass", "gain, %")
    hide_rest(axes, len(fronts))
    legend(figure, axes.flat)
    caption = (
        "Gain over the GNN on test records and throughput (records per second of the warming pass, mean over seeds; a "
        "measured time, which depends on what else ran). Filled squares: the Pareto front by gain on validation and "
        f"rate. Lines over points: {findings.level} intervals of the gain over regulators, seeds pooled; "
        f"n = {len(findings.found)} configurations, {findings.sample}."
        + (" Below -100 % the axis is cut." if cut else "")
    )
    alt = "Scatter plots of gain against records per second, the Pareto front marked, one panel a split."
    return Picture("pareto", figure, caption, alt)
