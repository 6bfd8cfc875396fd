"""Variance components of results over seeds and regulators: which results err alike, and by how much.

Every result belongs to a regulator and to a seed. The mean product of two results' deviations is the regulators'
variance if they share the regulator alone, the seeds' if they share the seed alone, and 0 if they share neither, but
for what centring on the estimated mean takes off all products alike. Differences of mean products are therefore
unbiased, however unevenly seeds hold regulators (Cameron, Gelbach and Miller 2011, "Robust inference with multiway
clustering", and the components of Owen 2007, "The pigeonhole bootstrap").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pairs:
    """Sums of products over pairs of different cells (a cell: one seed and regulator), by what they share, each [M]."""

    regulator: np.ndarray
    seed: np.ndarray
    neither: np.ndarray


def cell_sums(columns: np.ndarray, regulator: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """Sums of `columns` [n, M] by seed and regulator, float64 [S, R, M]; regulator and seed are [n], of any labels."""
    seeds, seed_index = np.unique(seed, return_inverse=True)
    regulators, regulator_index = np.unique(regulator, return_inverse=True)
    cells = np.zeros((len(seeds) * len(regulators), columns.shape[1]))
    np.add.at(cells, seed_index * len(regulators) + regulator_index, columns)
    return cells.reshape(len(seeds), len(regulators), -1)


def pair_sums(cells: np.ndarray) -> Pairs:
    """Sums of products over the pairs of cells [S, R, M]."""
    own = np.square(cells).sum((0, 1))
    regulator, seed = np.square(cells.sum(0)).sum(0), np.square(cells.sum(1)).sum(0)
    return Pairs(regulator - own, seed - own, np.square(cells.sum((0, 1))) - regulator - seed + own)


def mean_products(deviations: np.ndarray, weights: np.ndarray) -> Pairs:
    """Mean products over the pairs of cells, each [M], from sums [S, R, M] of deviations and of their weights.

    A deviation is weight x (result - mean). 0 where no pair of the kind is.
    """
    products, counts = pair_sums(deviations), pair_sums(weights)
    return Pairs(
        *(
            np.divide(product, count, out=np.zeros_like(product), where=count > 1e-12)
            for product, count in (
                (products.regulator, counts.regulator),
                (products.seed, counts.seed),
                (products.neither, counts.neither),
            )
        )
    )


def seed_variance(deviations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What differences between seeds add to the variance of the mean, [M], 0 or more; 0 with one seed.

    deviations, weights: as in `mean_products`, the weights of all cells summing to 1.
    """
    if len(deviations) < 2:
        return np.zeros(deviations.shape[-1])
    mean = mean_products(deviations, weights)
    return np.maximum(mean.seed - mean.neither, 0) * np.square(weights.sum(1)).sum(0)
