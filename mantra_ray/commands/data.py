"""`mantra data list | fetch | describe | import`: public data sets, and what a data set holds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from mantra_ray import terminal
from mantra_ray.config import DataConfig
from mantra_ray.data.catalog import possible_splits, read_screen
from mantra_ray.data.describe import count_by, missing_parts, save_picture, totals
from mantra_ray.data.fetch import fetch, part_of
from mantra_ray.data.sources import CATALOG, FOLDER_VARIABLE, DataSet, data_folder, find_set
from mantra_ray.errors import InputError

USAGE = """usage: mantra data list                     the catalogued data sets, and which of them are here
       mantra data fetch NAME               download one of them, verified
       mantra data describe NAME|FILE       counts, what is missing, and a picture
       mantra data import FILE.h5ad         make records of cells
Each takes --help."""

Folder = Annotated[
    str, tyro.conf.arg(metavar="FOLDER", help_behavior_hint=f"(default: the environment variable {FOLDER_VARIABLE})")
]


@dataclass(frozen=True)
class ListOptions:
    """List the catalogued data sets."""

    data_dir: Folder = ""
    """Folder of the catalogued files."""


@dataclass(frozen=True)
class FetchOptions:
    """Download a catalogued data set: interrupted transfers are resumed, contents verified by hash."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Name of the set, from `mantra data list`."""
    data_dir: Folder = ""
    """Folder that takes the files."""
    attempts: int = 5
    """Failures in a row, none of which brings anything new, after which a transfer is given up."""


