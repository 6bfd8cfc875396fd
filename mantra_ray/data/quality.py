"""Which cells can be used: counts that are counts, and the usual thresholds of single-cell quality control."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from mantra_ray.errors import InputError

MITOCHONDRIAL = "MT-"  # how symbols of mitochondrial genes begin (mt- in mouse)


@dataclass(frozen=True)
class Thresholds:
    """What a cell, a gene and a record must have to be kept."""

    min_umi: float = 500
    """Cells with fewer UMIs are left out."""
    min_genes: int = 200
    """Cells with fewer detected genes are left out."""
    max_mito: float = 0.2
    """Cells with a larger mitochondrial share of their UMIs (0 to 1) are left out."""
    min_cells: int = 10
    """Records (regulator, dose, state) of fewer cells are left out; at least 2, for a variance."""
    min_cells_per_gene: int = 10
    """Genes detected in fewer of the kept cells are left out."""

    def check(self) -> None:
        """InputError for a threshold that cannot be."""
        for name, low in (
            ("min_umi", 1),
            ("min_genes", 0),
            ("max_mito", 0),
            ("min_cells", 2),
            ("min_cells_per_gene", 0),
        ):
            if not getattr(self, name) >= low:
                raise InputError(
                    "options", "--" + name.replace("_", "-"), getattr(self, name), f"must be at least {low}"
                )


@dataclass(frozen=True)
class Quality:
    """What is judged of n cells."""

    umi: np.ndarray  # [n] float64, UMIs of the cell
    genes: np.ndarray  # [n] int64, detected genes
    mito: np.ndarray  # [n] float64, mitochondrial share of the UMIs, 0 where unknown

    def passes(self, thresholds: Thresholds) -> np.ndarray:
        """Mask [n] of the cells to keep."""
        return ~np.any([bad for _, bad in self._faults(thresholds)], axis=0)

    def notes(self, thresholds: Thresholds) -> list[str]:
        """How many cells were left out, each counted under its first fault."""
        seen, lines = np.zeros(len(self.umi), bool), []
        for what, bad in self._faults(thresholds):
            lines += [f"{(bad & ~seen).sum():,} cells with {what} are left out"] if (bad & ~seen).any() else []
            seen |= bad
        return lines

    def _faults(self, thresholds: Thresholds) -> tuple[tuple[str, np.ndarray], ...]:
        return (
            (f"fewer than {thresholds.min_umi:g} UMIs", self.umi < thresholds.min_umi),
            (f"fewer than {thresholds.min_genes} genes", self.genes < thresholds.min_genes),
            (f"a mitochondrial share above {thresholds.max_mito:g}", self.mito > thresholds.max_mito),
        )


def measure(
    block: sparse.csr_array, mitochondrial: np.ndarray, umi: np.ndarray | None, mito: np.ndarray | None
) -> Quality:
    """Quality of a block's cells; `umi` [n] and `mito` [n] are taken as given where the file has them.

    `mitochondrial` [G] bool marks the genes whose share is measured otherwise.
    """
    total = block.sum(axis=1, dtype=np.float64)
    if mito is None:
        mito = (block @ mitochondrial.astype(np.float64)) / np.maximum(total, 1)
    return Quality(total if umi is None else umi, np.diff(block.indptr), mito)


def check_counts(block: sparse.csr_array, first: int, source: object, place: str) -> None:
    """InputError for the first entry that is no count: not finite, negative or not whole; `first` numbers the rows."""
    for wrong, problem in (
        (lambda values: ~np.isfinite(values), "is not finite"),
        (lambda values: values < 0, "is negative"),
        (lambda values: values != np.rint(values), "is not a whole number"),
    ):
        bad = np.flatnonzero(wrong(block.data))
        if len(bad):
            row = int(np.searchsorted(block.indptr, bad[0], side="right")) - 1
            where = f"cell {first + row}, gene {block.indices[bad[0]]}"
            advice = "counts are wanted; --matrix names where they are (X, raw/X, layers/counts)"
            raise InputError(source, place, block.data[bad[0]].item(), f"{where}: {problem}, {advice}")
