"""Single cells turned into records: the change of expression of each (regulator, dose, state) against its controls.

Counts are scaled to one library size and logged, x = log2(1 + count * target / library). With n_b of a record's n
cells in batch b, m_b the mean of the batch's control cells and d = x - m_b,

    delta = mean of d,        se^2 = var(d) / n + sum over b of (n_b / n)^2 * control variance / controls in b,

that is, the difference to the controls of the same state and batch, weighted by the record's cells. Centring each
cell by its batch needs no mean per (record, batch), which in a large screen would hold a cell each: the file is read
once for quality and controls and once for the records, and only sums over cells are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import sparse

from mantra_ray.data.blocks import Mapper, in_process
from mantra_ray.data.cohort import CellOptions, read_cohort
from mantra_ray.data.h5ad import opened
from mantra_ray.data.quality import Quality, check_counts, measure
from mantra_ray.data.records import PerturbationData
from mantra_ray.errors import InputError

MEDIAN_BLOCKS = 20  # evenly spread blocks whose cells stand for all when the median library size is taken
PARTS = 16  # the sums are freed part by part as they turn into records

Progress = Callable[[int, int, str], None]


def import_cells(
    path: str | Path, options: CellOptions, mapper: Mapper = in_process, on_progress: Progress | None = None
) -> tuple[PerturbationData, list[str]]:
    """Records of an .h5ad file of cells, with standard errors and cell counts, and notes on what was left out.

    The driver holds 16 bytes a record and gene, besides some 20 bytes a cell; a task holds a block. `mapper` decides
    where blocks are summed, and changes no bit of the result. Records that share controls (a state's) form a group.
    The smallest standard error is what one count in one cell of median library size would move the mean by.
    Raises InputError.
    """
    options.thresholds.check()
    with opened(path, options.matrix) as file:
        cohort = read_cohort(file, options)
        blocks = file.blocks()
        sample = [blocks[i] for i in np.unique(np.linspace(0, len(blocks) - 1, MEDIAN_BLOCKS).astype(int))]
        umi = cohort.umi
        if umi is None:
            umi = np.concatenate([file.rows(*block).sum(axis=1, dtype=np.float64) for block in sample])
    usable = umi[umi >= options.thresholds.min_umi]
    if not len(usable):
        most = float(umi.max(initial=0))
        raise InputError(path, "UMIs", most, f"no cell has {options.thresholds.min_umi:g}, the largest number is shown")
    median = float(np.median(usable))
    target = options.target_sum or median

    def run(function: Callable, shared: tuple, arguments: list[tuple], text: str, stage: int):
        for done, result in enumerate(mapper(function, shared, arguments), 1):
            if on_progress:
                on_progress(stage * len(blocks) + done, 2 * len(blocks), text)
            yield result

    # Quality of every cell, and the sums of the controls.
    shared = (path, options, target, cohort.mitochondrial)
    survey = cohort.survey()
    given = [(a, b, *(None if values is None else values[a:b] for values in survey)) for a, b in blocks]
    controls, detected = Sums(cohort.pools, len(cohort.genes)), 0
    quality = Quality(*(np.empty(len(cohort.pool), kind) for kind in (np.float64, np.int64, np.float64)))
    for (start, stop), (found, seen, sums) in zip(
        blocks, run(survey_block, shared, given, "quality and controls", 0), strict=True
    ):
        # Copied: a view would keep all of the task's result in Ray's object store.
        for name in ("umi", "genes", "mito"):
            getattr(quality, name)[start:stop] = getattr(found, name)
        detected = detected + seen
        controls.add(*sums)
    records, notes = cohort.records(quality.passes(options.thresholds), options, path)
    notes = [*cohort.notes, *quality.notes(options.thresholds), *notes]
    genes = np.flatnonzero(detected >= options.thresholds.min_cells_per_gene)
    if not len(genes):
        most = options.thresholds.min_cells_per_gene
        raise InputError(path, "genes", int(detected.max()), f"none is detected in {most} of the kept cells")
    if len(genes) < len(detected):
        fewer = f"fewer than {options.thresholds.min_cells_per_gene} cells"
        notes.append(f"{len(detected) - len(genes):,} genes detected in {fewer} are left out")

    mean, variance = control_statistics(controls, records.pool_controls, records.pool_state, genes)
    del controls
    # The sums of the records, each cell centred by the controls of its state and batch.
    shared = (path, options, target, genes, mean)
    given = [(a, b, records.code[a:b], cohort.pool[a:b], quality.umi[a:b]) for a, b in blocks]
    totals = Sums(len(records.cells), len(genes))
    for sums in run(sum_block, shared, given, "records", 1):
        totals.add(*sums)
    step = float(np.log2(1 + target / median))
    change, error = effects(totals, records.pool_cells, records.pool_controls, records.state, mean, variance, step)
    names = [cohort.genes[g] for g in genes]
    notes.append(f"library sizes are scaled to {target:,.0f} UMIs; changes are differences of log2(1 + count)")
    return records.data(change, error, names).validate(path), notes


def survey_block(
    shared: tuple, start: int, stop: int, pool: np.ndarray, umi: np.ndarray | None, mito: np.ndarray | None
) -> tuple[Quality, np.ndarray, tuple]:
    """Quality of the block's cells, in how many kept ones each gene is detected [G], and sums of the controls.

    `pool` [n] is the (state, batch) of control cells, -1 of all others.
    """
    path, options, target, mitochondrial = shared
    with opened(path, options.matrix) as file:
        block = file.rows(start, stop)
    block.eliminate_zeros()
    check_counts(block, start, path, options.matrix)
    quality = measure(block, mitochondrial, umi, mito)
    kept = quality.passes(options.thresholds)
    detected = np.bincount(block[kept].indices, minlength=block.shape[1])
    rows = np.flatnonzero(kept & (pool >= 0))
    x = scaled(block[rows], quality.umi[rows], target)
    return quality, detected, grouped(x, x.data**2, pool[rows])


def sum_block(
    shared: tuple, start: int, stop: int, code: np.ndarray, pool: np.ndarray, umi: np.ndarray
) -> tuple[np.ndarray, sparse.csr_array]:
    """Sums of the block's cells by record (`code` [n], -1: none) over the kept genes."""
    path, options, target, genes, mean = shared
    rows = np.flatnonzero(code >= 0)
    if not len(rows):
        return np.zeros(0, np.int64), sparse.csr_array((0, len(genes)), dtype=np.complex128)
    with opened(path, options.matrix) as file:
        block = file.rows(start, stop)
    block.eliminate_zeros()
    block = block[rows]
    if len(genes) < block.shape[1]:
        block = block[:, genes]
    x = scaled(block, umi[rows], target)
    centre = mean[np.repeat(pool[rows], np.diff(x.indptr)), x.indices]
    # (x - m)^2 = (x^2 - 2 x m) + m^2: the first term is 0 where x is, and the second needs only counts of cells.
    return grouped(x, x.data * (x.data - 2 * centre), code[rows])


def scaled(block: sparse.csr_array, library: np.ndarray, target: float) -> sparse.csr_array:
    """log2(1 + count * target / library) of [n, G] counts, library sizes [n]; float64."""
    factor = np.repeat(target / library, np.diff(block.indptr))
    return sparse.csr_array((np.log1p(block.data * factor) / np.log(2), block.indices, block.indptr), block.shape)


def grouped(x: sparse.csr_array, squares: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, sparse.csr_array]:
    """The groups present [P], ascending, and their sums [P, G] complex128: of x, and of `squares` [entries] as the
    imaginary part, so that one sparse product makes both."""
    present, code = np.unique(group, return_inverse=True)
    member = sparse.csc_array((np.ones(len(code)), code, np.arange(len(code) + 1)), (len(present), len(code))).tocsr()
    both = sparse.csr_array((x.data + 1j * squares, x.indices, x.indptr), x.shape)
    return present, sparse.csr_array(member @ both)


class Sums:
    """Sums by group and gene, complex as `grouped` gives them, in parts of consecutive groups."""

    def __init__(self, groups: int, genes: int):
        self.genes, self.height = genes, max(1, -(-groups // PARTS))
        self.parts = [np.zeros((min(self.height, groups - g), genes), complex) for g in range(0, groups, self.height)]

    def add(self, present: np.ndarray, sums: sparse.csr_array) -> None:
        """Add a block's sums."""
        edges = np.searchsorted(present, np.arange(len(self.parts) + 1) * self.height)
        for part, low, high in zip(range(len(self.parts)), edges, edges[1:], strict=False):
            ends = sums.indptr[low : high + 1].astype(np.int64)
            entries = slice(ends[0], ends[-1])
            row = np.repeat((present[low:high] - part * self.height) * self.genes, np.diff(ends))
            self.parts[part].reshape(-1)[row + sums.indices[entries]] += sums.data[entries]


def control_statistics(
    sums: Sums, count: np.ndarray, state: np.ndarray, genes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the controls of each pool [B, G] and their variance within pools, by state [S, G]; kept genes only.

    `count` [B] controls and `state` [B] of the pools; every state has more controls than pools.
    """
    both = np.concatenate(sums.parts)[:, genes]
    mean = both.real / np.maximum(count, 1)[:, None]
    square, freedom = np.zeros((state.max() + 1, len(genes))), np.zeros(state.max() + 1)
    np.add.at(square, state, np.maximum(both.imag - count[:, None] * mean**2, 0))
    np.add.at(freedom, state, np.maximum(count - 1, 0))
    return mean, square / np.maximum(freedom, 1)[:, None]


def effects(
    sums: Sums,
    cells: sparse.csr_array,
    controls: np.ndarray,
    state: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    step: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Changes and standard errors [R, G] float32, as the module says; empties `sums`.

    `cells` [R, B] counts a record's cells in each pool, `controls` [B] the pool's controls, `mean` [B, G] and
    `variance` [S, G] are theirs; a standard error is at least `step` / cells.
    """
    total = np.asarray(cells.sum(axis=1), np.float64)
    shape = (len(total), sums.genes)
    change, error = np.empty(shape, np.float32), np.empty(shape, np.float32)
    squared_mean, inverse = mean**2, 1 / np.maximum(controls, 1)
    for first in range(0, len(total), sums.height):
        rows = slice(first, first + sums.height)
        part, count, n = sums.parts.pop(0), cells[rows].astype(np.float64), total[rows, None]
        delta = (part.real - count @ mean) / n
        within = np.maximum(part.imag + count @ squared_mean - n * delta**2, 0) / (n - 1)
        shared = (count.power(2) @ inverse)[:, None] / n**2 * variance[state[rows]]
        change[rows] = delta
        error[rows] = np.maximum(np.sqrt(within / n + shared), step / n)
    return change, error
