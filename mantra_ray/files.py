"""Files that are either whole or not there, in a folder of this machine or at any address that fsspec knows."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mantra_ray.secrets import remember, scrubbed


@contextlib.contextmanager
def atomic(path: str | Path | Remote) -> Iterator[Path]:
    """A local path to write to; it becomes `path` when the block ends well and vanishes otherwise.

    Beside `path` on a local disk, so that it is renamed into place; for a remote path it is put there in one
    piece, which object stores show only when it is complete.
    """
    if isinstance(path, Remote):
        with tempfile.TemporaryDirectory() as folder:
            partial = Path(folder) / path.name
            yield partial
            path.filesystem.makedirs(path.parent.path, exist_ok=True)
            path.filesystem.put_file(str(partial), path.path)
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = unfinished(path)
    if partial.is_symlink():
        partial.unlink()  # the content would go where it points
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def unfinished(path: Path) -> Path:
    """What a file or folder is called while this process works on it."""
    return path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.partial")


def clear_unfinished(*folders: Path) -> None:
    """Remove from the folders what processes of this machine were working on when they were killed."""
    for left in (left for folder in folders for left in folder.glob(f".*.{platform.node()}-*.partial")):
        process = left.name.removesuffix(".partial").rpartition("-")[2]
        if process.isdigit() and not alive(int(process)):
            shutil.rmtree(left, ignore_errors=True)
            left.unlink(missing_ok=True)


def alive(process: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@dataclass(frozen=True)
class Remote:
    """A file or folder of an fsspec file system, with what of `pathlib.Path` the results need; can be pickled.

    As text it is without secrets, to be shown and not to be opened.
    """

    filesystem: Any
    path: str

    def __truediv__(self, name: str) -> Remote:
        return Remote(self.filesystem, f"{self.path.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return scrubbed(self.filesystem.unstrip_protocol(self.path))

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> Remote:
        """The folder that it lies in."""
        return Remote(self.filesystem, self.path.rstrip("/").rpartition("/")[0])

    def exists(self) -> bool:
        """Whether there is a file or folder."""
        return self.filesystem.exists(self.path)

    def read_bytes(self) -> bytes:
        """Content of the file; FileNotFoundError if there is none."""
        return self.filesystem.cat_file(self.path)

    def read_text(self) -> str:
        """Content of the file, UTF-8."""
        return self.read_bytes().decode()

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file."""
        try:
            self.filesystem.rm_file(self.path)
        except FileNotFoundError:
            if not missing_ok:
                raise


Place = Path | Remote


def place(address: str | Place) -> Place:
    """Where an address points: a path, or `s3://bucket/runs` and any other address of fsspec.

    Raises ValueError for an address of no known kind, one whose package is not installed or whose host does not answer.
    """
    if not isinstance(address, str) or "://" not in address:
        return address if isinstance(address, Remote) else Path(address)
    remember(address)
    import fsspec  # here, since it is slow to import
    from fsspec.implementations.local import LocalFileSystem

    try:
        filesystem, path = fsspec.core.url_to_fs(address)
    except (ImportError, OSError) as error:  # "Install s3fs to access S3"; a host that does not answer
        raise ValueError(scrubbed(str(error))) from error
    return Path(path) if isinstance(filesystem, LocalFileSystem) else Remote(filesystem, path)


Stamp = tuple[Any, ...]


def listing(folder: Place) -> dict[str, Stamp]:
    """Files of a folder, by name, with a stamp that changes when the file does; none if there is no folder."""
    if isinstance(folder, Remote):
        folder.filesystem.invalidate_cache(folder.path)  # other processes write there too
        try:
            entries = folder.filesystem.ls(folder.path, detail=True)
        except FileNotFoundError:
            return {}
        times = ("ETag", "etag", "mtime", "LastModified", "last_modified", "created")
        return {
            entry["name"].rpartition("/")[2]: (entry["size"], *(str(entry[name]) for name in times if name in entry))
            for entry in entries
            if entry["type"] == "file"
        }
    found = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                    if entry.is_file():
                        status = entry.stat()
                        found[entry.name] = (status.st_size, status.st_mtime_ns, status.st_ino)
    except FileNotFoundError:
        return {}
    return found
