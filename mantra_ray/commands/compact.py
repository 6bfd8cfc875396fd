"""`mantra compact`: the many small files of a sweep's results become one a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from mantra_ray import terminal
from mantra_ray.sweep.compact import compact
from mantra_ray.sweep.folder import sweep_folder
from mantra_ray.sweep.options import shown
from mantra_ray.sweep.progress import Display


@dataclass(frozen=True)
class CompactOptions:
    """Put the rows of all trials of a sweep into one file a table; nothing that reads them sees a difference."""

    folder: Annotated[tyro.conf.Positional[str], shown("FOLDER")]
    """Folder or address of the sweep."""


def main(args: Sequence[str]) -> int:
    """Run `mantra compact ARGS`; returns the exit code."""
    options = tyro.cli(CompactOptions, args=list(args), prog="mantra compact")
    console = terminal.console()
    _, store, _ = sweep_folder(options.folder)
    with Display(console) as display:
        done = compact(store, display.stage)
    console.print(f"{done.trials} trials: {done.before} files are now {done.after}.", highlight=False)
    return 0
