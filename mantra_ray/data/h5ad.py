"""AnnData files (.h5ad) read out of core: blocks of rows of the matrix, single columns of the annotations.

The layout is that of https://anndata.readthedocs.io/en/stable/fileformat-prose.html (0.7 and later) and, for the
annotations, also the older one (categories in `__categories`, or one compound data set). It is read through h5py:
a task that sums a block needs three slices of the file, not an AnnData object.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from scipy import sparse

from mantra_ray.data.tables import some
from mantra_ray.errors import InputError

SPARSE_ENTRIES = 1_000_000  # stored entries of a sparse block: some 20 MB of partial sums
MISSING = ("", "nan")  # as text, what pandas makes of a cell without a value
DENSE_VALUES = 4_000_000  # values of a dense block, most of which are zeros


class H5ad:
    """An open file; use `opened`. `shape` is (cells N, genes G) of the matrix `matrix`: X, raw/X or layers/NAME.

    Every failure of the file or of the HDF5 library is an InputError that names the file and the place in it.
    """

    def __init__(self, handle: h5py.File, path: Path, matrix: str = "X"):
        self._file, self.path, self._place = handle, path, matrix
        for place in (matrix, "obs", "raw/var" if matrix.startswith("raw/") else "var"):
            if place not in handle:
                raise InputError(path, place, some(sorted(handle)), "the file has no such part")
        self._var = handle["raw/var" if matrix.startswith("raw/") else "var"]
        self._matrix = handle[matrix]
        if isinstance(self._matrix, h5py.Dataset):
            shape, self._dense = self._matrix.shape, True
        else:
            shape, self._dense = self._open_sparse(), False
        if len(shape) != 2:
            raise InputError(path, matrix, tuple(int(n) for n in shape), "is not a matrix")
        kind = (self._matrix if self._dense else self._matrix["data"]).dtype
        if kind.kind not in "buif":
            raise InputError(path, matrix, str(kind), "is not a matrix of numbers")
        self.shape = (int(shape[0]), int(shape[1]))
        for annotation, size in ((handle["obs"], self.shape[0]), (self._var, self.shape[1])):
            found = len(self._index(annotation))
            if found != size:
                raise InputError(path, annotation.name, found, f"has {found} rows, {matrix} wants {size}")

    def _open_sparse(self) -> tuple[int, ...]:
        group, attributes = self._matrix, self._matrix.attrs
        kind = _text(attributes.get("encoding-type", attributes.get("h5sparse_format", "")))
        if "csc" in kind:
            problem = "is stored by columns (CSC), which cannot be read by blocks of cells; save it as CSR (X.tocsr())"
            raise InputError(self.path, self._place, kind, problem)
        shape = attributes.get("shape", attributes.get("h5sparse_shape"))
        if "csr" not in kind or np.ndim(shape) != 1 or not {"data", "indices", "indptr"} <= set(group):
            raise InputError(self.path, self._place, kind, "is neither a dense nor a CSR matrix")
        ends = group["indptr"]
        whole = len(ends) == shape[0] + 1 and ends[0] == 0 and ends[-1] == len(group["data"]) == len(group["indices"])
        if not whole:
            raise InputError(self.path, f"{self._place}/indptr", len(ends), "does not fit rows and stored entries")
        return tuple(shape)

    @property
    def obs_columns(self) -> list[str]:
        """Names of the cells' annotations."""
        return _columns(self._file["obs"])

    @property
    def var_columns(self) -> list[str]:
        """Names of the genes' annotations."""
        return _columns(self._var)

    def obs_names(self) -> list[str]:
        """The cells' index, [N]."""
        return _strings(self._index(self._file["obs"])[:])

    def gene_names(self, column: str = "") -> list[str]:
        """The genes' index, or a column of their annotations, [G]."""
        if not column:
            return _strings(self._index(self._var)[:])
        codes, names = self._labels(self._var, column)
        for place in np.flatnonzero(codes < 0)[:1]:
            raise InputError(self.path, f"var/{column}", "", f"gene {place} has no name")
        return [names[code] for code in codes]

    def labels(self, column: str) -> tuple[np.ndarray, list[str]]:
        """A column of the cells' annotations as codes [N] int64 (-1: no value) and the names they stand for."""
        return self._labels(self._file["obs"], column)

    def numbers(self, column: str) -> np.ndarray:
        """A column of the cells' annotations as float64 [N], NaN where there is no value; InputError on text."""
        codes, names = self.labels(column)
        values = np.full(len(names) + 1, np.nan)
        for code in np.unique(codes[codes >= 0]):
            try:
                values[code] = float(names[code])
            except ValueError as error:
                raise InputError(self.path, f"obs/{column}", names[code], "is not a column of numbers") from error
        return values[codes]

    def _labels(self, annotation: h5py.Group | h5py.Dataset, column: str) -> tuple[np.ndarray, list[str]]:
        codes, names = self._coded(annotation, column)
        place, size = f"{annotation.name.strip('/')}/{column}", len(self._index(annotation))
        if codes.shape != (size,):
            raise InputError(self.path, place, codes.shape, f"{size} entries are wanted, one a row")
        for row in np.flatnonzero(codes >= len(names))[:1]:
            raise InputError(self.path, place, int(codes[row]), f"row {row} has a code of no category")
        return np.where(np.isin(codes, [i for i, name in enumerate(names) if name in MISSING]), -1, codes), names

    def _coded(self, annotation: h5py.Group | h5py.Dataset, column: str) -> tuple[np.ndarray, list[str]]:
        values = self._column(annotation, column)
        if isinstance(values, h5py.Group) and "categories" in values:
            codes, names = values["codes"][:].astype(np.int64), _strings(values["categories"][:])
        elif isinstance(annotation, h5py.Group) and column in annotation.get("__categories", ()):
            codes, names = values[:].astype(np.int64), _strings(annotation["__categories"][column][:])
        else:
            nullable = isinstance(values, h5py.Group)
            found, codes = np.unique(_native(values["values"][:] if nullable else values[:]), return_inverse=True)
            codes, names = np.where(values["mask"][:] if nullable else False, -1, codes), _strings(found)
        return codes, names

    def _column(self, annotation: h5py.Group | h5py.Dataset, column: str) -> h5py.Group | h5py.Dataset | _Field:
        known = _columns(annotation)
        if column not in known:
            place = annotation.name.strip("/")
            raise InputError(self.path, f"{place} column", column, f"there is no such column, only {some(known, 20)}")
        return _Field(annotation, column) if isinstance(annotation, h5py.Dataset) else annotation[column]

    def _index(self, annotation: h5py.Group | h5py.Dataset) -> h5py.Dataset | _Field:
        if isinstance(annotation, h5py.Dataset):
            if annotation.dtype.names is None or not annotation.shape:
                raise InputError(self.path, annotation.name.strip("/"), str(annotation.dtype), "is no table")
            return _Field(annotation, annotation.dtype.names[0])
        name = _text(annotation.attrs.get("_index", "index"))
        if name not in annotation:
            raise InputError(self.path, annotation.name.strip("/"), name, "has no index")
        return annotation[name]

    def blocks(self) -> list[tuple[int, int]]:
        """Consecutive row ranges (start, stop) that cover the matrix, each small enough for one task's memory."""
        cells, genes = self.shape
        if self._dense:
            step = max(1, DENSE_VALUES // max(genes, 1))
            tall = self._matrix.chunks[0] if self._matrix.chunks else 1
            step = max(tall, step - step % tall)  # a chunk that two blocks share would be unpacked twice
            return [(start, min(start + step, cells)) for start in range(0, cells, step)]
        starts = self._matrix["indptr"][:].astype(np.int64)
        for place in np.flatnonzero(np.diff(starts) < 0)[:1]:
            raise InputError(self.path, f"{self._place}/indptr", int(starts[place + 1]), f"cell {place} ends too early")
        ranges, start = [], 0
        while start < cells:
            fitting = int(np.searchsorted(starts, starts[start] + SPARSE_ENTRIES, side="right")) - 1
            stop = min(max(fitting, start + 1), cells)
            ranges.append((start, stop))
            start = stop
        return ranges

    def rows(self, start: int, stop: int) -> sparse.csr_array:
        """Rows start .. stop - 1 as CSR [stop - start, G], in the file's number type; entries ordered by column."""
        if self._dense:
            return sparse.csr_array(_native(self._matrix[start:stop]))
        starts = self._matrix["indptr"][start : stop + 1].astype(np.int64)
        first, last = starts[0], starts[-1]
        columns = self._matrix["indices"][first:last]
        if len(columns) and not 0 <= columns.min() <= columns.max() < self.shape[1]:
            problem = f"a gene of cells {start} to {stop - 1} lies outside 0 .. {self.shape[1] - 1}"
            raise InputError(self.path, f"{self._place}/indices", int(columns.max()), problem)
        parts = (self._matrix["data"][first:last], columns.astype(np.int32), starts - first)
        block = sparse.csr_array(parts, shape=(stop - start, self.shape[1]))
        block.sum_duplicates()
        return block


class _Field:
    """One field of a compound data set, with as much of a data set's manners as is needed here."""

    def __init__(self, table: h5py.Dataset, name: str):
        self._table, self._name = table, name

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._table.fields(self._name)[rows]

    def __len__(self) -> int:
        return len(self._table)


@contextmanager
def opened(path: str | Path, matrix: str = "X") -> Iterator[H5ad]:
    """The file, for the time of the block; InputError if it is absent, truncated, damaged or of another kind."""
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "file", str(path), "there is no such file")
    try:
        with h5py.File(path, "r") as handle:
            yield H5ad(handle, path, matrix)
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError) as error:  # what h5py raises for damaged files
        raise InputError(path, "file", type(error).__name__, f"cannot be read as .h5ad: {error}") from error


def _columns(annotation: h5py.Group | h5py.Dataset) -> list[str]:
    if isinstance(annotation, h5py.Dataset):
        return list(annotation.dtype.names or ())
    return [name for name in annotation if name != "__categories"]


def _native(values: np.ndarray) -> np.ndarray:
    """Text as str: h5py gives bytes."""
    if values.dtype.kind in "OS":
        return np.array([_text(value) for value in values.ravel()], dtype=object).reshape(values.shape)
    return values


def _strings(values: np.ndarray) -> list[str]:
    return [str(value) for value in _native(values).tolist()]


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
