"""The manifold's graph part: smoothing of expression changes over the gene graph."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.linalg import splu

from mantra_ray.errors import InputError


class LaplacianSmoother:
    """Apply (I + lambda L)^-1, L the normalised Laplacian I - D^-1/2 A D^-1/2 of the gene graph.

    A is the symmetrised matrix of absolute edge weights without self-loops; a gene without edges has an empty row
    of L and stays as it is. The operator is symmetric with eigenvalues in [1 / (1 + 2 lambda), 1]: a contraction,
    and the identity at lambda = 0.

    Args: source, target, weight [E], edges among `genes` nodes; smoothing, lambda.
    Raises: InputError if lambda is negative.
    """

    def __init__(self, source: np.ndarray, target: np.ndarray, weight: np.ndarray, genes: int, smoothing: float):
        if not smoothing >= 0:
            raise InputError("config", "manifold.smoothing", smoothing, "must be 0 or more")
        other = source != target
        half = sparse.coo_matrix(
            (np.abs(weight[other]).astype(np.float64), (source[other], target[other])), shape=(genes, genes)
        )
        adjacency = (half + half.T).tocsr()
        degree = np.asarray(adjacency.sum(1)).ravel()
        inverse_root = np.divide(1, np.sqrt(degree), out=np.zeros(genes), where=degree > 0)
        scaled = sparse.diags(inverse_root) @ adjacency @ sparse.diags(inverse_root)
        laplacian = sparse.diags((degree > 0).astype(np.float64)) - scaled
        self.factor = splu((sparse.identity(genes) + smoothing * laplacian).tocsc(), permc_spec="MMD_AT_PLUS_A")

    def __call__(self, change: np.ndarray) -> np.ndarray:
        """Smooth changes [n, G] over the genes; the result has the input's dtype."""
        return self.factor.solve(np.asarray(change.T, np.float64)).T.astype(change.dtype)
