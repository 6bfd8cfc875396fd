"""`mantra merge`: the results of several sweeps as those of one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from mantra_ray import terminal
from mantra_ray.errors import InputError
from mantra_ray.files import Remote, atomic, place
from mantra_ray.secrets import scrubbed
from mantra_ray.sweep.compact import merge
from mantra_ray.sweep.folder import sweep_folder
from mantra_ray.sweep.options import check_writable, shown
from mantra_ray.sweep.progress import Display
from mantra_ray.sweep.store import Store

BEST = {"done": 0, "pruned": 1, "failed": 2}  # which rows of a trial that several sweeps ran are taken


@dataclass(frozen=True)
class MergeOptions:
    """Join the results of sweeps: each trial once, a finished run of it before a failed one, else the first folder's.

    TensorBoard files and artifacts stay where they are.
    """

    folders: Annotated[tyro.conf.Positional[tuple[str, ...]], shown("FOLDER FOLDER ...")]
    """Folders or addresses of the sweeps."""
    out: Annotated[str, shown("FOLDER")]
    """Folder of the joint sweep, which must not exist yet."""


def owners(stores: Sequence[Store], described: Sequence[Sequence[str]]) -> list[list[str]]:
    """The trials that are taken from each store."""
    found: dict[str, tuple[int, int]] = {}
    for i, (store, trials) in enumerate(zip(stores, described, strict=True)):
        wanted = set(trials)
        for trial, status in store.ended().items():
            if trial in wanted:
                found[trial] = min(found.get(trial, (len(BEST), 0)), (BEST.get(status, len(BEST)), i))
    return [[trial for trial, (_, owner) in found.items() if owner == i] for i in range(len(stores))]


def main(args: Sequence[str]) -> int:
    """Run `mantra merge ARGS`; returns the exit code."""
    options = tyro.cli(MergeOptions, args=list(args), prog="mantra merge")
    console = terminal.console()
    if len(options.folders) < 2:
        raise InputError("options", "FOLDER", " ".join(options.folders), "needs at least two sweeps")
    sweeps = [sweep_folder(folder) for folder in options.folders]
    try:
        out = place(options.out)
    except ValueError as error:
        raise InputError("options", "--out", options.out, str(error)) from error
    if out.exists():
        raise InputError("options", "--out", options.out, "exists already")
    if "://" not in options.out:
        check_writable(out)
    stores = [store for _, store, _ in sweeps]
    shares = owners(stores, [trials for _, _, trials in sweeps])
    trials = list(dict.fromkeys(trial for _, _, trials in sweeps for trial in trials))
    try:
        with Display(console) as display:
            merge(zip(stores, shares, strict=True), Store(out / "results"), display.stage)
        with atomic(out / "sweep.json") as partial:
            partial.write_text(json.dumps({"trials": trials, "timing": None}, indent=1))
    except BaseException:
        if not isinstance(out, Remote):
            shutil.rmtree(out, ignore_errors=True)
        raise
    for folder, share in zip(options.folders, shares, strict=True):
        console.print(f"{len(share)} trials from {scrubbed(folder)}", highlight=False, markup=False)
    count = sum(map(len, shares))
    console.print(f"{count} of {len(trials)} trials have rows in {scrubbed(options.out)}", highlight=False)
    return 0
