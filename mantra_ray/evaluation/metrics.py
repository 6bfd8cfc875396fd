"""Metrics of predicted against observed changes.

Conventions, so that no value is NaN: a prediction without direction or order (constant, or zero) has cosine,
Pearson and Spearman 0; its sign is right half of the time; ties count half. A metric of records returns one
value for each record [n], to be averaged over any slice.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

# Relative size below which a centred vector is rounding noise of float32, not signal.
ROUNDING = 1e-5
BLOCK = 2**22  # entries of the largest temporary table


def squared_error(predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Squared error of each record, averaged over columns, [n, K] -> [n]."""
    return np.square(predicted - observed, dtype=np.float64).mean(1)


def error_weights(noise: np.ndarray, train_residual: np.ndarray, train_noise: np.ndarray) -> np.ndarray:
    """Weights 1 / (noise + tau2) of entries [n, K], with tau2 the reference's error variance beyond the noise.

    tau2 is the mean of train_residual^2 - train_noise over the training rows [m, K], and at least 1 % of the mean
    square, so that one precise entry cannot carry the metric (moment estimate; DerSimonian and Laird 1986).
    """
    square = np.square(train_residual, dtype=np.float64).mean()
    tau2 = max(square - train_noise.mean(dtype=np.float64), 0.01 * square, np.finfo(np.float32).tiny)
    return 1.0 / (noise + tau2)


def _row_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", a, b)


def cosine(predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Cosine of each record's change, [n, K] -> [n]."""
    scale = np.sqrt(_row_product(predicted, predicted) * _row_product(observed, observed))
    return np.divide(_row_product(predicted, observed), scale, out=np.zeros(len(scale), scale.dtype), where=scale > 0)


def _centred(x: np.ndarray) -> np.ndarray:
    """Rows of x [n, G] minus their means; rows that are constant up to rounding become exactly 0."""
    centred = x - x.mean(1, keepdims=True)
    constant = _row_product(centred, centred) <= ROUNDING**2 * _row_product(x, x)
    centred[constant] = 0
    return centred


def pearson(predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Pearson correlation over columns within each record, [n, G] -> [n]."""
    return cosine(_centred(predicted), _centred(observed))


def shift(x: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Rows of x [n, G] as deviations from `origin` [G]; rows that equal it up to rounding become exactly 0."""
    moved = x - origin
    moved[_row_product(moved, moved) <= ROUNDING**2 * (origin @ origin)] = 0
    return moved


def spearman(predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Spearman correlation over columns within each record, [n, K] -> [n]."""
    return pearson(rankdata(predicted, axis=1), rankdata(observed, axis=1))


def _top_share(size: np.ndarray, top: int) -> np.ndarray:
    """Membership of the `top` largest columns of each row [n, K]; ties at the border share the places left."""
    border = -np.partition(-size, top - 1, axis=1)[:, top - 1 : top]
    above, tied = size > border, size == border
    return above + tied * ((top - above.sum(1, keepdims=True)) / tied.sum(1, keepdims=True))


def top_overlap(predicted: np.ndarray, observed: np.ndarray, top: int = 8) -> np.ndarray:
    """Share of the `top` most changed columns that the prediction names, [n, K] -> [n]; top / K by chance."""
    top = min(top, predicted.shape[1])
    return _row_product(_top_share(np.abs(predicted), top), _top_share(np.abs(observed), top)) / top


def discrimination(predicted: np.ndarray, observed: np.ndarray, regulator: np.ndarray) -> np.ndarray:
    """Share of records of other regulators that lie farther from the prediction than the record itself, [n].

    Euclidean distance over columns [n, K]; 1 is perfect, 0.5 chance (also for a constant prediction, on average
    over records, and where no other regulator is judged).
    """
    # |p - o|^2 without |p|^2, which is the same for all candidates of one prediction
    square, share = np.square(observed).sum(1), np.empty(len(observed))
    for rows in np.array_split(np.arange(len(observed)), -(-(observed.shape[0] ** 2) // BLOCK) or 1):
        distance = square[None, :] - 2 * predicted[rows] @ observed.T
        own = distance[np.arange(len(rows)), rows][:, None]
        other = regulator[rows, None] != regulator[None, :]
        farther = ((distance > own) + 0.5 * (distance == own)) * other
        rivals = other.sum(1)
        share[rows] = np.where(rivals > 0, farther.sum(1) / np.maximum(rivals, 1), 0.5)
    return share


def sign_hits(predicted: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entries [n, T] with the observed sign, and entries judged, each [n]: accuracy is the ratio of their sums.

    A predicted zero counts half; entries observed to be exactly zero are not judged.
    """
    judged = observed != 0
    hits = np.where(predicted == 0, 0.5, np.sign(predicted) == np.sign(observed))
    return (hits * judged).sum(1), judged.sum(1).astype(float)
