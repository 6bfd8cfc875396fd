"""Ridge regression on headers, in its kernel form so that leaving groups out is exact and cheap."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mantra_ray.baselines.headers import Headers, equal

# From most to least shrunk: a tie goes to the safer setting.
PENALTIES = (300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)


# Inner products of the headers of n queries and m rows, [n, m].
Kernel = Callable[[Headers, Headers], np.ndarray]


def one_hot(interaction: bool, dose: bool) -> Kernel:
    """Kernel of one-hot (regulator, state, strategy) columns.

    `interaction` adds regulator x state columns; `dose` multiplies the columns of the regulator by its dose.
    """

    def kernel(query: Headers, memory: Headers) -> np.ndarray:
        regulator = equal(query.regulator, memory.regulator).astype(float)
        if interaction:
            regulator *= 1.0 + equal(query.state, memory.state)
        if dose:
            regulator *= query.dose[:, None].astype(float) * memory.dose[None, :]
        return regulator + equal(query.state, memory.state) + equal(query.strategy, memory.strategy)

    return kernel


def embedded(embedding: np.ndarray) -> Kernel:
    """Kernel of one-hot (state, strategy) columns and an embedding [R, d] of the regulator."""

    def kernel(query: Headers, memory: Headers) -> np.ndarray:
        regulator = embedding[query.regulator] @ embedding[memory.regulator].T
        return regulator + equal(query.state, memory.state) + equal(query.strategy, memory.strategy)

    return kernel


def left_out_residuals(
    values: np.ndarray, vectors: np.ndarray, target: np.ndarray, group: np.ndarray, penalty: float
) -> np.ndarray:
    """Residuals [n, K] of a ridge fitted without a row's own group, exactly, from the kernel's eigensystem.

    With M = (kernel + penalty)^-1 the residual of a group g is (M_gg)^-1 (M y)_g (block form of the
    leave-one-out identity; Rasmussen and Williams 2006, section 5.4.2).
    """
    shrunk = vectors / (values + penalty)
    residual = shrunk @ (vectors.T @ target)
    sizes = np.unique(group, return_counts=True)[1]
    members, member_sizes = np.argsort(group, kind="stable"), np.repeat(sizes, sizes)
    for size in np.unique(sizes):  # groups of one size are solved as one batch
        rows = members[member_sizes == size].reshape(-1, size)
        own = shrunk[rows] @ vectors[rows].transpose(0, 2, 1)
        residual[rows] = np.linalg.solve(own, residual[rows])
    return residual


def ridge(
    query: Headers,
    memory: Headers,
    target: np.ndarray,
    group: np.ndarray,
    judged: np.ndarray,
    kernels: Sequence[Kernel],
) -> np.ndarray:
    """Weights [n, m] of the ridge whose kernel and penalty predict left-out groups of target [m, K] best.

    `judged` [m] marks the rows on which the choice is made.
    """
    best, chosen = np.inf, (kernels[0], PENALTIES[0])
    for kernel in kernels:
        values, vectors = np.linalg.eigh(kernel(memory, memory))
        for penalty in PENALTIES:
            error = np.square(left_out_residuals(values, vectors, target, group, penalty)[judged]).mean()
            if error < best * (1 - 1e-9):
                best, chosen = error, (kernel, penalty)
    kernel, penalty = chosen
    penalised = kernel(memory, memory) + penalty * np.eye(len(target))
    return np.linalg.solve(penalised, kernel(memory, query)).T.astype(np.float32)
