"""The cells of a file as an experiment: who was perturbed, how strongly, in which state and batch, and with what."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import sparse

from mantra_ray.data.h5ad import H5ad
from mantra_ray.data.morphic import unique_names
from mantra_ray.data.quality import MITOCHONDRIAL, Thresholds
from mantra_ray.data.records import PerturbationData
from mantra_ray.data.tables import some
from mantra_ray.errors import InputError

ONE_STATE = "all"  # name of the state where none is given


@dataclass(frozen=True)
class CellOptions:
    """Where in the file things are, and how cells become records."""

    regulator_column: str = "gene"
    """Annotation of the cells that names the perturbed gene."""
    control: str = "non-targeting"
    """Its value in control cells."""
    dose_column: str = ""
    """Annotation with the dose, 0 to 1, or what --dose-from makes a dose of (default: every dose is 1)."""
    dose_from: Literal["column", "umi-quartile"] = "column"
    """column: the annotation is the dose; umi-quartile: it counts sgRNA UMIs, and their quartile among the perturbed
    cells of the same state and batch is the dose (0.25, 0.5, 0.75, 1)."""
    state_column: str = ""
    """Annotation with the cell state (default: one state)."""
    batch_column: str = ""
    """Annotation with the batch; cells are compared with the controls of their own (default: one batch)."""
    strategy_column: str = ""
    """Annotation with the kind of perturbation (guide set, allele); each makes records of its own."""
    umi_column: str = ""
    """Annotation with a cell's UMIs, its library size (default: the sum of the matrix)."""
    mito_column: str = ""
    """Annotation with the mitochondrial share or percentage (default: genes named MT-...)."""
    gene_column: str = ""
    """Annotation of the genes with the names to use, such as symbols (default: the index)."""
    suffix_duplicates: bool = False
    """Give genes of one name their index as a suffix; otherwise a name that occurs twice is an error."""
    matrix: str = "X"
    """Where the counts are: X, raw/X or layers/NAME."""
    target_sum: float = 0.0
    """Library size that cells are scaled to (0: the median of the cells)."""
    unmatched: Literal["error", "drop"] = "error"
    """Perturbed cells in a state and batch without controls: stop, or leave them out."""
    thresholds: Thresholds = field(default_factory=Thresholds)


