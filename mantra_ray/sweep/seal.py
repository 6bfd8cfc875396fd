"""A seal in a Parquet file's metadata: the CRC-32 of its bytes, so that a reader knows a wrong byte anywhere in it."""

from __future__ import annotations

import mmap
import re
import zlib
from pathlib import Path

KEY, BLANK = "mantra_ray.crc32", "00000000"
METADATA = {KEY: BLANK}  # what a writer adds, to be sealed when the file is complete
# In the footer a value follows its key after two bytes: its field's header and its length.
PLACE = re.compile(re.escape(KEY.encode()) + rb"..([0-9a-f]{8})", re.DOTALL)
FOOTER = 1 << 16  # bytes at the end in which the seal is looked for first


def seal(path: Path) -> None:
    """Seal a file that was written with `METADATA`."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        begin = _find(data)
        data[begin : begin + len(BLANK)] = _crc(data, begin)


def sealed(data: bytes) -> bytes:
    """The bytes of a file that was written with `METADATA`, sealed."""
    begin = _find(data)
    return data[:begin] + _crc(data, begin) + data[begin + len(BLANK) :]


def check(data: bytes | mmap.mmap) -> bool:
    """Whether there is a seal; ValueError if the bytes are not those that were sealed."""
    begin = _find(data)
    if begin >= 0 and data[begin : begin + len(BLANK)] != _crc(data, begin):
        raise ValueError("its bytes are not those that were written")
    return begin >= 0


def _find(data: bytes | mmap.mmap) -> int:
    """Where the seal's digits begin; -1 if there is none."""
    for begin in (max(0, len(data) - FOOTER), 0):
        if found := PLACE.search(data, begin):
            return found.start(1)
    return -1


def _crc(data: bytes | mmap.mmap, begin: int) -> bytes:
    view = memoryview(data)
    try:
        value = zlib.crc32(BLANK.encode(), zlib.crc32(view[:begin]))
        return f"{zlib.crc32(view[begin + len(BLANK) :], value):08x}".encode()
    finally:
        view.release()
