"""Gain against a knob of the gate or the query, a curve a geometry, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mantra_ray.evaluation.statistics import Interval
from mantra_ray.report.drawing import Picture, draw_gains, fit_gains, label, legend, looks, panels, zero_line
from mantra_ray.report.findings import Findings
from mantra_ray.report.page import Section, absent
from mantra_ray.sweep.summary import DEFAULTS, Configuration
from mantra_ray.sweep.tables import GEOMETRY, geometry, shortened, text

SHOWN = {"nexus.regret_gamma": "write threshold gamma", "nexus.query_alpha": "semantic share of the query, alpha"}
FACETS = 3  # settings of the other knobs that are shown side by side
NAMED = 12  # values that an axis names one by one; beyond, it is a scale

Setting = tuple[tuple[str, Any], ...]  # of the other knobs
Curve = list[tuple[float, Interval]]  # a knob's value and the gain there


def section(findings: Findings) -> Section:
    """A figure for each of gamma and alpha that varies."""
    title = "Gain against gamma and alpha"
    varied = [name for name in SHOWN if findings.found and len(values_of(findings.found, name)) > 1]
    if not varied:
        return Section(title, [absent("Neither gamma nor alpha varies in this sweep.")])
    if not findings.spoken:
        return Section(title, [absent("Every configuration equals the GNN.")])
    return Section(title, [knob_picture(findings, name) for name in varied])


def values_of(found: Sequence[Configuration], knob: str) -> list[float]:
    """The values of a knob, ascending."""
    return sorted({item.values[knob] for item in found})


def facets(found: Sequence[Configuration], knob: str) -> dict[Setting, list[Configuration]]:
    """Configurations that share all knobs but this one and the geometry, where it has two values or more.

    Of many settings the fullest are taken, and among these the ones nearest to the default.
    """
    others = [name for name in found[0].knobs if name not in (knob, *GEOMETRY)]
    groups: dict[Setting, list[Configuration]] = {}
    for item in found:
        groups.setdefault(tuple((name, repr(item.knobs[name])) for name in others), []).append(item)
    groups = {key: group for key, group in groups.items() if len(values_of(group, knob)) > 1}

    def rank(entry: tuple[Setting, list[Configuration]]) -> tuple[int, int]:
        return -len(entry[1]), sum(value != repr(DEFAULTS[name]) for name, value in entry[0])

    kept = dict(sorted(groups.items(), key=rank)[:FACETS])
    return {key: group for key, group in groups.items() if key in kept}


def curves(found: Sequence[Configuration], knob: str, split: str) -> dict[str, Curve]:
    """Gains on test by geometry, in the order of the knob's values."""
    by_geometry: dict[str, Curve] = {}
    for item in sorted(found, key=lambda item: item.values[knob]):
        if split in item.results:
            by_geometry.setdefault(geometry(item), []).append((item.values[knob], item.results[split].test))
    return by_geometry


def knob_picture(findings: Findings, knob: str) -> Picture:
    """Rows: splits; columns: settings of the other knobs; one curve a geometry."""
    groups = facets(findings.found, knob)
    alone = not groups  # no two configurations differ in this knob alone: a cloud of points
    shown = list(groups.values()) or [list(findings.found)]
    names = list(dict.fromkeys(geometry(item) for group in shown for item in group))
    styles, values = looks(names), values_of([item for group in shown for item in group], knob)
    figure, axes = panels(len(findings.spoken), len(shown), 2.2, sharey="row")
    cut = False
    for row, split in zip(axes, findings.spoken, strict=True):
        last = split == findings.spoken[-1]
        for place, group in zip(row, shown, strict=True):
            draw(place, curves(group, knob, split), values, styles, joined=not alone)
            cut |= fit_gains(place)
            differs = ", ".join(f"{shortened(n)} {text(group[0].values[n])}" for n, _ in settings(groups, group))
            head = f"{split}: {differs}" if differs else split
            label(place, head, SHOWN[knob] if last else "", "gain, %" if place is row[0] else "")
    legend(figure, axes.flat)
    count = sum(split in item.results for split in findings.spoken for item in (i for group in shown for i in group))
    other = "other knobs differ as well" if alone else "columns hold the other knobs fixed"
    caption = (
        f"Gain over the GNN on test records against {SHOWN[knob]}, one curve a geometry; rows are splits, {other}. "
        f"Lines over points: {findings.level} intervals over regulators, seeds pooled. n = {count} configurations on "
        f"splits, {findings.sample}.{findings.unspoken}" + (" Below -100 % the axis is cut." if cut else "")
    )
    alt = f"{len(findings.spoken)} x {len(shown)} panels of gain against {shortened(knob)} for {', '.join(names)}."
    return Picture(f"gain_{shortened(knob).replace('.', '_')}", figure, caption, alt)


def settings(groups: dict[Setting, list[Configuration]], group: list[Configuration]) -> Setting:
    """The other knobs of a facet whose values differ between facets."""
    if not groups:
        return ()
    own = next(key for key, members in groups.items() if members is group)
    return tuple(pair for pair in own if any(pair not in key for key in groups)) if len(groups) > 1 else ()


def draw(place: Axes, found: dict[str, Curve], values: Sequence[float], styles: dict, joined: bool) -> None:
    """Curves beside each other; few values stand at even distances, so that infinite ones have a place."""
    named = len(values) <= NAMED or not np.isfinite(values).all()
    step = 0.5 / max(len(styles), 1)
    for name, curve in found.items():
        shift = (list(styles).index(name) - (len(styles) - 1) / 2) * step if named else 0.0
        places = [values.index(value) + shift if named else value for value, _ in curve]
        draw_gains(place, places, [gain for _, gain in curve], styles[name], name, joined=joined)
    if named:
        place.set_xticks(range(len(values)), [text(float(value)).replace("inf", "∞") for value in values])
        place.set_xlim(-0.6, len(values) - 0.4)
    zero_line(place)