@dataclass(frozen=True)
class DescribeOptions:
    """Print what a data set holds and lacks, and save a picture of it."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME|FILE")]
    """A catalogued data set (sim, morphic) or a file of records (.npz or .parquet)."""
    data_dir: Folder = ""
    """Folder of the catalogued files."""
    top: int = 10
    """Rows of each table."""
    picture: Annotated[str, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: NAME.png in this folder)")] = ""
    """Where the picture goes (.png)."""


def main(args: Sequence[str]) -> int:
    """Run `mantra data ...`; returns the exit code and raises InputError for unusable input."""
    console = terminal.console()

    def parsed(kind: type, rest: Sequence[str]):
        return tyro.cli(kind, args=list(rest), description=kind.__doc__, prog=f"mantra data {args[0]}")

    match list(args):
        case ["list", *rest]:
            list_sets(parsed(ListOptions, rest), console)
        case ["fetch", *rest]:
            fetch_set(parsed(FetchOptions, rest), console)
        case ["describe", *rest]:
            describe(parsed(DescribeOptions, rest), console)
        case ["import", *rest]:
            from mantra_ray.commands.data_import import main as import_cells  # brings h5py and Ray

            return import_cells(rest)
        case ["-h" | "--help"]:
            print(USAGE)
        case _:
            print(USAGE, file=sys.stderr)
            return 2
    return 0


def list_sets(options: ListOptions, console: Console) -> None:
    """Print name, content, size, licence and presence of every catalogued set."""
    try:
        folder = data_folder(options.data_dir, "the catalogued files")
    except InputError:
        folder = None
    table = Table("name", "what", "size", "licence", "here")
    for name, entry in CATALOG.items():
        size = decimal(sum(file.size for file in entry.files)) if entry.files else ""
        licences = ", ".join(dict.fromkeys(file.licence for file in entry.files))
        table.add_row(name, entry.what, size, licences, _presence(entry, folder))
    console.print(table)
    where = str(folder) if folder else f"no folder is named (--data-dir or {FOLDER_VARIABLE})"
    console.print(f"Looked in: {where}. Contents are verified when they are read.", markup=False, soft_wrap=True)


def _presence(entry: DataSet, folder: Path | None) -> str:
    if not entry.files:
        return "built in"
    if folder is None:
        return "?"
    paths = [folder / file.name for file in entry.files]
    whole = [p.is_file() and p.stat().st_size == f.size for p, f in zip(paths, entry.files, strict=True)]
    begun = [part_of(path).stat().st_size for path in paths if part_of(path).is_file()]
    if all(whole):
        return "yes"
    text = f"{sum(whole)} of {len(whole)} files" if any(whole) else "no"
    return text + (f", {decimal(sum(begun))} begun" if begun else "")


def fetch_set(options: FetchOptions, console: Console) -> None:
    """Fetch every file of a set that has an address; InputError, after saying how to get the others, if any lacks."""
    if options.attempts < 1:
        raise InputError("options", "--attempts", options.attempts, "must be at least 1")
    entry = find_set(options.name)
    if not entry.files:
        console.print(f"{options.name} is built in: there is nothing to fetch")
        return
    folder, problems = data_folder(options.data_dir, f"the files of {options.name}"), []
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress:
        for file in entry.files:
            task = progress.add_task(file.name, total=file.size)

            def report(done: int, task=task) -> None:
                progress.update(task, completed=done)

            try:
                fetched = fetch(file, folder, report, options.attempts)
            except InputError as error:
                problems.append(error)
                continue
            finally:
                progress.remove_task(task)
            state = "fetched, verified" if fetched else "was here, verified"
            console.print(f"{folder / file.name}: {state}", markup=False, soft_wrap=True)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        for error in problems:
            console.print(f"missing: {error}", markup=False, soft_wrap=True)
        names = ", ".join(Path(error.file).name for error in problems)
        problem = f"{len(problems)} of {len(entry.files)} files are missing; how to get each stands above"
        raise InputError(options.name, "files", names, problem)
    if entry.recipe:
        recipe = entry.recipe.replace("FILE", str(folder / entry.files[0].name))
        console.print(f"make records of it by: {recipe} --out records.parquet", markup=False, soft_wrap=True)


def describe(options: DescribeOptions, console: Console) -> None:
    """Print the counts of a data set and save its picture."""
    if options.top < 1:
        raise InputError("options", "--top", options.top, "must be at least 1")
    screen = read_screen(DataConfig(data=options.data, data_dir=options.data_dir))
    picture = Path(options.picture or f"{screen.name}.png")
    if picture.suffix.lower() != ".png":
        raise InputError("options", "--picture", str(picture), "must end in .png")
    try:
        screen = screen if screen.splits else possible_splits(screen)
    except InputError as error:  # too few records to split are still worth a description
        console.print(f"note: {error}", markup=False)
    sizes = Table("what", "how many", title=escape(screen.name))
    for name, size in totals(screen).items():
        sizes.add_row(name, escape(size))
    console.print(sizes)
    for field in ("regulator", "dose", "state", "strategy"):
        counts = count_by(screen.data, field)
        if len(counts.names) < 2 and field in ("state", "strategy"):
            continue
        others = [name for name in ("regulators", "doses", "states") if name != field + "s"]
        table = Table(field, "records", *others, "RMS change", title=f"records by {field}")
        for i, name in list(enumerate(counts.names))[: options.top]:
            numbers = (getattr(counts, column)[i] for column in ("records", *others))
            table.add_row(escape(name), *(f"{number:,}" for number in numbers), f"{counts.effect[i]:.3g}")
        rest = len(counts.names) - options.top
        if rest > 0:
            table.add_row(f"and {rest:,} more", f"{counts.records[options.top :].sum():,}", end_section=True)
        console.print(table)
        if field == "regulator":
            console.print(f"regulators by number of records: {_spread(counts.records, options.top)}", soft_wrap=True)
    for text in missing_parts(screen):
        console.print(f"note: {text}", markup=False, soft_wrap=True)
    save_picture(screen, picture)
    console.print(f"picture: {picture}", markup=False, soft_wrap=True)


def _spread(records: np.ndarray, limit: int) -> str:
    """How many regulators have how many records, or the range where that were a long list."""
    sizes, regulators = np.unique(records, return_counts=True)
    if len(sizes) > limit:
        return f"{sizes[0]:,} to {sizes[-1]:,}, median {np.median(records):,.0f}"
    return ", ".join(f"{n:,} with {size:,}" for size, n in zip(sizes, regulators, strict=True))
