"""A screen: the records with everything that goes with them, aligned by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mantra_ray.config import SplitKind
from mantra_ray.data.graph import Graph
from mantra_ray.data.records import PerturbationData
from mantra_ray.data.tables import read_table, some
from mantra_ray.data.traits import TraitTable
from mantra_ray.errors import InputError


@dataclass(frozen=True, eq=False)
class Controls:
    """Log2 expression of unperturbed cells, or of pseudo-bulks of them."""

    profiles: np.ndarray  # [cells, G] float32, in the data's gene order; NaN columns: genes that were not measured
    state: np.ndarray  # [cells] int64, -1 where unknown

    @property
    def measured(self) -> np.ndarray:
        """Which genes were measured, [G]."""
        return ~np.isnan(self.profiles).any(0)


@dataclass(frozen=True, eq=False)
class Screen:
    """One data set, ready to be split."""

    name: str
    data: PerturbationData
    graph: Graph | None  # None: to be made by co-expression, or not at all without expression
    loadings: np.ndarray | None  # [G, K] float32 W, None: to be fitted
    program_names: tuple[str, ...]
    traits: dict[str, TraitTable]
    regulator_class: np.ndarray  # [R] int64, -1 where unknown
    class_names: tuple[str, ...]
    sha256: str  # of the content of every input
    splits: tuple[SplitKind, ...]  # kinds that make sense here
    notes: tuple[str, ...]  # what was left out and why
    controls: Controls | None = None  # unperturbed cells, where they are known and wanted


def read_classes(path: str | Path, regulator_names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Read `regulator,class`, or Lambert's `ID,Name,DBD` (DNA-binding domains).

    Empty and "Unknown" classes count as none. Returns the class of each regulator [R] int64 (-1 unknown), class
    names and notes. Raises InputError if no regulator of the data is listed or one is listed with two classes.
    """
    table = read_table(path)
    key, value = ("Name", "DBD") if "DBD" in table.columns else ("regulator", "class")
    names, labels = table.text(key), table.labels(value)
    found: dict[str, str] = {}
    for row, (name, label) in enumerate(zip(names, labels, strict=True)):
        if found.setdefault(name, label) != label:
            raise InputError(path, value, label, f"row {row}: {name} is of class {found[name]} above")
    if not set(regulator_names) & set(names):
        raise InputError(path, key, some(names.tolist()), f"no regulator of the data: {some(regulator_names)}")
    of_each = [found.get(name, "") for name in regulator_names]
    of_each = ["" if label.lower() == "unknown" else label for label in of_each]
    class_names = tuple(sorted(set(of_each) - {""}))
    unknown = [name for name, label in zip(regulator_names, of_each, strict=True) if not label]
    notes = [f"{path}: no class for {len(unknown)} regulators: {some(unknown)}"] if unknown else []
    place = {"": -1} | {label: i for i, label in enumerate(class_names)}
    return np.array([place[label] for label in of_each], np.int64), class_names, notes
