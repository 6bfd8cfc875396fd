"""Copies a sweep's rows to a bucket, or any address of fsspec; run again, it copies what is new.

python cluster/upload.py /mnt/mantra/runs/cam_geometry s3://BUCKET/runs/cam_geometry
mantra results s3://BUCKET/runs/cam_geometry

A sweep itself needs a folder that all nodes share: it renames files into place, which buckets cannot.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from mantra_ray.files import Place, atomic, listing, place

TABLES = ("trials", "scores", "records", "curves")


def upload(source: Path, target: Place) -> int:
    """Copy rows that the target lacks or holds in another size, then `sweep.json`; returns how many files.

    A trial's row in `trials` goes last, as it is written, so that a trial which has one there is whole.
    """
    count = 0
    for table in reversed(TABLES):
        there = {name: stamp[0] for name, stamp in listing(target / "results" / table).items()}
        for name, stamp in sorted(listing(source / "results" / table).items()):
            if name.endswith(".parquet") and not name.startswith(".") and there.get(name) != stamp[0]:
                put(source / "results" / table / name, target / "results" / table / name)
                count += 1
    put(source / "sweep.json", target / "sweep.json")
    return count


def put(source: Path, target: Place) -> None:
    """Copy one file, in one piece."""
    with atomic(target) as partial:
        shutil.copyfile(source, partial)


def main(args: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="folder of the sweep")
    parser.add_argument("address", help="where it goes")
    options = parser.parse_args(args)
    if not (options.sweep / "sweep.json").is_file():
        parser.error(f"{options.sweep} holds no sweep.json: it is no sweep's folder")
    try:
        target = place(options.address)
    except ValueError as error:  # no package for that kind of address
        parser.error(str(error))
    print(f"{upload(options.sweep, target)} files copied to {options.address}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
