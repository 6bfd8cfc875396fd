"""The files of one table: which of them speaks for which trial, and reading them past those that are damaged."""

from __future__ import annotations

import contextlib
import functools
import json
import mmap
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from mantra_ray.errors import InputError
from mantra_ray.files import Place, Remote, Stamp, listing
from mantra_ray.sweep import seal
from mantra_ray.sweep.schema import SCHEMAS, VERSION, migrate, version_of

LOOSE = re.compile(r"([0-9a-f]{16})\.parquet")  # one trial
COMPACT = re.compile(r"compact-(\d{6})-[0-9a-f]{8}\.parquet")  # many; the higher number is newer
TRIALS_KEY = "mantra_ray.trials"  # which trials a file speaks for, in its metadata
# What decoding wrong bytes may raise; a file that is gone (FileNotFoundError) is no damage.
DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, MemoryError, OverflowError)
THREADS = 8
FEW = 16  # files that are read faster without threads

In, Out = TypeVar("In"), TypeVar("Out")


class DamagedFile(UserWarning):
    """A file of results that cannot be read; it counts as not there."""


def tell(file: object, problem: object) -> None:
    """Warn of a file that counts as not there."""
    said = " ".join(str(problem).split())
    warnings.warn(f"{file} is damaged and counts as not there: {said}", DamagedFile, stacklevel=2)


def each(function: Callable[[In], Out], items: Collection[In]) -> list[Out]:
    """`function` of every item, in order; on threads where there are many."""
    if len(items) < FEW:
        return [function(item) for item in items]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, items))


@dataclass(frozen=True)
class CompactFile:
    """One file with the rows of many trials, sorted by trial."""

    path: Place
    table: str
    version: int
    trials: frozenset[str]

    @staticmethod
    def open(path: Place, table: str) -> CompactFile:
        """What the file's metadata say; raises what `DAMAGE` lists if they cannot be read."""
        metadata = pq.read_metadata(_source(path)).metadata or {}
        trials = json.loads(metadata[TRIALS_KEY.encode()])
        return CompactFile(path, table, version_of(metadata, path), frozenset(trials))

    def rows(self, trials: Collection[str], columns: list[str] | None = None, where: Any = None) -> pa.Table:
        """Rows of some of its trials; without `where` fewer than `columns` where the file lacks one."""
        options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)  # no seal: it may be read in part
        form = ds.ParquetFileFormat(default_fragment_scan_options=options)
        source = ds.dataset(self.path.path if isinstance(self.path, Remote) else str(self.path), format=form,
                            filesystem=self.path.filesystem if isinstance(self.path, Remote) else None)  # fmt: skip
        mine = None if len(trials) == len(self.trials) else ds.field("trial").isin(sorted(trials))
        if self.version < VERSION:
            rows = migrate(self.table, source.to_table(filter=mine), self.version)
            return choose(rows, columns, where)
        both = [part for part in (mine, where) if part is not None]
        names = columns and [name for name in columns if name in source.schema.names]
        return source.to_table(columns=names, filter=functools.reduce(lambda a, b: a & b, both) if both else None)


