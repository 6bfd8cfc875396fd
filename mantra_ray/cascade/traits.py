"""Program-to-trait weights by weighted least squares on gene effects."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import RidgeCV

from mantra_ray.errors import InputError

ILL_CONDITIONED = 1e8
PENALTIES = 10.0 ** np.arange(-6, 5)  # of the mean diagonal of the normal matrix


def trait_weights(
    loadings: np.ndarray, b: np.ndarray, se: np.ndarray, ridge: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Regress gene effects on program loadings.

    With D = diag(1 / se^2) over the genes where b and se are finite and se > 0, and N = W^T D W:
    theta = A^-1 W^T D b and cov(theta) = s^2 A^-1 N A^-1, where A = N, and s^2 is the residual chi-square per degree
    of freedom, at least 1: genes scatter around the programs by more than their measurement error, and standard
    errors that ignore it are far too small. If N is ill-conditioned (condition number above 1e8) A has a ridge of
    1e-6 of its mean diagonal. With `ridge` A = N + penalty I (Hoerl & Kennard 1970), the penalty being the one of
    1e-6 to 1e4 times N's mean diagonal whose weighted squared error is least when each gene is left out in turn; the
    degrees of freedom are then genes minus trace(A^-1 N), and the standard errors do not count the shrinkage's bias.

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
    diagonal, penalty = np.trace(normal) / programs, 0.0
    if ridge:
        root = np.sqrt(weight)
        choice = RidgeCV(PENALTIES * diagonal, fit_intercept=False)
        penalty = float(choice.fit(loadings * root[:, None], effect * root).alpha_)
    elif np.linalg.cond(normal) > ILL_CONDITIONED:
        penalty = 1e-6 * diagonal
    inverse = np.linalg.inv(normal + penalty * np.eye(programs))
    theta = inverse @ (loadings.T @ (weight * effect))
    freedom = count - (np.trace(inverse @ normal) if ridge else programs)
    chi_square = scale * np.sum(weight * (effect - loadings @ theta) ** 2) / freedom
    covariance = inverse @ normal @ inverse if penalty else inverse
    error = np.sqrt(max(chi_square, 1.0) / scale * np.diag(covariance))
    return theta.astype(np.float32), error.astype(np.float32)
