"""A screen: the records with everything that goes with them, aligned by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mantra_ray.config import SplitKind
from mantra_ray.data.graph import Graph
from mantra_ray.data.records import PerturbationData
from mantra_ray.data.tables import Table, read_table, some
from mantra_ray.errors import InputError

# SMR's usual bound: below it, linkage and not one shared causal variant explains the association (Zhu 2016).
HEIDI_THRESHOLD = 0.01


@dataclass(frozen=True, eq=False)
class TraitTable:
    """Effect of higher expression of each gene on one trait, [G] in the order of the data's genes."""

    b: np.ndarray  # float32, NaN where the gene is absent
    se: np.ndarray  # float32, NaN where the gene is absent


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


def read_loadings(path: str | Path, gene_names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Read W from .npy [G, K] (rows in the data's gene order) or a table (first column genes, then a column a program).

    Returns W [G, K] float32 aligned to `gene_names` (0 for genes that the table lacks), program names and notes.
    Raises InputError on a wrong shape, unusable values, no common gene or linearly dependent programs.
    """
    notes: list[str] = []
    if Path(path).suffix.lower() == ".npy":
        loadings, programs = _read_matrix(path, len(gene_names)), ()
    else:
        table = read_table(path)
        key, *programs = table.columns
        if not programs:
            raise InputError(path, "header", key, "a column a program is wanted beside the genes")
        values = np.stack([table.numbers(name) for name in programs], axis=1)
        for row, column in np.argwhere(np.isnan(values))[:1]:
            raise InputError(path, programs[column], None, f"row {row} is empty")
        rows, missing = _match(table, key, gene_names)
        loadings = np.where(rows[:, None] >= 0, values[rows], 0)
        if missing:
            notes.append(f"{path}: {len(missing)} genes have no loadings and count 0: {some(missing)}")
    programs = tuple(programs) or tuple(f"program{i}" for i in range(loadings.shape[1]))
    check_loadings(loadings, programs, path)
    return loadings.astype(np.float32), programs, notes


def check_loadings(loadings: np.ndarray, programs: Sequence[str], source: object) -> None:
    """InputError unless W [G, K] has full column rank, which lifting programs back to genes needs."""
    for column in np.flatnonzero(~loadings.any(axis=0))[:1]:
        raise InputError(source, "loadings", programs[column], "the program has no gene of the data")
    rank = np.linalg.matrix_rank(loadings)
    if rank < loadings.shape[1]:
        raise InputError(source, "loadings", int(rank), f"the {loadings.shape[1]} programs are linearly dependent")


def read_trait(path: str | Path, gene_names: Sequence[str], flip: bool = False) -> tuple[TraitTable, list[str]]:
    """Read gene effects (columns `symbol` or `ensg`, `b`, `se`, optionally `p_HEIDI`), aligned to `gene_names`.

    b is the effect of higher expression; `flip` turns its sign, for effects of losing the gene. Of a gene that
    occurs twice the most precise row counts; genes that fail the HEIDI test count as absent. Raises InputError.
    """
    table = read_table(path, ["b", "se"])
    keys = [name for name in ("symbol", "ensg") if name in table.columns]
    if not keys:
        raise InputError(path, "symbol", ", ".join(table.columns), "a column symbol or ensg is wanted")
    known = set(gene_names)
    key = max(keys, key=lambda name: sum(gene in known for gene in table.labels(name)))
    b, se = table.numbers("b"), table.numbers("se")
    for row in np.flatnonzero(se <= 0)[:1]:
        raise InputError(path, "se", se[row].item(), f"row {row}: a standard error must be above 0")
    dropped = np.isnan(b) | np.isnan(se)
    notes = []
    if "p_HEIDI" in table.columns:
        pleiotropic = table.numbers("p_HEIDI") < HEIDI_THRESHOLD  # an untested gene (NaN) stays
        notes.append(f"{path}: {pleiotropic.sum()} genes fail the HEIDI test (p < {HEIDI_THRESHOLD}) and are left out")
        dropped |= pleiotropic
    rows, missing = _match(table, key, gene_names, np.where(dropped, np.inf, se))
    absent = (rows < 0) | dropped[rows]
    if absent.all():
        raise InputError(path, key, some(table.labels(key).tolist()), f"no usable gene of the data: {some(gene_names)}")
    if missing:
        notes.append(f"{path}: {len(missing)} of {len(gene_names)} genes have no effect on the trait: {some(missing)}")
    sign = -1 if flip else 1
    aligned = (np.where(absent, np.nan, values[rows]).astype(np.float32) for values in (sign * b, se))
    return TraitTable(*aligned), notes


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


def _read_matrix(path: str | Path, genes: int) -> np.ndarray:
    if not Path(path).is_file():
        raise InputError(path, "file", str(path), "there is no such file")
    try:
        matrix = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(path, "file", type(error).__name__, f"cannot be read as .npy: {error}") from error
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype.kind not in "iuf":
        raise InputError(
            path, "loadings", getattr(matrix, "shape", None), "a numeric matrix [genes, programs] is wanted"
        )
    if matrix.shape[0] != genes or not matrix.shape[1]:
        raise InputError(path, "loadings", matrix.shape, f"{genes} rows are wanted, one a gene of the data")
    for row, column in np.argwhere(~np.isfinite(matrix))[:1]:
        raise InputError(path, "loadings", matrix[row, column].item(), f"row {row}, column {column} is not finite")
    return matrix


def _match(
    table: Table, key: str, gene_names: Sequence[str], cost: np.ndarray | None = None
) -> tuple[np.ndarray, list[str]]:
    """Row of each gene [G] (-1 if absent; the cheapest of several, or an error without costs) and the absent genes."""
    names = table.labels(key)
    place: dict[str, int] = {}
    for row, name in enumerate(names):
        if name in place and cost is None:
            raise InputError(table.path, key, name, f"row {row}: the gene occurs twice")
        if name not in place or cost[row] < cost[place[name]]:
            place[name] = row
    rows = np.array([place.get(name, -1) for name in gene_names], np.int64)
    if (rows < 0).all():
        raise InputError(table.path, key, some(names.tolist()), f"no gene of the data: {some(gene_names)}")
    return rows, [name for name, row in zip(gene_names, rows, strict=True) if row < 0]
