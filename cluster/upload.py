"""Copies a sweep's rows to a bucket, or any address of fsspec; run again, it copies what is new.

python cluster/upload.py /mnt/mantra/runs/cam_geometry s3://BUCKET/runs/cam_geometry
mantra results s3://BUCKET/runs/cam_geometry

For a sweep that still runs, or that ran without --copy-to. The sweep itself needs a folder that all nodes share: it
renames files into place, which buckets cannot.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mantra_ray.files import place
from mantra_ray.secrets import scrubbed
from mantra_ray.sweep.upload import upload


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
        parser.error(scrubbed(str(error)))
    print(f"{upload(options.sweep, target)} files copied to {scrubbed(options.address)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
