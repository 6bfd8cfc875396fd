"""Copies a sweep's tables to another folder or to an address of fsspec: a bucket, say."""

from __future__ import annotations

import shutil
from pathlib import Path

from mantra_ray.errors import InputError
from mantra_ray.files import Place, atomic, listing
from mantra_ray.sweep.schema import SCHEMAS

LAST = "trials"  # as when they are written, so that a trial which has a row there is whole


def upload(source: Path, target: Place) -> int:
    """Copy rows that the target lacks or holds in another size, then `sweep.json`; returns how many files of rows.

    Raises InputError for a link: in a folder from elsewhere it may point to what is to stay here.
    """
    count = 0
    for table in sorted(SCHEMAS, key=lambda name: name == LAST):
        there = {name: stamp[0] for name, stamp in listing(target / "results" / table).items()}
        for name, stamp in sorted(listing(source / "results" / table).items()):
            if name.endswith(".parquet") and not name.startswith(".") and there.get(name) != stamp[0]:
                put(source / "results" / table / name, target / "results" / table / name)
                count += 1
    put(source / "sweep.json", target / "sweep.json")
    return count


def put(source: Path, target: Place) -> None:
    """Copy one file, in one piece."""
    if source.is_symlink():
        raise InputError(source, "file", source.name, "is a link; rows are copied from plain files alone")
    with atomic(target) as partial:
        shutil.copyfile(source, partial)
