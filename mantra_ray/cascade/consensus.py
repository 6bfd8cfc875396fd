"""Consensus NMF (Kotliar et al. 2019, eLife 8:e43803): restarts, density filter, clusters, medians, refits.

Rows X [n, G] are cells or halves of changes, non-negative, dense or CSR; nothing here makes a dense copy of CSR rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import ray
import scipy.sparse as sp
from scipy.optimize import nnls
from sklearn.cluster import KMeans
from sklearn.decomposition import non_negative_factorization
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances, silhouette_score
from threadpoolctl import threadpool_limits

from mantra_ray.config import ProgramsConfig
from mantra_ray.errors import InputError

NEIGHBOURHOOD = 0.3  # of the restarts, whose nearest spectra make the local density (Kotliar et al. 2019)
BLOCK = 4096  # rows that are worked on at once in double precision
REFIT = {"tol": 1e-4, "max_iter": 1000}  # the usages of given spectra are a convex problem: solve it well
DISTRIBUTE_FROM = 1e11  # multiplications; below, some seconds' work, waking Ray's workers costs more than it saves

Progress = Callable[[int, int], None]  # restarts done, restarts in all
Rows = np.ndarray | sp.csr_array
Found = Iterator[tuple[int, np.ndarray]]  # the place of a restart and its spectra [K, G], in any order


@dataclass(frozen=True)
class Stability:
    """How well K programs repeat over restarts, and what they leave."""

    k: int
    silhouette: float  # of the clusters of all restarts' unit spectra, none filtered; 1 where restarts agree
    error: float  # squared error of X ~ usages @ spectra, as a share of the squared norm of X
    kept: float  # share of the spectra that pass the density filter


def restarts(
    rows: Rows, ks: Sequence[int], config: ProgramsConfig, seed: int, on_progress: Progress | None = None
) -> dict[int, np.ndarray]:
    """Spectra of `config.restarts` NMF runs from random starts for each K, pooled: K to [restarts * K, G], unit rows.

    Restarts are Ray tasks of one CPU each where Ray is initialised and there is enough to do, else they run one
    after another; a run is single-threaded either way, so that both give the same numbers. Empty spectra are left
    out; raises InputError if fewer than K others remain.
    """
    seeds = [int(state) for state in np.random.SeedSequence(seed).generate_state(config.restarts)]
    jobs = [(k, start) for k in ks for start in seeds]
    entries = rows.nnz if sp.issparse(rows) else rows.size
    work = 4.0 * entries * config.iterations * sum(k for k, _ in jobs)
    run = _on_ray if ray.is_initialized() and work >= DISTRIBUTE_FROM else _in_process
    found: list[np.ndarray] = [np.empty(0)] * len(jobs)
    for done, (place, spectra) in enumerate(run(rows, jobs, config), start=1):
        found[place] = spectra
        if on_progress is not None:
            on_progress(done, len(jobs))
    pooled = {}
    for k in ks:
        spectra = np.concatenate([found[place] for place, job in enumerate(jobs) if job[0] == k])
        spectra = spectra[spectra.any(1)]
        if len(spectra) < k:
            problem = f"NMF found only {len(spectra)} programs that are not empty"
            raise InputError("config", "programs.k", k, problem)
        pooled[k] = spectra / np.linalg.norm(spectra, axis=1, keepdims=True)
    return pooled


def _in_process(
    rows: Rows, jobs: Sequence[tuple[int, int]], config: ProgramsConfig
) -> Iterator[tuple[int, np.ndarray]]:
    for place, (k, start) in enumerate(jobs):
        yield place, _restart(rows, k, start, config)


def _on_ray(rows: Rows, jobs: Sequence[tuple[int, int]], config: ProgramsConfig) -> Found:
    shared, task = ray.put(rows), ray.remote(num_cpus=1)(_restart)
    place = {task.remote(shared, k, start, config): place for place, (k, start) in enumerate(jobs)}
    waiting = list(place)
    while waiting:
        ready, waiting = ray.wait(waiting)
        yield place[ready[0]], ray.get(ready[0])


def _restart(rows: Rows, k: int, start: int, config: ProgramsConfig) -> np.ndarray:
    """Spectra [K, G] of one run of coordinate descent (Cichocki and Phan 2009, IEICE E92-A:708)."""
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the consensus needs many rough solutions, not one optimum
        return non_negative_factorization(
            rows, n_components=k, init="random", tol=config.tolerance, max_iter=config.iterations, random_state=start
        )[1]


def local_density(pooled: np.ndarray, count: int) -> np.ndarray:
    """Mean distance of each unit spectrum [m, G] to its nearest neighbours, 30 % as many as restarts, [m]."""
    neighbours = min(max(1, int(NEIGHBOURHOOD * count)), len(pooled) - 1)
    if not neighbours:
        return np.zeros(len(pooled))
    return np.sort(pairwise_distances(pooled), axis=1)[:, 1 : neighbours + 1].mean(1)


def median_spectra(pooled: np.ndarray, k: int, config: ProgramsConfig, seed: int) -> np.ndarray:
    """Medians [K, G] of the k-means clusters of the pooled unit spectra [m, G], outliers dropped, rows of sum 1."""
    density = local_density(pooled, config.restarts)
    # Where restarts disagree more than the filter allows, the K spectra that agree best still make the programs.
    kept = np.sort(np.argsort(density, kind="stable")[: max(k, int(np.sum(density < config.density)))])
    return _medians(pooled[kept], _clusters(pooled[kept], k, seed), k)


def _clusters(pooled: np.ndarray, k: int, seed: int) -> np.ndarray:
    return KMeans(k, n_init=10, random_state=seed).fit_predict(pooled)


def _medians(pooled: np.ndarray, label: np.ndarray, k: int) -> np.ndarray:
    medians = np.stack([np.median(pooled[label == cluster], axis=0) for cluster in range(k)])
    total = medians.sum(1, keepdims=True)
    return medians / np.where(total > 0, total, 1)


def refit_usages(rows: Rows, spectra: np.ndarray) -> np.ndarray:
    """Non-negative usages [n, K] that give X [n, G] back best from fixed spectra [K, G]."""
    spectra = np.ascontiguousarray(spectra, rows.dtype)
    with threadpool_limits(1):
        return non_negative_factorization(rows, H=spectra, n_components=len(spectra), update_H=False, **REFIT)[0]


def refit_spectra(gram: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Non-negative spectra [K, G] that give X back best from fixed usages U, from U'U [K, K] and U'X [K, G] alone.

    Least squares with bounds, gene by gene (Lawson and Hanson 1974), on a square root of U'U: minimising
    |U h - x| and |R h - R^-T U'x| with R'R = U'U are the same, and the latter does not grow with the cells.
    """
    values, vectors = np.linalg.eigh(gram.astype(np.float64))
    span = values > max(values[-1], 0) * 1e-12
    scale = np.sqrt(values[span])
    root, targets = (vectors[:, span] * scale).T, (vectors[:, span] / scale).T @ products
    if not span.any():
        return np.zeros(products.shape)
    return np.stack([nnls(root, target, maxiter=100 * len(gram))[0] for target in targets.T], axis=1)


