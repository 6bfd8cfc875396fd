"""What a search reads of finished trials: validation errors by record, costs, and which configurations none beats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.dataset as ds

from mantra_ray.sweep.store import Store

OBJECTIVES = {"gain": 1, "write_density": -1, "records_per_second": 1}  # 1: more is better, -1: less
COLUMNS = ["trial", "record", "regulator", "squared_error", "reference_error"]


@dataclass(frozen=True)
class Cell:
    """Validation records of one trial, sorted by record: regulators, errors with memory on and of the GNN, each [n]."""

    record: np.ndarray
    regulator: np.ndarray
    error: np.ndarray
    reference: np.ndarray


Cells = dict[tuple[int, str], Cell]  # by seed and split


@dataclass(frozen=True)
class Measured:
    """A trial's outcome: its status, its validation records if it is done and has any, and its costs by objective."""

    status: str
    cell: Cell | None
    costs: dict[str, float]


def measure(store: Store, trials: Iterable[str]) -> dict[str, Measured]:
    """What the trials that ended have to say, by trial; test records are never read."""
    trials = list(trials)
    costs = [name for name in OBJECTIVES if name != "gain"]
    rows = store.read("trials", trials, ["trial", "status", *costs]).to_pylist()
    where = (ds.field("part") == "validation") & (ds.field("arm") == "memory_on")
    table = store.read("records", trials, COLUMNS, where).sort_by([("trial", "ascending"), ("record", "ascending")])
    names, starts, counts = np.unique(table["trial"].to_pylist(), return_index=True, return_counts=True)
    arrays = [table[name].to_numpy() for name in COLUMNS[1:]]
    cells = {
        str(name): Cell(*(array[start : start + count] for array in arrays))
        for name, start, count in zip(names, starts, counts, strict=True)
    }
    return {
        row["trial"]: Measured(row["status"], cells.get(row["trial"]), {name: row[name] for name in costs})
        for row in rows
    }


def gain(cells: Cells, reference: Mapping[tuple[int, str], Cell] | None = None) -> float:
    """Gain in program MSE over the GNN on validation, seeds pooled, mean over splits; NaN without records.

    `reference` has the cells whose GNN counts where they are there (those of the default configuration), so that a
    configuration does not gain by a worse GNN of its own.
    """
    reference = reference or {}
    gains = []
    for split in sorted({split for _, split in cells}):
        here = {key: cell for key, cell in cells.items() if key[1] == split}
        error = sum(cell.error.sum() for cell in here.values())
        gains.append(1 - error / sum(reference.get(key, cell).reference.sum() for key, cell in here.items()))
    return float(np.mean(gains)) if gains else float("nan")


def pareto(rows: Sequence[Mapping[str, Any]], objectives: Mapping[str, int] = OBJECTIVES) -> list[Mapping[str, Any]]:
    """The rows that no other row dominates: none is as good in every objective and better in one.

    Objectives are columns with 1 where more is better and -1 where less is; rows that lack a number are left out.
    """
    known = [row for row in rows if all(row[name] is not None and np.isfinite(row[name]) for name in objectives)]
    points = np.array([[sign * row[name] for name, sign in objectives.items()] for row in known])
    return [
        row
        for row, point in zip(known, points, strict=True)
        if not ((points >= point).all(1) & (points > point).any(1)).any()
    ]
