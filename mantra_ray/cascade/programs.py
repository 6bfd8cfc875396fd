"""Gene programs W from the training fold: consensus NMF, or principal axes."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances
from sklearn.utils.extmath import randomized_svd

from mantra_ray.config import ProgramsConfig
from mantra_ray.errors import InputError

OUTLIER_DISTANCE = 0.5  # Kotliar et al. 2019, the default threshold of local density
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


def fit_programs(delta_expression: np.ndarray, config: ProgramsConfig, seed: int) -> np.ndarray:
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
        changes = np.concatenate([np.maximum(changes, 0), np.maximum(-changes, 0)])
    _, strength, axes = randomized_svd(changes, config.k, n_iter=7, random_state=seed)
    if not strength[-1] > 1e-5 * strength[0]:
        rank = int(np.sum(strength > 1e-5 * strength[0]))
        raise InputError("config", "programs.k", config.k, f"the training fold has rank {rank}")
    loadings = axes.T if config.method == "pca" else _consensus(changes, config, seed)
    check_rank(loadings, "config")
    return np.ascontiguousarray(loadings, np.float32)


def _consensus(rows: np.ndarray, config: ProgramsConfig, seed: int) -> np.ndarray:
    """Median spectra [G, K] of the clusters of all restarts' spectra, outliers dropped."""
    rows = rows[rows.any(1)]
    spectra = []
    for restart in np.random.SeedSequence(seed).generate_state(config.restarts):
        model = NMF(config.k, init="random", tol=1e-3, max_iter=100, random_state=int(restart))
        with warnings.catch_warnings():  # the consensus needs many rough solutions, not one exact optimum
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(rows)
        spectra.append(model.components_)
    pooled = np.concatenate(spectra)
    pooled = pooled[pooled.any(1)]
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    if len(pooled) < config.k:
        raise InputError("config", "programs.k", config.k, f"NMF found only {len(pooled)} programs that are not empty")

    neighbours = max(1, int(0.3 * config.restarts))
    density = np.sort(pairwise_distances(pooled), axis=1)[:, 1 : neighbours + 1].mean(1) if len(pooled) > 1 else [0]
    order = np.argsort(density, kind="stable")
    # Where restarts disagree more than that, the k spectra that agree best still make the programs.
    kept = order[: max(config.k, int(np.sum(np.less(density, OUTLIER_DISTANCE))))]
    kept.sort()
    label = KMeans(config.k, n_init=10, random_state=seed).fit_predict(pooled[kept])
    medians = np.stack([np.median(pooled[kept][label == cluster], axis=0) for cluster in range(config.k)])
    norms = np.linalg.norm(medians, axis=1, keepdims=True)
    return (medians / np.where(norms > 0, norms, 1)).T
