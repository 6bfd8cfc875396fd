"""The manifold's graph part: smoothing of expression changes over the gene graph."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.linalg import LinearOperator, cg

from mantra_ray.errors import InputError

TOLERANCE = 1e-9  # of the residual, relative to the right-hand side
ROWS = 256  # solved together


class LaplacianSmoother:
    """Apply (I + lambda L)^-1, L the normalised Laplacian I - D^-1/2 A D^-1/2 of the gene graph.

    A is the symmetrised matrix of absolute edge weights without self-loops; a gene without edges has an empty row
    of L and stays as it is. The operator is symmetric with eigenvalues in [1 / (1 + 2 lambda), 1]: a contraction,
    and the identity at lambda = 0. It is never formed: conjugate gradients (Hestenes and Stiefel 1952) reach it in few
    products with L, since the condition number is at most 1 + 2 lambda for any graph, where a factorisation fills in.

    Args: source, target, weight [E], edges among `genes` nodes; smoothing, lambda.
    Raises: InputError if lambda is negative or infinite.
    """

    def __init__(self, source: np.ndarray, target: np.ndarray, weight: np.ndarray, genes: int, smoothing: float):
        if not 0 <= smoothing < np.inf:
            raise InputError("config", "manifold.smoothing", smoothing, "must be 0 or more, and finite")
        other = source != target
        half = sparse.coo_matrix(
            (np.abs(weight[other]).astype(np.float64), (source[other], target[other])), shape=(genes, genes)
        )
        adjacency = (half + half.T).tocsr()
        degree = np.asarray(adjacency.sum(1)).ravel()
        inverse_root = np.divide(1, np.sqrt(degree), out=np.zeros(genes), where=degree > 0)
        scaled = sparse.diags(inverse_root) @ adjacency @ sparse.diags(inverse_root)
        laplacian = sparse.diags((degree > 0).astype(np.float64)) - scaled
        self.system = (sparse.identity(genes) + smoothing * laplacian).tocsr()  # symmetric positive definite

    def __call__(self, change: np.ndarray) -> np.ndarray:
        """Smooth changes [n, G] over the genes; the result has the input's dtype."""
        smoothed = np.empty_like(change)
        for start in range(0, len(change), ROWS):
            smoothed[start : start + ROWS] = self._solve(change[start : start + ROWS])
        return smoothed

    def _solve(self, change: np.ndarray) -> np.ndarray:
        """A block of rows as one system with the matrix once for each row: its condition number is that of one."""
        count, genes = change.shape
        size = np.linalg.norm(change.astype(np.float64), axis=1)
        unit = np.where(size > 0, size, 1.0)  # so that the tolerance is that of each row
        right = (change / unit[:, None]).T.astype(np.float64)  # [G, n]: a product reads L once for all rows
        apply = LinearOperator(
            (genes * count, genes * count),
            matvec=lambda x: (self.system @ x.reshape(genes, count)).ravel(),
            dtype=np.float64,
        )
        solved, failed = cg(apply, right.ravel(), x0=right.ravel(), rtol=TOLERANCE / np.sqrt(count))
        if failed:
            raise ArithmeticError(f"conjugate gradients did not reach {TOLERANCE} in {failed} steps")
        return solved.reshape(genes, count).T * unit[:, None]
