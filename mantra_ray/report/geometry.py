"""The heat map of memory geometries: gain by load and geometry, or by buckets and slots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from mantra_ray.evaluation.statistics import Interval
from mantra_ray.report.drawing import FLOOR, Picture, grid_of, hide_rest, label, panels
from mantra_ray.report.findings import Findings
from mantra_ray.report.page import Section, absent
from mantra_ray.sweep.summary import Configuration, best_on_validation
from mantra_ray.sweep.tables import GEOMETRY, geometry, percent, under_load

MAP = "cividis"  # sequential, the same to all eyes, and in grey
Cells = dict[tuple[str, str], Interval]  # by row and column


def section(findings: Findings) -> Section:
    """The heat map, or why there is none."""
    axes_of = map_axes(findings.found)
    if axes_of is None:
        return Section("Memory geometry", [absent("Neither geometry nor load varies in this sweep.")])
    if not findings.spoken:
        return Section("Memory geometry", [absent("Every configuration equals the GNN.")])
    return Section("Memory geometry", [picture(findings, *axes_of)])


def map_axes(found: Sequence[Configuration]) -> tuple[str, str] | None:
    """What rows and columns are: geometry and load where loads vary, else buckets and slots; None if neither does."""
    if len({item.values["nexus.load"] for item in found}) > 1:
        return "geometry", "load"
    if len({tuple(item.values[name] for name in GEOMETRY) for item in found}) > 1:
        return "buckets", "slots"
    return None


def place_of(item: Configuration, rows: str) -> tuple[str, str]:
    """Row and column of a configuration."""
    if rows == "geometry":
        return geometry(item), f"{item.values['nexus.load']:g}" if under_load(item) else "full size"
    return tuple(str(item.values[name]) for name in GEOMETRY)


def cells(found: Sequence[Configuration], rows: str, split: str) -> Cells:
    """Gain on test of the configuration of each cell that is best on validation there."""
    groups: dict[tuple[str, str], list[Configuration]] = {}
    for item in found:
        if split in item.results:
            groups.setdefault(place_of(item, rows), []).append(item)
    best = {place: next(iter(best_on_validation(group, split)), group[0]) for place, group in groups.items()}
    return {place: item.results[split].test for place, item in best.items()}


def ordered(names: Sequence[str]) -> list[str]:
    """Distinct names, numbers by size, before them those that are none, as they come."""
    known = list(dict.fromkeys(names))
    numbers = sorted((name for name in known if name.replace(".", "", 1).isdigit()), key=float)
    return [name for name in known if name not in numbers] + numbers


def picture(findings: Findings, rows: str, columns: str) -> Picture:
    """A panel a split, all with the same colours."""
    by_split = {split: cells(findings.found, rows, split) for split in findings.spoken}
    places = [place for found in by_split.values() for place in found]
    names = [ordered([place[side] for place in places]) for side in (0, 1)]
    shape = grid_of(len(by_split), 2)
    figure, axes = panels(*shape, 0.55 * len(names[0]) + 1.0)
    gains = [100 * gain.value for found in by_split.values() for gain in found.values()]
    low, high = max(min(gains), FLOOR), max(*gains, FLOOR + 1)
    norm = Normalize(low, high if high > low else low + 1)
    for place, (split, found) in zip(axes.flat, by_split.items(), strict=False):
        draw(place, found, *names, norm)
        label(place, split, {"slots": "slots a bucket", "load": "load, training records a slot"}[columns], rows)
    hide_rest(axes, len(by_split))
    image = axes.flat[0].images[0]
    bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.01)
    bar.set_label("gain, %", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    caption = (
        f"Gain over the GNN on test records, percent, by {rows} and {columns}, with {findings.level} intervals over "
        "regulators, seeds pooled. Each cell shows the configuration that is best on validation among those of the "
        f"cell; n = {len(findings.found)} configurations, {findings.sample}. Colours are the same in all "
        f"panels.{findings.unspoken}"
    )
    alt = f"Heat maps of gain by {rows} ({', '.join(names[0])}) and {columns} ({', '.join(names[1])}), one a split."
    return Picture("geometry", figure, caption, alt)


def draw(place: Axes, found: Cells, rows: list[str], columns: list[str], norm: Normalize) -> None:
    """One map, every cell with its number and interval."""
    values = np.full((len(rows), len(columns)), np.nan)
    for (row, column), gain in found.items():
        values[rows.index(row), columns.index(column)] = 100 * gain.value
    image = place.imshow(values, cmap=MAP, norm=norm, aspect="auto")
    for (row, column), gain in found.items():
        i, j = rows.index(row), columns.index(column)
        red, green, blue, _ = image.cmap(norm(values[i, j]))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.46
        known = np.isfinite(gain.lower)
        text = percent(gain.value, "+") + (f"\n[{percent(gain.lower)}, {percent(gain.upper)}]" if known else "")
        place.text(j, i, text, ha="center", va="center", fontsize=6.5, color="white" if dark else "black")
    place.set_xticks(range(len(columns)), columns)
    place.set_yticks(range(len(rows)), rows)
    place.grid(visible=False)
    place.spines[:].set_visible(False)