@dataclass(frozen=True)
class TableFiles:
    """What lies in a table's folder. A trial's own file goes before compact ones, a newer one of these before older."""

    folder: Place
    loose: dict[str, Stamp]  # by trial
    compact: list[CompactFile]  # newest first
    stamps: dict[str, Stamp]  # of the compact files, by name

    @staticmethod
    def find(folder: Place, table: str, seen: dict[str, tuple[Stamp, Any]]) -> TableFiles:
        """List a table's folder; `seen` remembers the metadata of compact files, which may be long."""
        loose, stamps, compact = {}, {}, []
        for name, stamp in sorted(listing(folder).items(), reverse=True):
            if match := LOOSE.fullmatch(name):
                loose[match[1]] = stamp
            elif COMPACT.fullmatch(name):
                path, key = folder / name, f"{table}/{name}"
                if seen.get(key, (None,))[0] != stamp:
                    seen[key] = stamp, attempt(lambda path=path: CompactFile.open(path, table), path)
                if seen[key][1] is not None:
                    compact.append(seen[key][1])
                    stamps[name] = stamp
            elif name.endswith(".parquet"):
                tell(folder / name, "it has no name of a file of results")
        return TableFiles(folder, loose, compact, stamps)

    def path(self, trial: str) -> Place:
        """A trial's own file."""
        return self.folder / f"{trial}.parquet"

    def shares(self, trials: Iterable[str] | None) -> tuple[list[str], list[tuple[CompactFile, set[str]]]]:
        """Which of `trials` (all if None) are read from their own file, sorted, and which from compact ones."""
        wanted = None if trials is None else set(trials)
        own = sorted(self.loose if wanted is None else self.loose.keys() & wanted)
        taken, rest = set(self.loose), []
        for file in self.compact:
            mine = file.trials - taken
            taken |= file.trials
            if mine := mine if wanted is None else mine & wanted:
                rest.append((file, mine))
        return own, rest


def attempt(read: Callable[[], Out], file: Place) -> Out | None:
    """What `read` gives, or None with a warning if the file is damaged."""
    try:
        return read()
    except (InputError, FileNotFoundError):  # of another version; gone since it was listed
        raise
    except DAMAGE as error:
        tell(file, error)
        return None


def is_sealed(data: bytes | mmap.mmap, file: Place) -> bool:
    """Whether a file has a seal; ValueError if its bytes are wrong, or those of another trial's file."""
    whole, own = seal.check(data), LOOSE.fullmatch(file.name)
    if whole and own and data.rfind(json.dumps([own[1]]).encode()) < 0:  # strings stand in the footer as they are
        raise ValueError("it is another trial's file")
    return whole


def decode(data: bytes, table: str, file: Place, columns: list[str] | None = None) -> pa.Table:
    """Rows of a trial's own file as today's version has them; raises what `DAMAGE` lists if its bytes are wrong."""
    whole = is_sealed(data, file)
    parquet = pq.ParquetFile(pa.BufferReader(data))
    version = version_of(parquet.metadata.metadata, file)
    if version == VERSION:
        if not whole:
            raise ValueError("it has no seal")
        rows = parquet.read(columns, use_threads=False)
    else:
        rows = migrate(table, parquet.read(use_threads=False), version)
        rows = rows.select([name for name in columns if name in rows.column_names]) if columns else rows
    return rows.replace_schema_metadata()


def inspect(data: bytes | mmap.mmap, table: str, file: Place) -> None:
    """Raise what `DAMAGE` lists if a file's bytes are wrong; what has no seal is decoded to see."""
    if not is_sealed(data, file):
        decode(bytes(data), table, file)


@contextlib.contextmanager
def opened(path: Place) -> Iterator[bytes | mmap.mmap]:
    """The bytes of a file that may be large."""
    if isinstance(path, Remote):
        yield path.read_bytes()
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def choose(rows: pa.Table, columns: list[str] | None, where: Any) -> pa.Table:
    """The columns of the rows where a pyarrow expression holds."""
    return ds.dataset(rows).to_table(columns=columns, filter=where)


def join(table: str, parts: list[pa.Table]) -> pa.Table:
    """Tables below each other, in order of trial if they differ in columns; a column that some lack is null there."""
    groups: list[list[pa.Table]] = []
    for part in parts:
        same = next((group for group in groups if group[0].schema.equals(part.schema)), None)
        same.append(part) if same else groups.append([part])
    rows = [pa.concat_tables(group) for group in groups]  # promoting each of thousands would take seconds
    rows = pa.concat_tables([SCHEMAS[table].empty_table(), *rows], promote_options="permissive")
    return rows.sort_by("trial") if len(groups) > 1 else rows


def _source(path: Place) -> Any:
    return pa.BufferReader(path.read_bytes()) if isinstance(path, Remote) else str(path)