def unexplained(rows: Rows, usages: np.ndarray, spectra: np.ndarray) -> float:
    """Squared error of X ~ usages @ spectra as a share of the squared norm of X, without making the product."""
    usages, spectra = usages.astype(np.float64), spectra.astype(np.float64)
    norm = cross = 0.0
    for start in range(0, rows.shape[0], BLOCK):  # in float64, since nearly equal sums are subtracted
        block = rows[start : start + BLOCK].astype(np.float64)
        norm += float(np.square(block.data if sp.issparse(block) else block).sum())
        cross += float(np.vdot(block @ spectra.T, usages[start : start + BLOCK]))
    return (norm - 2 * cross + float(np.vdot(usages.T @ usages, spectra @ spectra.T))) / norm


def stability(rows: Rows, pooled: np.ndarray, k: int, config: ProgramsConfig, seed: int) -> Stability:
    """Silhouette and error of K programs, all pooled spectra [m, G] taking part (Kotliar et al. 2019, figure 1)."""
    label = _clusters(pooled, k, seed)
    apart = 1 < len(set(label)) < len(label)
    silhouette = float(silhouette_score(pooled, label)) if apart else float("nan")
    spectra = _medians(pooled, label, k)
    error = unexplained(rows, refit_usages(rows, spectra), spectra)
    kept = float(np.mean(local_density(pooled, config.restarts) < config.density))
    return Stability(k, silhouette, error, kept)
