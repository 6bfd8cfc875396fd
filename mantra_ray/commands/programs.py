"""`mantra programs fit | choose-k`: gene programs W of changes or of counts, and how many there are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mantra_ray import terminal
from mantra_ray.cascade.consensus import Rows, Stability
from mantra_ray.cascade.count_programs import fit_count_programs, gene_statistics, over_dispersed, scaled_counts
from mantra_ray.cascade.programs import TOLERATED_LOSS, check_rank, choose_k, fit_programs, halves
from mantra_ray.config import DataConfig, ExperimentConfig, ProgramsConfig
from mantra_ray.data.catalog import read_screen
from mantra_ray.data.counts import is_counts, read_counts
from mantra_ray.errors import InputError
from mantra_ray.files import atomic
from mantra_ray.sweep.cluster import connected
from mantra_ray.sweep.options import check_ranges, check_writable, shown
from mantra_ray.training.stages import variable_genes

USAGE = """usage: mantra programs fit --data NAME|FILE [options]        fit programs W (all options: --help)
       mantra programs choose-k --data NAME|FILE [options]   stability and error over a range of K"""
TOP = 8  # genes of a program that are printed
# What single cells need (Kotliar et al. 2019), unlike the few and strong changes of a sweep's training fold.
THOROUGH = ProgramsConfig(restarts=20, iterations=1000, tolerance=1e-4)


@dataclass(frozen=True)
class FitOptions:
    """Options of `mantra programs fit`."""

    data: Annotated[str, shown("NAME|FILE", "sim")] = "sim"
    """Changes: a built-in data set (sim, morphic) or records (.npz or .parquet). Counts of cells: .h5ad, or a sparse
    matrix cells x genes as scipy saves it (.npz)."""
    data_dir: Annotated[str, shown("FOLDER", "the environment variable MANTRA_DATA_DIR")] = ""
    """Folder of the built-in data sets' files."""
    gene_names: Annotated[str, shown("FILE", "genes are counted")] = ""
    """Names of the genes of a sparse .npz, one a line."""
    genes: int = 2000
    """Genes that programs are fitted on (0: all): of changes the most variable, of counts the most over-dispersed."""
    clip: float = 5.0
    """Changes are clipped to plus or minus this many log2 units."""
    programs: ProgramsConfig = field(default_factory=lambda: THOROUGH)
    seed: int = 0
    """Seed of the restarts."""
    out: Annotated[str, shown("FOLDER", "out/programs")] = "out/programs"
    """Folder of the files."""
    address: Annotated[str, shown("ADDRESS", "start Ray on this machine")] = ""
    """Address of a Ray cluster, or auto."""

    def check(self) -> None:
        """Raise InputError for a value that cannot be."""
        for name in ("genes", "seed"):
            if getattr(self, name) < 0:
                raise InputError("options", f"--{name}", getattr(self, name), "must be at least 0")
        if not self.clip > 0:
            raise InputError("options", "--clip", self.clip, "must be above 0")
        check_ranges(ExperimentConfig(programs=self.programs))
        check_writable(Path(self.out))


@dataclass(frozen=True)
class ChooseOptions(FitOptions):
    """Options of `mantra programs choose-k`."""

    ks: Annotated[tuple[int, ...], shown("K ...", "5 10 15 20 25 30 40 50")] = (5, 10, 15, 20, 25, 30, 40, 50)
    """Numbers of programs to compare."""

    def check(self) -> None:
        """Raise InputError for a value that cannot be."""
        super().check()
        if self.programs.method != "nmf":
            raise InputError("options", "--programs.method", self.programs.method, "only restarts of nmf can disagree")
        if not self.ks:
            raise InputError("options", "--ks", "", "at least one number is wanted")


def main(args: Sequence[str]) -> int:
    """Run `mantra programs ARGS`; returns the exit code."""
    console = terminal.console()
    match list(args):
        case ["fit", *rest]:
            fit(_parse(FitOptions, rest, "fit"), console)
        case ["choose-k", *rest]:
            choose(_parse(ChooseOptions, rest, "choose-k"), console)
        case ["-h" | "--help"]:
            print(USAGE)
        case _:
            print(USAGE, file=sys.stderr)
            return 2
    return 0


def _parse(options: type, args: Sequence[str], command: str):
    parsed = tyro.cli(options, args=args, description=options.__doc__, prog=f"mantra programs {command}")
    parsed.check()
    return parsed


