"""Differentially expressed genes: which changes are significant, and whether a prediction names them.

Definitions are those of the package cell-eval (Arc Institute), as far as changes of pseudo-bulks allow: there, genes
are tested on single cells of data and prediction alike; here the observed change is tested by its standard error, and
a prediction, which has no cells, ranks all genes by |change|. Metrics return a numerator and a denominator for each
record [n]: a record without significant genes counts in none (cell-eval scores its overlap 0).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.stats import false_discovery_control, norm, rankdata

FALSE_DISCOVERIES = 0.05
TOP = 50
BLOCK = 2**22  # entries of the largest temporary table

Ratio = tuple[np.ndarray, np.ndarray]


def significant_genes(changes: np.ndarray, se: np.ndarray) -> np.ndarray:
    """Genes that change, bool [N, G]: two-sided z-test of changes on se [N, G], at 5 % false discoveries a record.

    Benjamini and Hochberg 1995 over the genes given. A gene without a standard error above 0 is not significant.
    """
    found = np.zeros(changes.shape, bool)
    for rows in np.array_split(np.arange(len(changes)), -(-changes.size // BLOCK) or 1):
        known = np.isfinite(se[rows]) & (se[rows] > 0)
        z = np.where(known, np.abs(changes[rows]) / np.where(known, se[rows], 1), 0).astype(np.float64)
        found[rows] = false_discovery_control(2 * norm.sf(z), axis=1) < FALSE_DISCOVERIES
    return found


class DifferentialGenes:
    """What was observed to change in n records, to judge predictions by."""

    def __init__(self, observed: np.ndarray, significant: np.ndarray | None):
        """Take observed changes and which are significant, [n, G]; without that (None) all genes are candidates."""
        self.tested = significant is not None
        self.genes = [np.flatnonzero(row) for row in (np.ones(observed.shape) if significant is None else significant)]
        self.change = [row[genes] for row, genes in zip(observed, self.genes, strict=True)]
        self.ranks = [ranks(change) for change in self.change] if self.tested else []
        self.top = [
            genes[np.argsort(-np.abs(change), kind="stable")[:TOP]]
            for change, genes in zip(self.change, self.genes, strict=True)
        ]
        self.judges_top = observed.shape[1] > TOP

    def ratios(self, predicted: np.ndarray) -> dict[str, Ratio]:
        """How well predicted changes [n, G] name the genes that change, by metric.

        de_overlap: share of a record's significant genes that are among as many genes of largest predicted |change|.
        de_overlap_50: the same of the 50 significant genes with the largest observed |change|; left out where there
        are no more genes. de_direction: share of significant genes with the observed sign. de_spearman: rank
        correlation of the changes of significant genes. Without knowledge of significance de_overlap_50 alone.
        """
        size = np.abs(predicted)
        found: dict[str, Ratio] = {}
        if self.judges_top:
            found["de_overlap_50"] = ratio(overlap(row, genes) for row, genes in zip(size, self.top, strict=True))
        if not self.tested:
            return found
        guesses = [row[genes] for row, genes in zip(predicted, self.genes, strict=True)]
        hits = (np.where(g == 0, 0.5, np.sign(g) == np.sign(c)) for g, c in zip(guesses, self.change, strict=True))
        orders = (correlation(ranks(guess), known) for guess, known in zip(guesses, self.ranks, strict=True))
        return found | {
            "de_overlap": ratio(overlap(row, genes) for row, genes in zip(size, self.genes, strict=True)),
            "de_direction": ratio(hit.mean() if len(hit) else np.nan for hit in hits),
            "de_spearman": ratio(orders),
        }


def ratio(values: Iterable[float]) -> Ratio:
    """Numerator and denominator of a mean over the records that have a value, which is NaN elsewhere."""
    array = np.fromiter(values, float)
    known = np.isfinite(array)
    return np.where(known, array, 0.0), known.astype(float)


def overlap(size: np.ndarray, genes: np.ndarray) -> float:
    """Share of `genes` that are among as many genes of largest `size` [G]; NaN without any.

    Genes of one size at the border share the places left, so that their order never counts.
    """
    if not len(genes):
        return np.nan
    border = np.partition(size, -len(genes))[-len(genes)]
    above, tied = size > border, size == border
    share = (len(genes) - np.count_nonzero(above)) / np.count_nonzero(tied)
    return (np.count_nonzero(above[genes]) + share * np.count_nonzero(tied[genes])) / len(genes)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of values [n] about their mean; ties take the mean of theirs."""
    order = np.argsort(values)
    ordered = values[order]
    if (ordered[1:] == ordered[:-1]).any():
        found = rankdata(values)
    else:  # several times as fast
        found = np.empty(len(values))
        found[order] = np.arange(1, len(values) + 1)
    return found - (len(values) + 1) / 2


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of centred a and b [n]; 0 where one of them is constant, NaN with fewer than two values."""
    if len(a) < 2:
        return np.nan
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0
