"""Records on disk: the NPZ form that users already have, and one Parquet file."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mantra_ray.data.records import MATRICES, NAMES, ROWS, VECTORS, PerturbationData, from_arrays
from mantra_ray.errors import InputError
from mantra_ray.files import atomic

# Our field -> the NPZ key; both forms of ΔE are read, the observed one first.
NPZ_KEYS = {
    "regulator": "reg_idx",
    "delta_expression": "deltaE",
    "delta_expression_se": "deltaE_se",
    "delta_program": "deltaP_obs",
    "delta_trait": "deltaY_obs",
}
METADATA = b"mantra_ray"  # key of the names in the Parquet schema
READ_ERRORS = (
    *(OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, pa.ArrowException),
    *(MemoryError, RuntimeError),  # a header that promises too much; an archive that is encrypted
)


def read_records(path: str | Path) -> PerturbationData:
    """Read an .npz or .parquet file of records; InputError if it cannot be used."""
    readers = {".npz": read_npz, ".parquet": read_parquet}
    suffix = Path(path).suffix.lower()
    if suffix not in readers:
        raise InputError(path, "file", suffix, "records are read from .npz or .parquet")
    return readers[suffix](path)


def read_npz(path: str | Path) -> PerturbationData:
    """Read `reg_idx` [N], `dose` [N], `deltaE` or `deltaE_obs` [N, G] and the optional keys; other keys are ignored.

    Optional: `deltaP_obs` [N, K], `deltaY_obs` [N, T], `state` [N], `deltaE_se` [N, G], `n_cells` [N], `strategy`
    [N], `group` [N] and the `*_names`. Pickled objects are never loaded. Raises InputError.
    """
    path = _existing(path)
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is not an NPZ archive")
        with archive as stored:
            keys = {name: NPZ_KEYS.get(name, name) for name in (*ROWS, *VECTORS, *MATRICES, *NAMES)}
            if "deltaE_obs" in stored.files:
                keys["delta_expression"] = "deltaE_obs"
            arrays = {name: stored[key] for name, key in keys.items() if key in stored.files}
    except READ_ERRORS as error:
        hint = "; store names as strings, np.array(names, dtype=str)" if "allow_pickle" in str(error) else ""
        raise InputError(path, "file", type(error).__name__, f"cannot be read as NPZ: {error}{hint}") from error
    return from_arrays(arrays, path, keys)


def write_npz(data: PerturbationData, path: str | Path) -> None:
    """Write every field that is present, atomically, compressed."""
    arrays = {NPZ_KEYS.get(name, name): getattr(data, name) for name in (*ROWS, *VECTORS, *MATRICES)}
    arrays = {key: value for key, value in arrays.items() if value is not None}
    names = {name: np.array(getattr(data, name), dtype=str) for name in NAMES}
    with atomic(path) as partial, partial.open("wb") as handle:
        np.savez_compressed(handle, **arrays, **names)


def read_parquet(path: str | Path) -> PerturbationData:
    """Read what `write_parquet` wrote, or any Parquet file with columns named as the fields of PerturbationData.

    Matrices are list columns of one length. A file without names in its metadata gets counted ones. Raises InputError.
    """
    path = _existing(path)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as stored:
            metadata = stored.schema_arrow.metadata or {}
            names = json.loads(metadata.get(METADATA, b"{}"))
            wanted = [name for name in (*ROWS, *VECTORS, *MATRICES) if name in stored.schema_arrow.names]
            table = stored.read(columns=wanted)
        arrays = {name: _column_to_numpy(table[name], path, name) for name in wanted}
    except InputError:
        raise
    except READ_ERRORS as error:
        raise InputError(path, "file", type(error).__name__, f"cannot be read as Parquet: {error}") from error
    lists = isinstance(names, dict) and all(isinstance(value, list) for value in names.values())
    if not lists or any(isinstance(item, list | dict) for value in names.values() for item in value):
        raise InputError(path, "metadata mantra_ray", names, "must map each kind of name to a list")
    return from_arrays(arrays | {name: names[name] for name in NAMES if name in names}, path)


def write_parquet(data: PerturbationData, path: str | Path) -> None:
    """Write one file, atomically: a row a record, matrices as fixed-size lists, names in the schema metadata."""
    columns = {name: getattr(data, name) for name in (*ROWS, *VECTORS, *MATRICES) if getattr(data, name) is not None}
    arrays = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(value.ravel()), value.shape[1])
        if value.ndim == 2
        else pa.array(value)
        for name, value in columns.items()
    }
    names = {name: list(getattr(data, name)) for name in NAMES}
    table = pa.table(arrays).replace_schema_metadata({METADATA: json.dumps(names).encode()})
    widest = max(value.shape[1] if value.ndim == 2 else 1 for value in columns.values())
    with atomic(path) as partial:
        pq.write_table(
            table,
            partial,
            compression="zstd",
            use_dictionary=False,  # floats hardly repeat
            write_page_checksum=True,
            row_group_size=max(1, 2**24 // widest),  # some 64 MiB a matrix, so that readers can stream
        )


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "file", str(path), "there is no such file")
    return path


def _column_to_numpy(column: pa.ChunkedArray, path: Path, name: str) -> np.ndarray:
    array = column.combine_chunks()
    if array.null_count:
        row = np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0]
        raise InputError(path, name, None, f"record {row}: is missing")
    if not pa.types.is_fixed_size_list(array.type) and not pa.types.is_list(array.type):
        return array.to_numpy(zero_copy_only=False)
    values, lengths = array.flatten(), array.value_lengths().to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(lengths != lengths[:1])[:1]:
        raise InputError(path, name, int(lengths[row]), f"record {row}: has {lengths[row]} values, not {lengths[0]}")
    if values.null_count:
        place = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]
        raise InputError(path, name, None, f"record {place // lengths[0]}, column {place % lengths[0]}: is missing")
    return values.to_numpy(zero_copy_only=False).reshape(len(array), lengths[0] if len(array) else 0)