@dataclass(frozen=True)
class Cohort:
    """N cells by their annotations, before quality control; a pool is a (state, batch), -1 stands for no value."""

    genes: list[str]  # [G]
    mitochondrial: np.ndarray  # [G] bool
    regulator: np.ndarray  # [N] int64
    control: np.ndarray  # [N] bool
    strategy: np.ndarray  # [N] int64
    pool: np.ndarray  # [N] int64, -1 also where the regulator or the strategy is unknown
    pool_state: np.ndarray  # [B] int64
    pool_names: list[str]  # [B]
    dose: np.ndarray | None  # [N] float64
    umi: np.ndarray | None  # [N] float64
    mito: np.ndarray | None  # [N] float64, a share
    names: dict[str, list[str]]  # of regulator, state and, if given, strategy
    notes: list[str]

    @property
    def pools(self) -> int:
        """How many pools there are."""
        return len(self.pool_state)

    def survey(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """What judging a block needs: the pool of control cells (-1 of others), UMIs and mitochondrial shares."""
        return np.where(self.control, self.pool, -1), self.umi, self.mito

    def records(self, kept: np.ndarray, options: CellOptions, path: Path | str) -> tuple[Records, list[str]]:
        """The records of the cells that passed quality control (mask [N]), and notes; InputError without controls."""
        notes = []
        usable = kept & (self.pool >= 0)
        controls = np.bincount(self.pool[usable & self.control], minlength=self.pools)
        treated = usable & ~self.control
        lacking = self.unmatched(treated, controls, options, path)
        if lacking.any():
            without = lacking[self.pool] & treated
            where = some([self.pool_names[p] for p in np.flatnonzero(lacking)])
            notes.append(f"{without.sum():,} cells without controls of their state and batch are left out ({where})")
            treated &= ~without
        spare = np.bincount(self.pool_state, np.maximum(controls - 1, 0), len(self.names["state"]))
        for state in np.unique(self.pool_state[self.pool[treated]]):
            if spare[state] < 1:
                problem = "needs two control cells in a batch, their variance is unknown"
                raise InputError(path, "controls", self.names["state"][state], problem)
        rows = np.flatnonzero(treated)
        if not len(rows):
            raise InputError(path, "cells", 0, "no perturbed cell is left to make records of")
        state = self.pool_state[self.pool[rows]]
        levels, dose = np.unique(self._doses(rows, options, path), return_inverse=True)
        keys = (self.regulator[rows], state, self.strategy[rows], dose)
        sizes = [int(key.max()) + 1 for key in keys]
        place, code, cells = np.unique(np.ravel_multi_index(keys, sizes), return_inverse=True, return_counts=True)
        enough = cells >= options.thresholds.min_cells
        if not enough.any():
            problem = f"no record has {options.thresholds.min_cells} cells, the largest one's number is shown"
            raise InputError(path, "cells", int(cells.max()), problem)
        if not enough.all():
            few = f"records ({cells[~enough].sum():,} cells) of fewer than {options.thresholds.min_cells} cells"
            notes.append(f"{(~enough).sum():,} {few} are left out")
        code = np.where(enough, np.cumsum(enough) - 1, -1)[code]
        rows, code = rows[code >= 0], code[code >= 0]
        of_cell = np.full(len(kept), -1)
        of_cell[rows] = code
        shape = (int(enough.sum()), self.pools)
        counts = sparse.csr_array((np.ones(len(rows), np.int64), (code, self.pool[rows])), shape)
        regulator, state, strategy, dose = np.unravel_index(place[enough], sizes)
        fields = {"regulator": regulator, "state": state, "strategy": strategy, "dose": levels[dose]}
        names = self.names
        return Records(of_cell, counts, controls, self.pool_state, state=state, fields=fields, names=names), notes

    def unmatched(
        self, treated: np.ndarray, controls: np.ndarray, options: CellOptions, path: Path | str
    ) -> np.ndarray:
        """Mask [B] of pools with perturbed cells (`treated` [N]) but no controls (`controls` [B]).

        InputError if the options say so, or if that is every pool.
        """
        present = np.bincount(self.pool[treated], minlength=self.pools) > 0
        lacking = present & (controls == 0)
        if lacking.any() and (options.unmatched == "error" or lacking.sum() == present.sum()):
            where = some([self.pool_names[p] for p in np.flatnonzero(lacking)])
            problem = f"{lacking.sum()} of {present.sum()} (state, batch) pairs have no control cells: {where}"
            hint = "; --unmatched drop leaves their cells out" if lacking.sum() < present.sum() else ""
            raise InputError(path, "control", options.control, problem + hint)
        return lacking

    def _doses(self, rows: np.ndarray, options: CellOptions, path: Path | str) -> np.ndarray:
        """Doses of perturbed cells, [rows]."""
        if self.dose is None:
            return np.ones(len(rows))
        values, name = self.dose[rows], f"obs/{options.dose_column}"
        bad = ~np.isfinite(values)
        if options.dose_from == "column":
            bad |= (values < 0) | (values > 1)
        for place in np.flatnonzero(bad)[:1]:
            problem = f"cell {rows[place]}: a dose lies in 0 to 1" + (
                "; --dose-from umi-quartile makes doses of sgRNA UMIs" if options.dose_from == "column" else ""
            )
            raise InputError(path, name, values[place].item(), problem)
        if options.dose_from == "column":
            return values
        dose = np.empty(len(rows))
        for pool in np.unique(self.pool[rows]):
            mine = self.pool[rows] == pool
            edges = np.quantile(values[mine], [0.25, 0.5, 0.75])
            dose[mine] = (1 + np.searchsorted(edges, values[mine])) / 4
        return dose


@dataclass(frozen=True)
class Records:
    """R records before their sums are known."""

    code: np.ndarray  # [N] int64, record of each cell, -1 of cells that belong to none
    pool_cells: sparse.csr_array  # [R, B], cells of a record in each pool
    pool_controls: np.ndarray  # [B], control cells
    pool_state: np.ndarray  # [B]
    state: np.ndarray  # [R] int64
    fields: dict[str, np.ndarray]  # regulator, state, strategy, dose; [R]
    names: dict[str, list[str]]

    @property
    def cells(self) -> np.ndarray:
        """Cells of each record, [R]."""
        return np.asarray(self.pool_cells.sum(axis=1))

    def data(self, change: np.ndarray, error: np.ndarray, genes: list[str]) -> PerturbationData:
        """The finished records, names that none of them uses left out."""
        fields: dict[str, object] = {"dose": self.fields["dose"].astype(np.float32)}
        for name, names in self.names.items():
            used, fields[name] = np.unique(self.fields[name], return_inverse=True)
            fields[name + "_names"] = tuple(names[code] for code in used)
        return PerturbationData(
            **fields,
            delta_expression=change,
            delta_expression_se=error,
            n_cells=self.cells.astype(np.float32),
            group=fields["state"],
            gene_names=tuple(genes),
        )


def read_cohort(file: H5ad, options: CellOptions) -> Cohort:
    """Read and check the annotations; InputError for columns that are absent or useless, or without controls."""
    cells, notes = file.shape[0], []
    genes = read_genes(file, options.gene_column, options.suffix_duplicates)
    regulator, regulators = file.labels(options.regulator_column)
    if options.control not in regulators:
        problem = f"no cell has this value in {options.regulator_column}, only {some(regulators)}"
        raise InputError(file.path, "control", options.control, problem)
    label = {"state": (np.zeros(cells, np.int64), [ONE_STATE]), "batch": (np.zeros(cells, np.int64), [""])}
    label["strategy"] = label["state"]
    names, known = {"regulator": regulators, "state": [ONE_STATE]}, regulator >= 0
    columns = {kind: getattr(options, kind + "_column") for kind in label}
    for kind, column in columns.items():
        if column:
            label[kind] = file.labels(column)
            if kind != "batch":
                names[kind] = label[kind][1]
            known &= label[kind][0] >= 0
    if not known.all():
        where = ", ".join([options.regulator_column, *filter(None, columns.values())])
        notes.append(f"{(~known).sum():,} cells without a value of {where} are left out")
    (state, states), (batch, batches) = label["state"], label["batch"]
    pairs, pool = np.unique(np.where(known, state * len(batches) + batch, -1), return_inverse=True)
    if pairs[0] < 0:
        pairs, pool = pairs[1:], pool - 1
    pool_state = pairs // len(batches)
    pool_names = [
        f"{states[s]}/{batches[b]}".rstrip("/") for s, b in zip(pool_state, pairs % len(batches), strict=True)
    ]
    mitochondrial = np.array([gene.upper().startswith(MITOCHONDRIAL) for gene in genes])
    mito = _numbers(file, options.mito_column)
    if mito is not None and mito.max(initial=0) > 1:
        mito = mito / 100
        notes.append(f"{options.mito_column} is read as a percentage")
    if mito is None and not mitochondrial.any():
        notes.append(
            f"mitochondrial shares are not checked: no gene is named {MITOCHONDRIAL}... and no column is given"
        )
    cohort = Cohort(
        genes, mitochondrial, regulator, regulator == regulators.index(options.control), label["strategy"][0], pool,
        pool_state, pool_names, file.numbers(options.dose_column) if options.dose_column else None,
        _numbers(file, options.umi_column), mito, names, notes,
    )  # fmt: skip
    if options.dose_from != "column" and not options.dose_column:
        raise InputError("options", "--dose-column", "", f"--dose-from {options.dose_from} needs it")
    # Told before hours of reading rather than after; quality control may still take controls away.
    controls = np.bincount(pool[cohort.control & known], minlength=len(pairs))
    cohort.unmatched(known & ~cohort.control, controls, options, file.path)
    return cohort


def read_genes(file: H5ad, column: str, suffix_duplicates: bool) -> list[str]:
    """Names of the genes, [G]; InputError if one occurs twice, unless duplicates get the index as a suffix."""
    names = file.gene_names(column)
    if suffix_duplicates:
        names = list(unique_names(names, tuple(file.gene_names())))
    seen: set[str] = set()
    for place, name in enumerate(names):
        if name in seen:
            where = f"var/{column}" if column else "var index"
            problem = f"gene {place}: the name occurs twice; --suffix-duplicates appends the index of such genes"
            raise InputError(file.path, where, name, problem)
        seen.add(name)
    return names


def _numbers(file: H5ad, column: str) -> np.ndarray | None:
    """A column of numbers at or above 0 in every cell, or None without a name."""
    if not column:
        return None
    values = file.numbers(column)
    for cell in np.flatnonzero(~(np.isfinite(values) & (values >= 0)))[:1]:
        raise InputError(file.path, f"obs/{column}", values[cell].item(), f"cell {cell}: is no number at or above 0")
    return values
