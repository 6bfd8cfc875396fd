"""Figures that print well and that every eye can read: colours, markers, panels, points with intervals, files."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mantra_ray.evaluation.statistics import Interval

# Okabe and Ito 2008, "Color universal design"; the yellow, faint on paper, is left out.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
MUTED = "#6b6b6b"
WIDTH = 8.4  # inches, of every figure
FLOOR = -100.0  # percent: gains below are cut off, since one hopeless arm would flatten all others
DPI = 150  # of the PNG


@dataclass(frozen=True)
class Look:
    """How one category is drawn: never by its colour alone."""

    color: str
    marker: str
    line: str


@dataclass(frozen=True)
class Picture:
    """A figure with its caption, what it shows in words, and the name of its files."""

    name: str
    figure: Figure
    caption: str
    alt: str

    @functools.cached_property
    def png(self) -> bytes:
        """The figure as PNG."""
        return self._saved(format="png", dpi=DPI, metadata={"Software": None})

    @functools.cached_property
    def svg(self) -> bytes:
        """The figure as SVG, text as paths, so that it needs no fonts; the same figure gives the same bytes."""
        with matplotlib.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "path"}):
            return self._saved(format="svg", metadata={"Date": None, "Creator": None})

    def _saved(self, **options) -> bytes:
        file = io.BytesIO()
        self.figure.savefig(file, **options)
        return file.getvalue()


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name, in order; the first ones differ in colour, marker and line."""
    names = list(dict.fromkeys(names))
    return {
        name: Look(PALETTE[i % len(PALETTE)], MARKERS[(i + i // len(PALETTE)) % len(MARKERS)], LINES[i % len(LINES)])
        for i, name in enumerate(names)
    }


def panels(rows: int, columns: int, height: float, sharey: bool | str = False) -> tuple[Figure, np.ndarray]:
    """A figure of `rows` x `columns` panels, `height` inches each row, and its axes [rows, columns]."""
    figure = Figure(figsize=(WIDTH, rows * height + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    for place in axes.flat:
        place.spines[["top", "right"]].set_visible(False)
        place.tick_params(labelsize=8)
        place.grid(color="#e4e4e4", linewidth=0.6)
        place.set_axisbelow(True)
    return figure, axes


def grid_of(count: int, most: int) -> tuple[int, int]:
    """Rows and columns for `count` panels, at most `most` side by side."""
    columns = max(min(count, most), 1)
    return -(-count // columns), columns


def hide_rest(axes: np.ndarray, used: int) -> None:
    """Take away the panels beyond the used ones."""
    for place in list(axes.flat)[used:]:
        place.set_axis_off()


def label(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Title and axis labels in the report's sizes."""
    axes.set_title(title, fontsize=9, loc="left", fontweight="bold")
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)


def limits(intervals: Sequence[Interval]) -> np.ndarray:
    """Values, lower and upper limits [3, n] in percent; NaN where a limit is not finite."""
    rows = np.array([(item.value, item.lower, item.upper) for item in intervals], float).reshape(-1, 3)
    return 100 * np.where(np.isfinite(rows), rows, np.nan).T


def draw_gains(
    axes: Axes,
    places: Sequence[float],
    gains: Sequence[Interval],
    look: Look,
    name: str | None = None,
    joined: bool = False,
    across: bool = False,
    filled: bool = True,
) -> None:
    """Gains in percent at `places`, each with a line over its interval; `across`: places on y, gains on x."""
    value, lower, upper = limits(gains)
    bars, across_line = (axes.hlines, True) if across else (axes.vlines, False)
    bars(places, lower, upper, color=look.color, linewidth=1.2, linestyle="-", alpha=0.9, zorder=2)
    at = (value, places) if across_line else (places, value)
    axes.plot(
        *at,
        color=look.color,
        marker=look.marker,
        linestyle=look.line if joined else "none",
        markersize=5,
        linewidth=1.2,
        markerfacecolor=look.color if filled else "white",
        label=name,
        zorder=3,
    )


def fit_gains(axes: Axes, across: bool = False) -> bool:
    """Give a gain axis two points at least, and end it at the floor if it reaches below; whether it did."""
    low, high = axes.get_xlim() if across else axes.get_ylim()
    low, high = (low, high) if high - low >= 2 else ((low + high) / 2 - 1, (low + high) / 2 + 1)
    cut = low < FLOOR < high
    (axes.set_xlim if across else axes.set_ylim)(FLOOR if cut else low, high)
    return cut


def zero_line(axes: Axes, across: bool = False) -> None:
    """Where the GNN stands."""
    (axes.axvline if across else axes.axhline)(0, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)


def legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """One legend below for all panels, each name once."""
    found = {name: handle for place in axes for handle, name in zip(*place.get_legend_handles_labels(), strict=True)}
    if len(found) > 1:
        columns = min(len(found), 5)
        figure.legend(
            found.values(), found.keys(), loc="outside lower center", ncols=columns, fontsize=8, frameon=False
        )
