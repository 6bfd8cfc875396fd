"""Programs of counts: over-dispersed genes, consensus NMF on them, spectra of all genes (Kotliar et al. 2019).

Cells come in sparse row blocks. Only the over-dispersed genes' counts are ever held at once, as CSR.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from mantra_ray.cascade.consensus import (
    Progress,
    median_spectra,
    refit_spectra,
    refit_usages,
    restarts,
    unexplained,
)
from mantra_ray.config import ProgramsConfig
from mantra_ray.data.counts import Counts
from mantra_ray.errors import InputError

DEPTH = 1e6  # counts of a cell after normalisation ("TPM" of the cnmf package)
ABUNDANT = 20  # genes whose smallest coefficient of variation is the noise that all genes share


@dataclass(frozen=True)
class GeneStatistics:
    """Moments over cells of counts scaled to a depth of a million."""

    depth: np.ndarray  # [N] counts of each cell
    mean: np.ndarray  # [G]
    variance: np.ndarray  # [G]


@dataclass(frozen=True)
class CountPrograms:
    """K programs of counts, strongest first."""

    score: np.ndarray  # [K, G] change of a gene's standardised level per unit of usage, signed
    tpm: np.ndarray  # [K, G] level of a gene in a cell that uses the program alone, counts per million
    spectra: np.ndarray  # [K, kept] consensus on the over-dispersed genes, rows of sum 1
    usages: np.ndarray  # [N, K], 0 for cells without a count of the over-dispersed genes
    genes: np.ndarray  # [kept] columns of the over-dispersed genes
    error: float  # share of the scaled counts' squared norm that spectra and their usages leave
    notes: tuple[str, ...]


def gene_statistics(counts: Counts) -> GeneStatistics:
    """Depth of cells and moments of genes in one pass; InputError on negative or non-finite counts."""
    depth, total, square = [], np.zeros(len(counts.genes)), np.zeros(len(counts.genes))
    start = 0
    for block in counts.blocks():
        bad = np.flatnonzero(~np.isfinite(block.data) | (block.data < 0))
        for place in bad[:1]:
            row, gene = np.searchsorted(block.indptr, place, side="right") - 1, counts.genes[block.indices[place]]
            problem = f"cell {counts.cells[start + row]}: a count must be a number that is not negative"
            raise InputError(counts.source, gene, block.data[place].item(), problem)
        depth.append(np.asarray(block.sum(1, dtype=np.float64)).ravel())
        scaled = _to_depth(block, depth[-1])
        total += np.asarray(scaled.sum(0)).ravel()
        square += np.asarray(scaled.power(2).sum(0)).ravel()
        start += block.shape[0]
    mean = total / max(start, 1)
    return GeneStatistics(np.concatenate(depth), mean, np.maximum(square / max(start, 1) - mean**2, 0))


def over_dispersed(statistics: GeneStatistics, count: int) -> np.ndarray:
    """Columns of the `count` genes with the largest v-score, ascending; 0 keeps all that vary.

    v = F / (A^2 mean + B^2), the Fano factor F against what noise gives: A the least coefficient of variation of the
    20 most abundant genes, B^2 the median F of genes within the 10 to 90 % quantiles of mean and of F (Klein et al.
    2015, Cell 161:1187, as in Kotliar et al. 2019).
    """
    mean, variance = statistics.mean, statistics.variance
    alive = np.flatnonzero((mean > 0) & (variance > 0))
    mean, fano = mean[alive], variance[alive] / mean[alive]
    if not 0 < count < len(alive):
        return alive
    abundant = np.argsort(-mean, kind="stable")[:ABUNDANT]
    shared = np.min(np.sqrt(variance[alive][abundant]) / mean[abundant])
    box = np.ones(len(alive), bool)
    for value in (mean, fano):
        low, high = np.quantile(value, [0.1, 0.9])
        box &= (value > low) & (value < high)
    score = fano / (shared**2 * mean + np.median(fano[box] if box.any() else fano))
    return np.sort(alive[np.argsort(-score, kind="stable")[:count]])


def scaled_counts(counts: Counts, genes: np.ndarray) -> tuple[sp.csr_array, np.ndarray]:
    """Counts of some genes, each over its standard deviation, float32 CSR [n, kept], and the rows' cells [n].

    Scaled and not centred, which keeps zeros zero. Cells without any of these counts are left out; raises
    InputError if none is left.
    """
    rows = sp.vstack([block[:, genes].astype(np.float32) for block in counts.blocks()], format="csr")
    rows.eliminate_zeros()
    _to_unit_variance(rows)
    kept = np.flatnonzero(np.diff(rows.indptr))
    if not len(kept):
        raise InputError(counts.source, "counts", 0, "no cell has a count of a gene that varies")
    return rows if len(kept) == rows.shape[0] else rows[kept], kept


def fit_count_programs(
    counts: Counts, config: ProgramsConfig, genes: int, seed: int, on_progress: Progress | None = None
) -> CountPrograms:
    """Consensus NMF of counts with `config.k` programs on the `genes` most over-dispersed genes (0: all that vary).

    Median spectra and their usages come from the scaled counts; the spectra of all genes from regressions of the
    counts per million on the usages: non-negative (`tpm`) and, standardised, signed (`score`); usages are fitted
    once more to the former. Raises InputError on unusable counts, or if k exceeds what cells and genes allow.
    """
    statistics = gene_statistics(counts)
    columns = over_dispersed(statistics, genes)
    rows, kept = scaled_counts(counts, columns)
    limit = min(rows.shape)
    if not 1 <= config.k <= limit:
        raise InputError("config", "programs.k", config.k, f"the counts allow 1 to {limit} programs")
    pooled = restarts(rows, [config.k], config, seed, on_progress)[config.k]
    spectra = median_spectra(pooled, config.k, config, seed)
    usages = refit_usages(rows, spectra)
    error = unexplained(rows, usages, spectra)
    strongest = np.argsort(-_shares(usages).sum(0), kind="stable")
    spectra, usages = spectra[strongest], usages[:, strongest].astype(np.float64)
    score, tpm = _regress(counts, statistics, kept, usages)

    rows = _to_depth(rows, statistics.depth[kept]).astype(np.float32)  # a gene's scale is set anew below
    _to_unit_variance(rows)
    deviation = np.sqrt(statistics.variance[columns])
    final = np.zeros((len(counts.cells), config.k), np.float32)
    final[kept] = refit_usages(rows, tpm[:, columns] / deviation)
    left_out = len(counts.cells) - len(kept)
    notes = (f"{left_out} cells have no count of the {len(columns)} over-dispersed genes",) if left_out else ()
    return CountPrograms(score, tpm, spectra, final, columns, error, notes)


def _regress(
    counts: Counts, statistics: GeneStatistics, kept: np.ndarray, usages: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Spectra of all genes from usages [n, K] of the kept cells: standardised [K, G] and per million [K, G]."""
    k, shares = usages.shape[1], _shares(usages)
    raw, relative = np.zeros((2, k, len(counts.genes)))
    place = np.full(len(counts.cells), -1)
    place[kept] = np.arange(len(kept))
    start = 0
    for block in counts.blocks():
        stop = start + block.shape[0]
        mine = place[start:stop]
        rows = _to_depth(block, statistics.depth[start:stop])[mine >= 0]
        raw += (rows.T @ usages[mine[mine >= 0]]).T
        relative += (rows.T @ shares[mine[mine >= 0]]).T
        start = stop
    deviation = np.sqrt(np.maximum(statistics.variance, 1e-12))
    # U'Z of the standardised Z = (X - mean) / deviation from the sparse U'X, so that Z itself is never made.
    standardised = (raw - np.outer(usages.sum(0), statistics.mean)) / deviation
    score = np.linalg.lstsq(usages.T @ usages, standardised, rcond=None)[0]
    return score, refit_spectra(shares.T @ shares, relative)


def _shares(usages: np.ndarray) -> np.ndarray:
    total = usages.sum(1, keepdims=True)
    return usages / np.where(total > 0, total, 1)


def _to_depth(block: sp.csr_array, depth: np.ndarray) -> sp.csr_array:
    """Counts [n, G] scaled to a million a cell; empty cells stay empty."""
    factor = DEPTH / np.where(depth > 0, depth, 1)
    return sp.csr_array(
        (block.data * np.repeat(factor, np.diff(block.indptr)), block.indices, block.indptr), block.shape
    )


def _to_unit_variance(rows: sp.csr_array) -> None:
    """Divide each column [n] by its standard deviation, in place."""
    count = rows.shape[0]
    mean = np.asarray(rows.mean(0, dtype=np.float64)).ravel()
    square = np.bincount(rows.indices, np.square(rows.data, dtype=np.float64), rows.shape[1])
    deviation = np.sqrt(np.maximum(square - count * mean**2, 0) / max(count - 1, 1))
    rows.data /= np.where(deviation > 0, deviation, 1).astype(np.float32)[rows.indices]
