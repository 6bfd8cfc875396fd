"""Ridge regression on headers, from one eigensystem, so that leaving groups out is exact and cheap."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse as sparse

from mantra_ray.baselines.headers import Headers

# From most to least shrunk: a tie goes to the safer setting.
PENALTIES = (300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)


# Columns [n, F] of the headers of n records.
Features = Callable[[Headers], sparse.csr_array]


def indicators(labels: np.ndarray) -> sparse.csr_array:
    """One-hot columns of labels [n], those that occur."""
    _, column = np.unique(labels, return_inverse=True)
    return sparse.csr_array((np.ones(len(labels)), (np.arange(len(labels)), column)))


def one_hot(interaction: bool, dose: bool) -> Features:
    """One-hot (regulator, state, strategy) columns.

    `interaction` adds regulator x state columns; `dose` multiplies the columns of the regulator by its dose.
    """

    def features(headers: Headers) -> sparse.csr_array:
        labels = [headers.regulator, headers.context] if interaction else [headers.regulator]
        strength = headers.dose.astype(float) if dose else np.ones(len(headers.dose))
        regulator = [sparse.diags_array(strength) @ indicators(label) for label in labels]
        return sparse.hstack([*regulator, indicators(headers.state), indicators(headers.strategy)], format="csr")

    return features


def embedded(embedding: np.ndarray) -> Features:
    """One-hot (state, strategy) columns and an embedding [R, d] of the regulator."""

    def features(headers: Headers) -> sparse.csr_array:
        parts = [embedding[headers.regulator], indicators(headers.state), indicators(headers.strategy)]
        return sparse.hstack([sparse.csr_array(part) for part in parts], format="csr")

    return features


def eigensystem(features: sparse.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Positive eigenvalues [k] of the kernel X X' of features X [n, F] and their vectors [n, k].

    Taken from the smaller of X X' and X' X.
    """
    rows, columns = features.shape
    values, vectors = np.linalg.eigh((features @ features.T if rows <= columns else features.T @ features).toarray())
    positive = values > 1e-10 * values.max(initial=0.0)
    values, vectors = values[positive], vectors[:, positive]
    return values, vectors if rows <= columns else features @ (vectors / np.sqrt(values))


def left_out_residuals(
    values: np.ndarray, vectors: np.ndarray, target: np.ndarray, group: np.ndarray, penalty: float
) -> np.ndarray:
    """Residuals [n, K] of a ridge fitted without a row's own group, exactly, from the kernel's eigensystem.

    With M = (kernel + penalty)^-1 the residual of a group g is (M_gg)^-1 (M y)_g (block form of the
    leave-one-out identity; Rasmussen and Williams 2006, section 5.4.2). `penalty` M is 1 less a sum over the
    eigenvectors with positive values, so that the others are not needed; the factor cancels.
    """
    fitted = vectors * (values / (values + penalty))
    residual = target - fitted @ (vectors.T @ target)
    sizes = np.unique(group, return_counts=True)[1]
    members, member_sizes = np.argsort(group, kind="stable"), np.repeat(sizes, sizes)
    for size in np.unique(sizes):  # groups of one size are solved as one batch
        rows = members[member_sizes == size].reshape(-1, size)
        if size == 1:
            rows = rows[:, 0]
            residual[rows] /= 1 - np.einsum("nk,nk->n", fitted[rows], vectors[rows])[:, None]
        else:
            own = np.eye(size) - fitted[rows] @ vectors[rows].transpose(0, 2, 1)
            residual[rows] = np.linalg.solve(own, residual[rows])
    return residual


def ridge(
    query: Headers,
    memory: Headers,
    target: np.ndarray,
    group: np.ndarray,
    judged: np.ndarray,
    choices: Sequence[Features],
) -> np.ndarray:
    """Weights [n, m] of the ridge whose features and penalty predict left-out groups of target [m, K] best.

    `judged` [m] marks the rows on which the choice is made.
    """
    best = np.inf
    for features in choices:
        columns = features(query.joined(memory))
        asked, held = columns[: len(query.regulator)], columns[len(query.regulator) :]
        values, vectors = eigensystem(held)
        for penalty in PENALTIES:
            error = np.square(left_out_residuals(values, vectors, target, group, penalty)[judged]).mean()
            if error < best * (1 - 1e-9):
                best, chosen = error, (asked, held, penalty)
    asked, held, penalty = chosen
    penalised = (held.T @ held).toarray() + penalty * np.eye(held.shape[1])
    return (asked @ np.linalg.solve(penalised, held.T.toarray())).astype(np.float32)
