"""Tables that users bring: CSV, TSV (gzipped or not) and Parquet, read column by column."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from mantra_ray.errors import InputError

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
EMPTY = pa.array(["", "NA", "na", "N/A", "NaN", "nan"])  # cells that mean "no number"


@dataclass(frozen=True)
class Table:
    """A table whose cells are interpreted on demand, so that an error can name the column, the row and the value."""

    path: Path
    columns: dict[str, pa.ChunkedArray]

    def require(self, *names: str) -> None:
        """InputError unless every column is there."""
        for name in names:
            if name not in self.columns:
                raise InputError(self.path, name, ", ".join(self.columns), "the table has no such column")

    def text(self, name: str) -> np.ndarray:
        """A column of names as an object array of str, [rows]; InputError on an empty cell."""
        values = self.labels(name)
        for row in np.flatnonzero(values == "")[:1]:
            raise InputError(self.path, name, "", f"row {row} is empty")
        return values

    def labels(self, name: str) -> np.ndarray:
        """As `text`, with empty cells allowed (as "")."""
        return self._strings(name).to_numpy(zero_copy_only=False)

    def numbers(self, name: str) -> np.ndarray:
        """A column as float64 [rows], empty cells and NA as NaN; InputError on text or an infinity."""
        self.require(name)
        column = self.columns[name]
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            cells = self._strings(name)
            column = pc.if_else(pc.is_in(cells, value_set=EMPTY), pa.scalar(None, pa.string()), cells)
        try:
            values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowException as error:
            row, cell = next((row, cell) for row, cell in enumerate(column.to_pylist()) if not _is_number(cell))
            raise InputError(self.path, name, cell, f"row {row} is not a number") from error
        for row in np.flatnonzero(np.isinf(values))[:1]:
            raise InputError(self.path, name, values[row].item(), f"row {row} is infinite")
        return values

    def _strings(self, name: str) -> pa.ChunkedArray:
        self.require(name)
        try:
            text = self.columns[name].cast(pa.string())
        except pa.ArrowException as error:
            raise InputError(self.path, name, str(self.columns[name].type), "the column is not text") from error
        return pc.utf8_trim_whitespace(pc.fill_null(text, ""))


def _is_number(cell: str | None) -> bool:
    try:
        return cell is None or pa.scalar(cell).cast(pa.float64()).is_valid
    except pa.ArrowException:
        return False


def read_table(path: str | Path, required: Sequence[str] = ()) -> Table:
    """Read a .csv, .tsv, .txt (each also .gz) or .parquet table; InputError if it is absent, damaged or lacks a column.

    Rows are counted from 0, the header left out.
    """
    path = Path(path)
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    suffix = suffixes[-1].lower() if suffixes else ""
    if not path.is_file():
        raise InputError(path, "file", str(path), "there is no such file")
    try:
        if suffix == ".parquet":
            with pq.ParquetFile(path) as stored:
                table = stored.read()
        elif suffix in SEPARATORS:
            # Every cell stays text: pyarrow's guesses turn a gene named "NA" or "1" into something else.
            parse = pa_csv.ParseOptions(delimiter=SEPARATORS[suffix])
            with pa_csv.open_csv(path, parse_options=parse) as peek:
                names = peek.schema.names
            types = pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
            table = pa_csv.read_csv(path, parse_options=parse, convert_options=types)
        else:
            raise InputError(path, "file", suffix, "unknown kind of table; use .csv, .tsv or .parquet")
    except (OSError, EOFError, pa.ArrowException) as error:
        raise InputError(path, "file", type(error).__name__, f"cannot be read as a table: {error}") from error
    if table.num_rows == 0:
        raise InputError(path, "file", 0, "the table has no rows")
    if len(set(table.column_names)) < table.num_columns:
        raise InputError(path, "header", ", ".join(table.column_names), "column names repeat")
    result = Table(path, dict(zip(table.column_names, table.columns, strict=True)))
    result.require(*required)
    return result


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first few of many names, for messages."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def read_npy(path: Path, field: str = "file") -> np.ndarray:
    """The array of an .npy file, never a pickled one; InputError, which names the field, if there is none."""
    if not path.is_file():
        raise InputError(path, field, str(path), "there is no such file")
    try:
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive")
    except (OSError, EOFError, ValueError, MemoryError, zipfile.BadZipFile) as error:
        raise InputError(path, field, type(error).__name__, f"cannot be read as .npy: {error}") from error
    return array


def read_matrix(path: Path, field: str, shape: str, genes: int, axis: int) -> np.ndarray:
    """A numeric matrix from an .npy file, with the data's genes in order along `axis`; `shape` names its axes.

    Raises InputError for a file that cannot be read, another shape, or values that are not finite.
    """
    matrix = read_npy(path)
    if matrix.ndim != 2 or matrix.dtype.kind not in "iuf":
        raise InputError(path, field, matrix.shape, f"a numeric matrix {shape} is wanted")
    if matrix.shape[axis] != genes or not matrix.shape[1 - axis]:
        wanted = ("rows", "columns")[axis]
        raise InputError(path, field, matrix.shape, f"{genes} {wanted} are wanted, one a gene of the data")
    for row, column in np.argwhere(~np.isfinite(matrix))[:1]:
        raise InputError(path, field, matrix[row, column].item(), f"row {row}, column {column} is not finite")
    return matrix
