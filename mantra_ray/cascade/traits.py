"""Program-to-trait weights by weighted least squares on gene effects."""

from __future__ import annotations

import numpy as np

from mantra_ray.errors import InputError

ILL_CONDITIONED = 1e8


def trait_weights(loadings: np.ndarray, b: np.ndarray, se: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Regress gene effects on program loadings.

    With D = diag(1 / se^2) over the genes where b and se are finite and se > 0:
    theta = (W^T D W)^-1 W^T D b and cov(theta) = s^2 (W^T D W)^-1, where s^2 is the residual chi-square per degree
    of freedom, at least 1: genes scatter around the programs by more than their measurement error, and standard
    errors that ignore it are far too small. If W^T D W is ill-conditioned (condition number above 1e8) a ridge of
    1e-6 of its mean diagonal is added.

    Args: loadings [G, K]; b, se [G], NaN where the gene was not measured.
    Returns: theta [K] and its standard errors [K], in units of b per unit of program.
    Raises: InputError if fewer genes than programs are usable.
    """
    loadings, b, se = (np.asarray(array, np.float64) for array in (loadings, b, se))
    usable = np.isfinite(b) & np.isfinite(se) & (se > 0)
    count, programs = int(usable.sum()), loadings.shape[1]
    if count <= programs:
        raise InputError("traits", "b", count, f"{programs} programs need more genes with finite b and se > 0")
    weight = 1 / se[usable] ** 2
    scale = weight.mean()  # keeps the normal matrix near 1, whatever the unit of b
    loadings, effect, weight = loadings[usable], b[usable], weight / scale
    normal = (loadings * weight[:, None]).T @ loadings
    if np.linalg.cond(normal) > ILL_CONDITIONED:
        normal += np.eye(programs) * 1e-6 * np.trace(normal) / programs
    inverse = np.linalg.inv(normal)
    theta = inverse @ (loadings.T @ (weight * effect))
    chi_square = scale * np.sum(weight * (effect - loadings @ theta) ** 2) / (count - programs)
    variance = max(chi_square, 1.0) / scale * np.diag(inverse)
    return theta.astype(np.float32), np.sqrt(variance).astype(np.float32)
