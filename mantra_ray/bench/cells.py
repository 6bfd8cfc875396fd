"""`mantra bench cells`: a screen of many single cells is made block by block and imported; its time and memory.

Cells are drawn in random order, as a sequencer delivers them: most records have a cell in every block.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import tyro
from scipy import sparse

from mantra_ray import terminal
from mantra_ray.data.blocks import in_process, over_ray
from mantra_ray.data.cells import import_cells
from mantra_ray.data.cohort import CellOptions
from mantra_ray.data.quality import Thresholds
from mantra_ray.data.storage import write_parquet
from mantra_ray.errors import InputError
from mantra_ray.sweep.cluster import connected

CONTROL_SHARE = 0.05  # of the cells
BLOCK = 10_000  # cells written at once
ENTRIES = 2**17  # stored entries of an HDF5 chunk
DESCRIPTION = "Time and memory that the import of a large screen takes, its cells in random order."


@dataclass(frozen=True)
class Options:
    """The screen and how it is imported."""

    cells: int = 100_000
    """Cells in the file."""
    genes: int = 2_000
    """Genes."""
    regulators: int = 2_000
    """Perturbed genes; a cell has one, or is a control."""
    batches: int = 48
    """Batches, each with its own controls."""
    umi: float = 0.1
    """Mean count of a gene in a cell; about 7 % of the entries are then not zero."""
    folder: str = ""
    """Where the file lies while it is needed (default: the system's folder for temporary files)."""
    ray: bool = True
    """Row blocks as Ray tasks on all CPUs; otherwise in this process."""


def write_h5ad(
    path: Path,
    blocks: Iterable[sparse.csr_array],
    genes: list[str],
    obs: Mapping[str, np.ndarray],
    var: Mapping[str, np.ndarray] | None = None,
    names: list[str] | None = None,
) -> None:
    """Write blocks of cells as the CSR matrix X of an AnnData file, gzip-compressed, without ever holding all.

    Columns of text become categoricals, as anndata makes them; `names` are the cells' (default: counted).
    """
    text = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        matrix = file.create_group("X")
        data, indices = (
            matrix.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(ENTRIES,), compression="gzip")
            for name, kind in (("data", np.float32), ("indices", np.int32))
        )
        ends = [np.zeros(1, np.int64)]
        for block in blocks:
            old, new = len(data), len(data) + block.nnz
            for dataset, values in ((data, block.data), (indices, block.indices)):
                dataset.resize((new,))
                dataset[old:] = values
            ends.append(old + block.indptr[1:])
        matrix["indptr"] = np.concatenate(ends)
        cells = len(matrix["indptr"]) - 1
        matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [cells, len(genes)]})
        index = [f"cell{i}" for i in range(cells)] if names is None else names
        for place, rows, columns in (("obs", index, obs), ("var", genes, var or {})):
            frame = file.create_group(place)
            frame.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
            frame.attrs["column-order"] = np.array(list(columns), dtype=text)
            frame.create_dataset("_index", data=np.array(rows, dtype=object), dtype=text)
            for name, values in columns.items():
                if values.dtype.kind not in "OU":
                    frame[name] = values
                    continue
                categories, codes = np.unique(values.astype(str), return_inverse=True)
                column = frame.create_group(name)
                column.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
                column["codes"] = codes.astype(np.int32)
                column.create_dataset("categories", data=categories.astype(object), dtype=text)


