"""Counts of cells, read in sparse row blocks: .h5ad, or a sparse matrix saved by scipy (.npz)."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import scipy.sparse as sp

from mantra_ray.data.h5ad import opened
from mantra_ray.data.tables import some
from mantra_ray.errors import InputError

BLOCK = 4096  # rows of a matrix in memory that are worked on at once


@dataclass(frozen=True)
class Counts:
    """Counts [N cells, G genes] that are read block by block, as often as wanted."""

    source: str
    cells: tuple[str, ...]
    genes: tuple[str, ...]
    blocks: Callable[[], Iterator[sp.csr_array]]  # CSR [n, G] of any number type, in the order of the cells


def is_counts(path: str | Path) -> bool:
    """Whether a file is one that `read_counts` reads: .h5ad, or .npz as scipy.sparse.save_npz writes it."""
    path = Path(path)
    if path.suffix.lower() == ".h5ad":
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return path.suffix.lower() == ".npz" and {"format.npy", "shape.npy"} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_counts(path: str | Path, gene_names: str | Path = "") -> Counts:
    """Open cells x genes counts; an .h5ad (CSR or dense) is not held in memory, an .npz as the CSR matrix that it is.

    `gene_names`: a text file with a name a line, for an .npz; without it genes are counted ("gene0"). Raises
    InputError for a file that is damaged, has no cells or genes, or names a gene twice.
    """
    path = Path(path)
    if path.suffix.lower() == ".h5ad":
        if gene_names:
            raise InputError(path, "--gene-names", str(gene_names), "the file has names of its own")
        with opened(path) as stored:
            cells, genes = stored.obs_names(), stored.gene_names()
        counts = Counts(str(path), tuple(cells), tuple(genes), lambda: _h5ad_blocks(path))
    else:
        matrix = _sparse(path)
        genes = _lines(gene_names) if gene_names else [f"gene{i}" for i in range(matrix.shape[1])]
        if len(genes) != matrix.shape[1]:
            raise InputError(gene_names, "genes", len(genes), f"{matrix.shape[1]} names are wanted, one a line")
        cells = tuple(f"cell{i}" for i in range(matrix.shape[0]))
        counts = Counts(str(path), cells, tuple(genes), lambda: _row_blocks(matrix))
    if not counts.cells or not counts.genes:
        raise InputError(path, "shape", (len(counts.cells), len(counts.genes)), "there are no counts")
    _refuse_duplicates(gene_names or path, counts.genes)
    return counts


def _h5ad_blocks(path: Path) -> Iterator[sp.csr_array]:
    with opened(path) as stored:
        for start, stop in stored.blocks():
            yield stored.rows(start, stop)


def _row_blocks(matrix: sp.csr_array) -> Iterator[sp.csr_array]:
    for start in range(0, matrix.shape[0], BLOCK):
        yield matrix[start : start + BLOCK]


def _sparse(path: Path) -> sp.csr_array:
    if not path.is_file():
        raise InputError(path, "file", str(path), "there is no such file")
    try:
        matrix = sp.csr_array(sp.load_npz(path))
        matrix.check_format(full_check=True)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        problem = f"cannot be read as a sparse matrix: {error}"
        raise InputError(path, "file", type(error).__name__, problem) from error
    if matrix.dtype.kind not in "buif":
        raise InputError(path, "counts", str(matrix.dtype), "numbers are wanted")
    matrix.sum_duplicates()
    return matrix


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, "file", type(error).__name__, f"cannot be read: {error}") from error


def _refuse_duplicates(source: object, genes: Sequence[str]) -> None:
    repeated = [gene for gene, count in Counter(genes).items() if count > 1]
    if repeated:
        raise InputError(source, "genes", some(repeated), f"{len(repeated)} genes occur more than once")
