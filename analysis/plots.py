"""How the notebooks show things: figures in the report's style, tables and sentences, as a cell's last value."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

import numpy as np
import pandas as pd

from mantra_ray.evaluation.statistics import Interval
from mantra_ray.report.drawing import (
    MUTED,
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

UP, DOWN = Look(PALETTE[0], "o", "-"), Look(PALETTE[1], "s", "-")
SILENT, SAME = Look(MUTED, "D", "-"), Look(MUTED, "x", "-")  # an interval that spans 0; equal predictions
LOOKS = {"helps": UP, "better": UP, "harms": DOWN, "worse": DOWN, "no difference": SAME}


class Shown:
    """Sentences, frames and figures below each other; a notebook shows them as HTML."""

    def __init__(self, *parts: str | pd.DataFrame | Picture):
        self.parts = parts

    def __repr__(self) -> str:
        return "\n\n".join(part.caption if isinstance(part, Picture) else str(part) for part in self.parts)

    def _repr_html_(self) -> str:
        return "\n".join(map(_html, self.parts))


def show(*parts: str | pd.DataFrame | Picture | None) -> Shown:
    """What a cell ends with; None and empty frames are left out."""
    return Shown(*(part for part in parts if part is not None and not (isinstance(part, pd.DataFrame) and part.empty)))


def _html(part: str | pd.DataFrame | Picture) -> str:
    if isinstance(part, str):
        return f'<p style="max-width:50rem">{escape(part)}</p>'
    if isinstance(part, pd.DataFrame):
        with pd.option_context("display.max_colwidth", None):
            table = part.to_html(border=0, na_rep="-", index=part.index.names != [None])
        return f'<div style="overflow-x:auto">{table}</div>'
    image = base64.b64encode(part.png).decode()
    return (
        f'<figure style="margin:1rem 0"><img style="width:100%;max-width:56rem" alt="{escape(part.alt, quote=True)}" '
        f'src="data:image/png;base64,{image}"><figcaption style="max-width:50rem;color:{MUTED}">'
        f"{escape(part.caption)}</figcaption></figure>"
    )


def forest(
    rows: pd.DataFrame, name: str, by: str, x: str, caption: str, panel: str | None = None, most: int = 2
) -> Picture | None:
    """A dot with its interval a row, in a panel for each value of `panel`; colour and marker say its `finding`.

    Dots of rows that are undecided are hollow. None without rows.

    rows: columns value, lower and upper in percent, finding, and `by`, which names the lines.
    """
    if rows.empty:
        return None
    groups = {"": rows} if panel is None else dict(list(rows.groupby(panel, sort=False, observed=True)))
    tallest = max(len(of) for of in groups.values())
    figure, axes = panels(*grid_of(len(groups), most), 0.2 * tallest + 0.9)
    first, cut = list(next(iter(groups.values()))[by]), False
    for i, (place, (title, of)) in enumerate(zip(axes.flat, groups.items(), strict=False)):
        found = of["finding"].to_numpy()
        for word in dict.fromkeys(found):
            lines = np.nonzero(found == word)[0]
            gains = [Interval(*row, 0) for row in of[["value", "lower", "upper"]].to_numpy(float)[lines] / 100]
            draw_gains(place, lines, gains, LOOKS.get(word, SILENT), word, across=True, filled=word in LOOKS)
        told = i % axes.shape[1] and list(of[by]) == first  # by the panel on the left
        place.set_yticks(range(len(of)), [""] * len(of) if told else [str(line) for line in of[by]], fontsize=7)
        place.set_ylim(len(of) - 0.4, -0.6)
        zero_line(place, across=True)
        cut |= fit_gains(place, across=True)
        place.locator_params(axis="x", nbins=6)
        label(place, str(title), x)
    hide_rest(axes, len(groups))
    legend(figure, axes.flat)
    cut_off = " Below -100 % the axis is cut." if cut else ""
    return Picture(name, figure, caption + cut_off, f"Dots of {x} by {by} with intervals: {len(rows)} in all.")


def curve_picture(rows: pd.DataFrame, metrics: Iterable[str]) -> Picture | None:
    """A row of panels a split, a panel a metric: thin lines are seeds, the thick one their mean."""
    metrics = [metric for metric in metrics if metric in set(rows["metric"])]
    splits = list(rows["split"].unique())
    if not metrics:
        return None
    styles = looks(rows["configuration"])
    figure, axes = panels(len(splits), len(metrics), 2.2)
    for line, split in zip(axes, splits, strict=True):
        for place, metric in zip(line, metrics, strict=True):
            here = rows[(rows["split"] == split) & (rows["metric"] == metric)]
            scale = 100 if metric.endswith(("gain", "density", "occupancy")) else 1
            for name, of in here.groupby("configuration", sort=False):
                look, wide = styles[name], scale * of.pivot(index="epoch", columns="seed", values="value")
                place.plot(wide.index, wide, color=look.color, linewidth=0.6, alpha=0.5)
                mean = wide.mean(axis=1)
                place.plot(mean.index, mean, color=look.color, linestyle=look.line, marker=look.marker,
                           markersize=4, linewidth=1.6, label=name)  # fmt: skip
            if metric.endswith("gain"):
                zero_line(place)
            words = metric.replace("_", " ") + (", %" if scale == 100 else "")
            label(place, split, "epoch" if line is axes[-1] else "", words)
    legend(figure, axes.flat)
    caption = (
        "By epoch of training: thin lines are seeds, thick ones their mean; epoch 0 is the fitted start. "
        f"n = {rows['seed'].nunique()} seeds. There is no interval here: look, and conclude from the tables above."
    )
    return Picture("curves", figure, caption, f"Lines of {', '.join(metrics)} by epoch, one row a split.")