def write_screen(path: Path, options: Options, seed: int = 0) -> None:
    """Write a screen of negative-binomial-like counts (a Poisson of gamma means), batches and controls."""
    rng = np.random.default_rng(seed)
    control = rng.random(options.cells) < CONTROL_SHARE
    regulator = np.where(control, "non-targeting", rng.integers(options.regulators, size=options.cells).astype(str))
    rate = rng.gamma(0.7, options.umi / 0.7, options.genes)
    share, total = np.cumsum(rate) / rate.sum(), rate.sum()

    def blocks() -> Iterable[sparse.csr_array]:
        for start in range(0, options.cells, BLOCK):
            rows = min(BLOCK, options.cells - start)
            umi = rng.poisson(total * rng.lognormal(0, 0.3, rows))
            # UMIs are dealt to genes one by one: the cost is that of the counts, not of the zeros.
            gene = np.minimum(np.searchsorted(share, rng.random(umi.sum())), options.genes - 1)
            entry = np.repeat(np.arange(rows), umi) * options.genes + gene
            entry, count = np.unique(entry, return_counts=True)
            where = (count.astype(np.float32), (entry // options.genes, entry % options.genes))
            yield sparse.csr_array(where, (rows, options.genes))

    batch = rng.integers(options.batches, size=options.cells)
    names = [f"gene{i}" for i in range(options.genes)]
    write_h5ad(path, blocks(), names, {"gene": regulator, "batch": batch})


class MemoryWatch:
    """Largest memory of this process and its descendants, sampled while the block runs; Linux.

    `proportional` counts pages that several processes map once, `resident` in each of them; `own` is this process
    alone, resident. Bytes.
    """

    def __init__(self, interval: float = 0.5):
        self.resident = self.proportional = self.own = 0
        self._stop, self._interval = threading.Event(), interval
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            sizes = {process: _memory(process) for process in _family(os.getpid())}
            self.own = max(self.own, sizes[os.getpid()][0])
            self.resident = max(self.resident, sum(size[0] for size in sizes.values()))
            self.proportional = max(self.proportional, sum(size[1] for size in sizes.values()))


def _family(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended meanwhile
            continue
        children.setdefault(parent, []).append(int(folder.name))
    family = [root]
    for process in family:
        family += children.get(process, [])
    return family


def _memory(process: int) -> tuple[int, int]:
    try:
        lines = (Path("/proc") / str(process) / "smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0, 0
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return sizes.get("Rss", 0), sizes.get("Pss", 0)


def main(args: Sequence[str] | None = None) -> int:
    """Write a screen, import it and print one line a number; returns the exit code. Raises InputError."""
    arguments = None if args is None else list(args)
    options = tyro.cli(Options, args=arguments, prog="mantra bench cells", description=DESCRIPTION)
    for name in ("cells", "genes", "regulators", "batches"):
        if getattr(options, name) < 1:
            raise InputError("options", f"--{name}", getattr(options, name), "must be at least 1")
    console = terminal.console()
    with tempfile.TemporaryDirectory(dir=options.folder or None) as folder:
        path = Path(folder) / "cells.h5ad"
        begun = time.perf_counter()
        # In a process of its own, whose memory is not counted.
        with ProcessPoolExecutor(1, get_context("spawn")) as writer:
            writer.submit(write_screen, path, options).result()
        with h5py.File(path) as file:
            density = len(file["X/data"]) / options.cells / options.genes
        size = f"{options.cells:,} cells x {options.genes:,} genes, {density:.1%} not zero"
        console.print(f"file     {size}, {path.stat().st_size / 2**30:.2f} GiB")
        console.print(f"writing  {time.perf_counter() - begun:.0f} s")
        columns = CellOptions(batch_column="batch", thresholds=Thresholds(min_umi=1, min_genes=1))
        with connected("") if options.ray else nullcontext(), MemoryWatch() as memory:
            begun = time.perf_counter()
            data, _ = import_cells(path, columns, over_ray if options.ray else in_process)
            read = time.perf_counter()
            write_parquet(data, Path(folder) / "records.parquet")
            written = time.perf_counter()
    seconds = f"{read - begun:.1f} s, {(read - begun) / options.cells * 1e5:.2f} s per 100,000 cells"
    console.print(f"import   {seconds}, {len(data):,} records; {written - read:.1f} s more to write them")
    peaks = {"all processes": memory.proportional, "sum of resident": memory.resident, "driver": memory.own}
    console.print(
        "memory   " + ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in peaks.items()) + " at most"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