def fit(options: FitOptions, console: Console) -> None:
    """Fit W and write `loadings.parquet` (gene, then a column a program), which `--loadings` reads.

    Counts give `loadings.parquet` in standardised units, `spectra_tpm.parquet` in counts per million, both of all
    genes, and `usages.parquet` of the cells. Raises InputError on unusable data.
    """
    out, config, tables = Path(options.out), options.programs, {}
    if is_counts(options.data):
        if config.method != "nmf":
            raise InputError("options", "--programs.method", config.method, "programs of counts are those of nmf")
        counts = read_counts(options.data, options.gene_names)
        with connected(options.address), _bar(console) as on_progress:
            result = fit_count_programs(counts, config, options.genes, options.seed, on_progress)
        loadings, genes, notes = result.score.T, counts.genes, list(result.notes)
        notes.append(f"{len(result.genes)} over-dispersed genes; {100 * result.error:.1f} % of their squares are left")
        tables["spectra_tpm"] = _named("gene", genes, result.tpm.T)
        tables["usages"] = _named("cell", counts.cells, result.usages)
        strength = result.usages.sum(0, dtype=np.float64)
    else:
        changes, genes = read_changes(options)
        with connected(options.address), _bar(console) as on_progress:
            loadings = fit_programs(changes, config, options.seed, on_progress)
        notes = ["all records took part: a sweep with held-out records fits its own on the training fold"]
        strength = np.square(changes @ loadings).sum(0, dtype=np.float64)
    check_rank(loadings, options.data)
    tables["loadings"] = _named("gene", genes, loadings)
    for name, table in tables.items():
        with atomic(out / f"{name}.parquet") as partial:
            pq.write_table(table, partial, compression="zstd")
    shown_table = Table("program", "share", "strongest genes", title=f"programs of {options.data}")
    for program in np.argsort(-strength, kind="stable"):
        best = np.argsort(-loadings[:, program], kind="stable")[:TOP]
        share = strength[program] / strength.sum()
        shown_table.add_row(f"program{program}", f"{share:.3f}", ", ".join(genes[gene] for gene in best))
    console.print(shown_table)
    for note in [*notes, f"written to {out}"]:
        console.print(note, markup=False, highlight=False)


def choose(options: ChooseOptions, console: Console) -> None:
    """Compare numbers of programs and write `k_selection.parquet`, `.png` and `.svg`; InputError on unusable data."""
    rows = read_rows(options)
    with connected(options.address), _bar(console) as on_progress:
        found, chosen = choose_k(rows, options.ks, options.programs, options.seed, on_progress)
    out = Path(options.out)
    columns = {name: [getattr(row, name) for row in found] for name in ("k", "silhouette", "error", "kept")}
    with atomic(out / "k_selection.parquet") as partial:
        pq.write_table(pa.table(columns | {"chosen": [row.k == chosen for row in found]}), partial)
    for suffix in ("png", "svg"):
        with atomic(out / f"k_selection.{suffix}") as partial:
            draw(found, chosen).savefig(partial, format=suffix, dpi=200)
    table = Table("K", "silhouette", "error", "spectra kept", title=f"programs of {options.data}")
    for row in found:
        mark = " *" if row.k == chosen else ""
        table.add_row(f"{row.k}{mark}", f"{row.silhouette:.3f}", f"{row.error:.4f}", f"{100 * row.kept:.0f} %")
    console.print(table)
    console.print(f"* suggested: the largest K whose silhouette comes within {TOLERATED_LOSS} of the best")
    console.print(f"written to {out}", markup=False, highlight=False)


def read_changes(options: FitOptions) -> tuple[np.ndarray, tuple[str, ...]]:
    """Changes [N, kept] of the most variable genes, clipped, and the genes' names; InputError if there are none."""
    if options.gene_names:
        raise InputError("options", "--gene-names", options.gene_names, "belongs to a sparse .npz of counts")
    data = read_screen(DataConfig(data=options.data, data_dir=options.data_dir)).data
    if data.delta_expression is None:
        raise InputError(options.data, "delta_expression", None, "the records hold no changes of expression")
    changes = np.clip(data.delta_expression, -options.clip, options.clip)
    kept = variable_genes(changes, options.genes)
    return changes[:, kept].astype(np.float32), tuple(data.gene_names[gene] for gene in kept)


def read_rows(options: FitOptions) -> Rows:
    """What NMF sees: the halves of changes, or scaled counts of over-dispersed genes."""
    if not is_counts(options.data):
        return halves(read_changes(options)[0])
    counts = read_counts(options.data, options.gene_names)
    return scaled_counts(counts, over_dispersed(gene_statistics(counts), options.genes))[0]


def draw(found: Sequence[Stability], chosen: int) -> Figure:
    """Silhouette and error over K, the choice marked."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot(xlabel="programs K")
    ks = [row.k for row in found]
    for place, color, name in ((axes, "tab:blue", "silhouette"), (axes.twinx(), "tab:red", "error")):
        place.plot(ks, [getattr(row, name) for row in found], "o-", color=color)
        place.set_ylabel({"silhouette": "stability (silhouette)", "error": "unexplained share"}[name], color=color)
        place.tick_params(axis="y", labelcolor=color)
    axes.axvline(chosen, color="gray", linestyle="--", linewidth=1)
    axes.set_title(f"suggested: {chosen} programs")
    return figure


def _named(key: str, names: Sequence[str], values: np.ndarray) -> pa.Table:
    columns = {f"program{i}": column for i, column in enumerate(values.T.astype(np.float32))}
    return pa.table({key: pa.array(list(names), pa.string())} | columns)


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over restarts, as the callback that moves it."""
    columns = (TextColumn("NMF restarts"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("restarts", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
