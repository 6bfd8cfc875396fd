"""`mantra data import`: single cells or pseudo-bulks (.h5ad) become a file of records."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mantra_ray.data.blocks import in_process, over_ray
from mantra_ray.data.cells import import_cells
from mantra_ray.data.cohort import CellOptions
from mantra_ray.data.h5ad import opened
from mantra_ray.data.pseudobulk import import_pseudobulk
from mantra_ray.data.records import PerturbationData
from mantra_ray.data.storage import write_npz, write_parquet
from mantra_ray.errors import InputError
from mantra_ray.sweep.cluster import connected
from mantra_ray.sweep.options import check_writable, shown

WRITERS = {".npz": write_npz, ".parquet": write_parquet}
RAY_BLOCKS = 40  # a smaller file is read before Ray would have started
SYMBOLS = "gene_name"  # the presets' annotation of the genes, used where the file has it
BULK_OPTIONS = {"preset", "out", "control", "gene_column", "suffix_duplicates", "matrix", "log_means"}


@dataclass(frozen=True)
class Options:
    """Options of the import."""

    file: Annotated[Path, tyro.conf.Positional]
    """AnnData file (.h5ad) with counts of cells, or with pseudo-bulks where the preset says so."""
    out: Annotated[Path, shown("FILE")]
    """File of records to write (.npz or .parquet)."""
    preset: Literal["none", "k562-gwps", "k562-bulk"] = "none"
    """Columns of the genome-wide Perturb-seq screen in K562 (Replogle et al. 2022): its cells, or its pseudo-bulks with
    rows named like 10023_ZZZ3_P1P2_ENSG00000036549. Other options still apply on top."""
    log_means: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Pseudo-bulks are means of counts: take log2(1 + x) of them."""
    address: Annotated[str, shown("ADDRESS", "Ray on this machine for large files, no Ray for small ones")] = ""
    """Address of a Ray cluster whose nodes all see the file under this name, or auto."""
    cells: CellOptions = field(default_factory=CellOptions)


PRESETS = {
    "none": CellOptions(),
    "k562-gwps": CellOptions(
        regulator_column="gene",
        batch_column="gem_group",
        mito_column="mitopercent",
        umi_column="UMI_count",
        control="non-targeting",
        suffix_duplicates=True,
    ),
    "k562-bulk": CellOptions(control="non-targeting", suffix_duplicates=True),
}


def main(args: Sequence[str]) -> int:
    """Run the command; returns the exit code 0, raises InputError for unusable input."""
    options = parse(args)
    console = Console()
    with _shown_progress(console) as on_progress:
        data, notes = _import(options, on_progress)
        WRITERS[options.out.suffix.lower()](data, options.out)
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True)
    cells = "" if data.n_cells is None else f" of {data.n_cells.sum():,.0f} cells"
    console.print(
        f"{options.out}: {len(data):,} records{cells}, {len(data.regulator_names):,} regulators, "
        f"{len(data.state_names)} states, {len(data.gene_names):,} genes",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def parse(args: Sequence[str]) -> Options:
    """Options from the command line on top of the preset's, checked; exits with help or a message as argparse does."""
    configuration = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    command = {"prog": "mantra data import", "description": __doc__, "config": configuration}
    first = tyro.cli(Options, args=list(args), **command)
    given = {arg[2:].partition("=")[0].replace("-", "_").removeprefix("no_") for arg in args if arg.startswith("--")}
    if first.out.suffix.lower() not in WRITERS:
        raise InputError("options", "--out", str(first.out), f"must end in {' or '.join(WRITERS)}")
    check_writable(first.out.parent)
    if first.preset == "none":
        options = first
    else:
        # A second reading, so that the preset stands where the defaults stood.
        default = dataclasses.replace(first, log_means=False, cells=PRESETS[first.preset])
        options = tyro.cli(Options, args=list(args), default=default, **command)
        if "gene_column" not in given:
            with opened(options.file, options.cells.matrix) as file:
                column = SYMBOLS if SYMBOLS in file.var_columns else ""
            options = dataclasses.replace(options, cells=dataclasses.replace(options.cells, gene_column=column))
    if options.preset == "k562-bulk":
        for name in sorted(given - BULK_OPTIONS):
            raise InputError("options", "--" + name.replace("_", "-"), options.preset, "is of no use for this preset")
    elif options.log_means:
        raise InputError("options", "--log-means", options.preset, "is for pseudo-bulks alone")
    return options


def _import(options: Options, on_progress: Callable) -> tuple[PerturbationData, list[str]]:
    cells = options.cells
    if options.preset == "k562-bulk":
        where = (options.file, cells.control, cells.gene_column, cells.suffix_duplicates, cells.matrix)
        return import_pseudobulk(*where, options.log_means, on_progress)
    with opened(options.file, cells.matrix) as file:
        large = len(file.blocks()) >= RAY_BLOCKS and (os.cpu_count() or 1) > 1
    if not large and not options.address:
        return import_cells(options.file, cells, in_process, on_progress)
    with connected(options.address):
        return import_cells(options.file.absolute(), cells, over_ray, on_progress)


def _shown_progress(console: Console):
    """Gives the function (done, total, text) that moves a progress bar; silent where output is no terminal."""
    if not console.is_terminal:
        return nullcontext(lambda done, total, text: None)
    return _Bar(console)


class _Bar:
    def __init__(self, console: Console):
        columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, transient=True)

    def __enter__(self) -> Callable[[int, int, str], None]:
        self._progress.start()
        task = self._progress.add_task("reading", total=None)
        return lambda done, total, text: self._progress.update(task, completed=done, total=total, description=text)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
