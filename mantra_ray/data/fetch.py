"""Fetching catalogued files: resumed where a transfer broke off, verified, and whole or not there."""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from mantra_ray import __version__
from mantra_ray.data.sources import CataloguedFile, advice, data_folder
from mantra_ray.errors import InputError

CHUNK = 1 << 20  # bytes
TIMEOUT = 30.0  # seconds without a byte
PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP states that another attempt may cure
NETWORK = (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, ConnectionError, TimeoutError)

Report = Callable[[int], None]  # takes the bytes that are there


def hash_file(path: str | Path, algorithm: str = "sha256") -> str:
    """Hash of a file's content in hex digits; InputError if it cannot be read."""
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, algorithm).hexdigest()
    except OSError as error:
        raise InputError(path, "file", type(error).__name__, f"cannot be read: {error.strerror}") from error


def catalogued_file(entry: CataloguedFile, folder: str) -> Path:
    """Path of a catalogued file in `folder` (default: from the environment), its content checked, or InputError."""
    path = data_folder(folder, entry.name, advice(entry)) / entry.name
    if not path.is_file():
        raise InputError(path, "file", str(path), f"there is no such file; {advice(entry, path.parent)}")
    _verify(entry, path)
    return path


def part_of(path: Path) -> Path:
    """Where a transfer to `path` that broke off waits to be resumed."""
    return path.with_name(path.name + ".part")


def fetch(
    entry: CataloguedFile, folder: Path, report: Report = lambda done: None, attempts: int = 5, wait: float = 1.0
) -> bool:
    """Put a catalogued file into `folder`; False if it was there already.

    Bytes go to NAME.part, which a later call resumes by an HTTP range; only content whose size and hashes agree gets
    the file's name. A server that sends the wrong content is asked once more, from the first byte. `attempts` failures
    in a row that bring nothing new end it, with waits of `wait` seconds and doubling between them.

    Raises InputError, with the way to get the file by hand, if that fails, or at once if a file of that name has
    other content.
    """
    path = folder / entry.name
    if path.exists():
        _verify(entry, path)
        report(entry.size)
        return False
    if not entry.url:
        raise InputError(path, "file", entry.name, f"no address has it as it is; {advice(entry, folder)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if part_of(path).is_symlink():
            part_of(path).unlink()  # bytes would go where it points
        for resumed in (True, False) if part_of(path).exists() else (False,):
            _transfer(entry, path, report, attempts, wait)
            try:
                _verify(entry, part_of(path))
                break
            except InputError:
                part_of(path).unlink()
                if not resumed:  # what was resumed may have begun with another file's bytes
                    raise
        os.replace(part_of(path), path)
    except OSError as error:
        raise InputError(path, "file", type(error).__name__, f"cannot be written: {error.strerror}") from error
    return True


def _transfer(entry: CataloguedFile, path: Path, report: Report, attempts: int, wait: float) -> None:
    """Bring NAME.part to the file's full size, or raise InputError."""
    part, failures = part_of(path), 0
    furthest = _size(part)
    while _size(part) < entry.size:
        try:
            _append(entry, part, report)
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"the server answers {error.code} {error.reason}"
            if error.code == 416:  # the server's file is shorter than what we hold
                part.unlink(missing_ok=True)
            elif error.code not in PASSING:
                raise _failure(entry, path, reason) from error
        except NETWORK as error:
            reason = str(getattr(error, "reason", "") or error or type(error).__name__)
        failures = 0 if _size(part) > furthest else failures + 1
        furthest = max(furthest, _size(part))
        if failures >= attempts:
            raise _failure(entry, path, reason)
        if _size(part) < entry.size:
            time.sleep(wait * 2 ** max(failures - 1, 0))


def _append(entry: CataloguedFile, part: Path, report: Report) -> None:
    """Ask once for what `part` lacks and write what comes."""
    have = _size(part)
    headers = {"User-Agent": f"mantra_ray/{__version__}"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(entry.url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status not in (200, 206):  # as 202 without content, by which figshare turns robots away
            raise http.client.HTTPException(f"the server answers {response.status} {response.reason}")
        continued = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if response.status == 206 and not continued:
            part.unlink(missing_ok=True)
            raise http.client.HTTPException("the server sent another range than it was asked for")
        with part.open("ab" if continued else "wb") as handle:  # a server without ranges starts over
            done = have if continued else 0
            while done <= entry.size and (block := response.read(CHUNK)):
                handle.write(block)
                done += len(block)
                report(done)


def _verify(entry: CataloguedFile, path: Path) -> None:
    """InputError unless size and hashes are the catalogue's."""
    checks = {"size": entry.size, "sha256": entry.sha256} | ({"md5": entry.md5} if entry.md5 else {})
    for name, wanted in checks.items():
        found = _size(path) if name == "size" else hash_file(path, name)
        if found != wanted:
            final = path.with_name(entry.name)
            raise InputError(final, name, found, f"is not the catalogued file; {advice(entry, path.parent)}")


def _failure(entry: CataloguedFile, path: Path, reason: str) -> InputError:
    kept = _size(part_of(path))
    kept = f" ({kept:,} bytes are kept in {part_of(path).name} and will be resumed)" if kept else ""
    return InputError(path, "url", entry.url, f"cannot be fetched: {reason}{kept}; {advice(entry, path.parent)}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
