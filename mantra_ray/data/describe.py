"""What a data set holds: counts by regulator, dose, state and strategy, what it lacks, and a picture of it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mantra_ray.data.records import PerturbationData
from mantra_ray.data.screen import Screen
from mantra_ray.files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DISTINCT = 12  # more doses than this are counted in bins
BINS = 10
BARS = 20  # names that an axis of the picture can take
OPTIONAL = {
    "delta_expression": "changes of expression",
    "delta_expression_se": "standard errors of the changes",
    "delta_program": "observed changes of programs",
    "delta_trait": "observed changes of traits",
    "n_cells": "cells behind a record",
}


@dataclass(frozen=True, eq=False)
class Counts:
    """Records by the values of one field; regulators, states and strategies by falling count, doses rising."""

    names: tuple[str, ...]
    records: np.ndarray  # [n] int64
    regulators: np.ndarray  # [n] int64, how many distinct ones
    doses: np.ndarray  # [n] int64
    states: np.ndarray  # [n] int64
    effect: np.ndarray  # [n] float64, mean of the records' effect sizes


def effect_sizes(data: PerturbationData) -> np.ndarray:
    """Root mean square change of each record, over genes or else over programs, [N] float64."""
    changes = data.delta_program if data.delta_expression is None else data.delta_expression
    return np.sqrt(np.einsum("ng,ng->n", changes, changes, dtype=np.float64) / changes.shape[1])


def count_by(data: PerturbationData, field: str) -> Counts:
    """Counts by `regulator`, `state` or `strategy` (values without records are left out), or by `dose`.

    More than 12 distinct doses are counted in ten bins of equal width.
    """
    if field == "dose":
        names, index = _dose_bins(data.dose)
    else:
        names, index = getattr(data, field + "_names"), getattr(data, field)
    records = np.bincount(index, minlength=len(names))
    sums = np.bincount(index, weights=effect_sizes(data), minlength=len(names))
    distinct = [_distinct(index, values, len(names)) for values in (data.regulator, data.dose, data.state)]
    order = np.arange(len(names)) if field == "dose" else np.argsort(-records, kind="stable")
    order = order[records[order] > 0]
    columns = (column[order] for column in (records, *distinct, sums / np.maximum(records, 1)))
    return Counts(tuple(names[i] for i in order), *columns)


def totals(screen: Screen) -> dict[str, str]:
    """The sizes of a screen, by what they are called."""
    data, graph = screen.data, screen.graph
    measured = screen.loadings is not None or data.delta_program is not None
    sizes = {
        "records": f"{len(data):,}",
        "regulators": f"{len(np.unique(data.regulator)):,}",
        "doses": f"{len(np.unique(data.dose)):,} distinct, {data.dose.min():.3g} to {data.dose.max():.3g}",
        "states": f"{len(np.unique(data.state)):,}",
        "strategies": f"{len(np.unique(data.strategy)):,}",
        "groups of shared controls": f"{len(np.unique(data.group)):,}",
        "genes": f"{len(data.gene_names):,}" if data.delta_expression is not None else "",
        "programs": f"{len(screen.program_names):,}" if measured else "",
        "traits": ", ".join(screen.traits) or ", ".join(data.trait_names),
        "graph": f"{len(graph.source):,} edges of {len(graph.nodes):,} genes" if graph is not None else "",
        "classes": f"{len(screen.class_names):,}, of {(screen.regulator_class >= 0).sum():,} regulators"
        if screen.class_names
        else "",
        "cells": f"{data.n_cells.sum():,.0f}" if data.n_cells is not None else "",
        "splits": ", ".join(screen.splits),
    }
    return {name: size for name, size in sizes.items() if size}


def missing_parts(screen: Screen) -> list[str]:
    """What the data lack, and what loading them had to leave out."""
    return [f"no {text}" for field, text in OPTIONAL.items() if getattr(screen.data, field) is None] + list(
        screen.notes
    )


def save_picture(screen: Screen, path: str | Path) -> None:
    """Save four panels as a PNG, atomically: records by regulator, by dose and by state, and effect sizes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and needed here alone
    from matplotlib.figure import Figure

    data = screen.data
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    by_regulator = count_by(data, "regulator")
    axes[0, 0].step(np.arange(1, len(by_regulator.names) + 1), by_regulator.records, where="mid")
    axes[0, 0].set(xlabel="regulators, by falling count", ylabel="records", ylim=(0, None))
    _bars(axes[0, 1], count_by(data, "dose"), "dose")
    _bars(axes[1, 0], count_by(data, "state"), "state")
    axes[1, 1].hist(effect_sizes(data), bins=40)
    axes[1, 1].set(xlabel="root mean square change of a record", ylabel="records")
    figure.suptitle(f"{screen.name}: {len(data):,} records of {len(by_regulator.names):,} regulators")
    with atomic(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def _bars(axes: Axes, counts: Counts, label: str) -> None:
    names, records = list(counts.names[:BARS]), counts.records[:BARS]
    rest = len(counts.names) - len(names)
    axes.barh(np.arange(len(names)), records)
    axes.set_yticks(np.arange(len(names)), names, fontsize="small")
    axes.invert_yaxis()
    axes.set(xlabel="records", ylabel=f"{label}, the first {BARS} of {len(counts.names)}" if rest else label)


def _dose_bins(dose: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of doses or of bins of them, and which one each record belongs to [N]."""
    values, index = np.unique(dose, return_inverse=True)
    if len(values) <= DISTINCT:
        return tuple(f"{value:.3g}" for value in values), index
    edges = np.linspace(0, 1, BINS + 1)
    names = tuple(f"{low:.1f} to {high:.1f}" for low, high in pairwise(edges))
    return names, np.minimum((dose * BINS).astype(np.int64), BINS - 1)


def _distinct(index: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """How many distinct values go with each index, [size]."""
    _, code = np.unique(values, return_inverse=True)
    pairs = np.unique(np.stack([index, code]), axis=1)
    return np.bincount(pairs[0], minlength=size)
