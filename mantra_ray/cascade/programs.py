"""Gene programs W of signed changes: consensus NMF of their halves, or principal axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.utils.extmath import randomized_svd

from mantra_ray.cascade.consensus import (
    Progress,
    Rows,
    Stability,
    median_spectra,
    refit_spectra,
    refit_usages,
    restarts,
    stability,
)
from mantra_ray.config import ProgramsConfig
from mantra_ray.errors import InputError

TOLERATED_LOSS = 0.05  # of silhouette, for more programs
SMALLEST_SINGULAR = 1e-3  # of W with unit columns; below it (W^T W)^-1 amplifies noise a million times


def check_rank(loadings: np.ndarray, source: object) -> None:
    """Raise InputError unless (W^T W)^-1 exists for loadings [G, K] with room to spare."""
    genes, programs = loadings.shape
    if programs > genes:
        raise InputError(source, "programs", programs, f"more programs than the {genes} genes allow")
    norms = np.linalg.norm(loadings, axis=0)
    if not norms.min() > 0:
        raise InputError(source, "loadings", int(norms.argmin()), "a program without weight on any kept gene")
    smallest = float(np.linalg.svd(loadings / norms, compute_uv=False)[-1])
    if smallest < SMALLEST_SINGULAR:
        raise InputError(source, "loadings", smallest, "programs are linearly dependent; use fewer (programs.k)")


def fit_programs(
    delta_expression: np.ndarray, config: ProgramsConfig, seed: int, on_progress: Progress | None = None
) -> np.ndarray:
    """Programs of signed expression changes.

    `nmf`: consensus NMF (Kotliar et al. 2019, eLife 8:e43803) of the 2n non-negative rows max(X, 0) and max(-X, 0),
    so that a gene set which falls together is a program like one which rises together. `pca`: the leading right
    singular vectors of X, not centred, because changes are measured against control and 0 is their origin.

    Args: delta_expression [n, G], changes of the training rows. Returns: W [G, K] float32, columns of unit norm.
    Raises: InputError if k exceeds what rows and genes allow or the programs are linearly dependent.
    """
    changes = np.asarray(delta_expression, np.float32)
    limit = min(changes.shape)
    if not 1 <= config.k <= limit:
        raise InputError("config", "programs.k", config.k, f"the training fold allows 1 to {limit} programs")
    if config.method == "nmf":
        changes = halves(changes)
    _, strength, axes = randomized_svd(changes, config.k, n_iter=7, random_state=seed)
    if not strength[-1] > 1e-5 * strength[0]:
        rank = int(np.sum(strength > 1e-5 * strength[0]))
        raise InputError("config", "programs.k", config.k, f"the training fold has rank {rank}")
    loadings = axes.T if config.method == "pca" else _consensus(changes, config, seed, on_progress)
    check_rank(loadings, "config")
    return np.ascontiguousarray(loadings, np.float32)


def halves(changes: np.ndarray) -> np.ndarray:
    """The rising and the falling half of signed changes [n, G] as rows [<= 2n, G], empty ones left out."""
    rows = np.concatenate([np.maximum(changes, 0), np.maximum(-changes, 0)])
    return rows[rows.any(1)]


def choose_k(
    rows: Rows, ks: Sequence[int], config: ProgramsConfig, seed: int, on_progress: Progress | None = None
) -> tuple[list[Stability], int]:
    """Stability and error of each K on non-negative rows [n, G] (`halves` of changes, or scaled counts), and a K.

    Suggested is the largest K whose silhouette comes within 0.05 of the best: more programs explain more, up to
    where restarts cease to agree. Kotliar et al. 2019 judge the same two curves by eye. Raises InputError for a K
    that the rows do not allow, or with less than two restarts, which cannot disagree.
    """
    limit = min(rows.shape)
    for k in ks:
        if not 2 <= k <= limit:
            raise InputError("options", "--ks", k, f"the data allow 2 to {limit} programs")
    if config.restarts < 2:
        raise InputError("options", "--programs.restarts", config.restarts, "stability wants at least 2")
    ks = sorted(set(ks))
    pooled = restarts(rows, ks, config, seed, on_progress)
    table = [stability(rows, pooled[k], k, config, seed) for k in ks]
    best = max((row.silhouette for row in table if not np.isnan(row.silhouette)), default=None)
    if best is None:
        raise InputError("options", "--ks", ks, "restarts found too few spectra to be compared")
    return table, max(row.k for row in table if row.silhouette >= best - TOLERATED_LOSS)


def _consensus(rows: np.ndarray, config: ProgramsConfig, seed: int, on_progress: Progress | None) -> np.ndarray:
    """Consensus spectra refitted to the rows [2n, G], [G, K] with columns of unit norm."""
    medians = median_spectra(restarts(rows, [config.k], config, seed, on_progress)[config.k], config.k, config, seed)
    usages = refit_usages(rows, medians)
    spectra = refit_spectra(usages.T @ usages, usages.T @ rows)
    spectra = np.where(spectra.any(1, keepdims=True), spectra, medians)  # a program that no row needs stays what it was
    norms = np.linalg.norm(spectra, axis=1, keepdims=True)
    return (spectra / np.where(norms > 0, norms, 1)).T
