"""Given gene-to-program loadings W: a matrix, a table with gene names, or what the cnmf package wrote."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mantra_ray.data.tables import read_matrix, read_table, some
from mantra_ray.errors import InputError

# The spectra that cnmf writes, a row a program, in the order of preference where a folder holds several kinds:
# all genes in units that compare between genes, all genes in counts per million, over-dispersed genes alone.
KINDS = ("gene_spectra_score.k_*.txt", "gene_spectra_tpm.k_*.txt", "spectra.k_*.consensus.txt")
CNMF = re.compile(
    r"\.((gene_spectra_score|gene_spectra_tpm|starcat_spectra)\.k_\d+\.dt_\w+|spectra\.k_\d+\.dt_\w+\.consensus)"
    r"\.(txt|df\.npz)$"
)
HARMLESS = {  # what a pickled array of names is made of
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}


def loadings_file(path: str | Path) -> Path:
    """The file to read W from: `path` itself, or of a cnmf output folder its spectra of all genes, best kind first.

    Raises InputError for a folder without spectra, or with several of the best kind: K and threshold are then yours.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    for kind in KINDS:
        found = sorted(file for start in ("", "*/") for file in path.glob(f"{start}*.{kind}"))
        if len(found) > 1:
            names = some([file.relative_to(path).as_posix() for file in found])
            raise InputError(path, "loadings", names, f"{len(found)} files of spectra: name the one to use")
        if found:
            return found[0]
    raise InputError(path, "loadings", str(path), "the folder holds no spectra of cnmf (*.gene_spectra_score.k_*.txt)")


def read_loadings(path: str | Path, gene_names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Read W, aligned by name to the data's genes.

    .npy: [G, K], rows in the data's gene order. A table (.csv, .tsv, .parquet): first column genes, then a column a
    program. A folder of cnmf's output, or its `*.gene_spectra_score.k_*.txt`, `*.gene_spectra_tpm.k_*.txt`,
    `*.spectra.k_*.consensus.txt` or their .df.npz forms: a row a program.

    Returns W [G, K] float32 (0 for genes that the file lacks), program names and notes. Raises InputError on a wrong
    shape, unusable values, a gene named twice, no common gene or linearly dependent programs.
    """
    path, notes = loadings_file(path), []
    if path.suffix.lower() == ".npy":
        loadings = read_matrix(path, "loadings", "[genes, programs]", len(gene_names), axis=0)
        programs = tuple(f"program{i}" for i in range(loadings.shape[1]))
    else:
        programs, genes, values = _read_cnmf(path) if CNMF.search(path.name) else _read_genes(path)
        place: dict[str, int] = {}
        for row, gene in enumerate(genes):
            if place.setdefault(gene, row) != row:
                raise InputError(path, "genes", gene, f"row {row}: the gene occurs twice")
        rows = np.array([place.get(gene, -1) for gene in gene_names])
        if (rows < 0).all():
            raise InputError(path, "genes", some(genes), f"no gene of the data: {some(gene_names)}")
        loadings = np.where(rows[:, None] >= 0, values[rows], 0)
        missing = [gene for gene, row in zip(gene_names, rows, strict=True) if row < 0]
        if missing:
            notes.append(f"{path}: {len(missing)} genes have no loadings and count 0: {some(missing)}")
    check_loadings(loadings, programs, path)
    return loadings.astype(np.float32), programs, notes


def check_loadings(loadings: np.ndarray, programs: Sequence[str], source: object) -> None:
    """InputError unless W [G, K] has full column rank, which lifting programs back to genes needs."""
    for column in np.flatnonzero(~loadings.any(axis=0))[:1]:
        raise InputError(source, "loadings", programs[column], "the program has no gene of the data")
    rank = np.linalg.matrix_rank(loadings)
    if rank < loadings.shape[1]:
        raise InputError(source, "loadings", int(rank), f"the {loadings.shape[1]} programs are linearly dependent")


def _read_genes(path: Path) -> tuple[tuple[str, ...], list[str], np.ndarray]:
    """Programs [K], genes [n] and values [n, K] of a table with a row a gene."""
    table = read_table(path)
    key, *programs = table.columns
    if not programs:
        raise InputError(path, "header", key, "a column a program is wanted beside the genes")
    values = np.stack([table.numbers(name) for name in programs], axis=1)
    for row, column in np.argwhere(np.isnan(values))[:1]:
        raise InputError(path, programs[column], None, f"row {row} is empty")
    return tuple(programs), table.labels(key).tolist(), values


def _read_cnmf(path: Path) -> tuple[tuple[str, ...], list[str], np.ndarray]:
    """Programs [K], genes [n] and values [n, K] of a table with a row a program."""
    if not path.is_file():
        raise InputError(path, "file", str(path), "there is no such file")
    try:
        index, genes, values = _read_archive(path) if path.suffix == ".npz" else _read_rows(path)
        values = np.asarray(values, np.float64)
    except Exception as error:  # whatever the unpickler makes of what is not cnmf's
        raise InputError(path, "file", type(error).__name__, f"cannot be read as cnmf's spectra: {error}") from error
    if values.shape != (len(index), len(genes)) or not values.size:
        problem = f"{len(index)} programs and {len(genes)} genes are named"
        raise InputError(path, "shape", values.shape, problem)
    for row, column in np.argwhere(~np.isfinite(values))[:1]:
        raise InputError(path, genes[column], values[row, column].item(), f"program {index[row]} is not finite")
    return tuple(f"GEP{name}" if name.isdigit() else name for name in index), genes, values.T


def _read_rows(path: Path) -> tuple[list[str], list[str], list[list[float]]]:
    with path.open() as lines:
        genes = next(lines, "").rstrip("\r\n").split("\t")[1:]
        rows = [line.rstrip("\r\n").split("\t") for line in lines]
    short = next((row for row in rows if len(row) != len(genes) + 1), None)
    if short is not None:
        raise ValueError(f"program {short[0]} has {len(short) - 1} values for {len(genes)} genes")
    return [row[0] for row in rows], genes, [[float(cell) for cell in row[1:]] for row in rows]


def _read_archive(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        index, genes, values = (_read_array(archive.read(f"{name}.npy")) for name in ("index", "columns", "data"))
    return [str(name) for name in index], [str(name) for name in genes], values


def _read_array(content: bytes) -> np.ndarray:
    """An array of numbers or, pickled as cnmf stores names, of text: nothing else is ever unpickled."""
    handle = io.BytesIO(content)
    version = np.lib.format.read_magic(handle)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    if read_header(handle)[2].hasobject:
        return np.asarray(_Names(handle).load())
    return np.load(io.BytesIO(content), allow_pickle=False)


class _Names(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return super().find_class(module, name)
