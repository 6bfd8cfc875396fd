"""Metrics of all records of a slice at once: functions of sums over records, so that a bootstrap resamples the sums.

A metric that is defined for one column (a trait) is averaged over columns. Conventions, so that no value is NaN: where
predictions or observations do not vary, correlation, slope and spread ratio are 0; where observed signs agree in all
columns, the area under the curve is 1/2.
"""

from __future__ import annotations

import numpy as np

from mantra_ray.evaluation.metrics import ROUNDING
from mantra_ray.evaluation.statistics import percentile_limits, resample_counts, resampled_sums

Limits = tuple[float, float, float]  # value, lower, upper
BLOCK = 2**22  # entries of the largest temporary table


def sums_of(predicted: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """What a record adds to the sums: 1, x, y, x^2, y^2 and x y of each column, [n, K] -> [n, 6 K]."""
    x, y = predicted.astype(float), observed.astype(float)
    return np.hstack([np.ones_like(x), x, y, x * x, y * y, x * y])


def _moments(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variances of x and y and their covariance, each [.., K], from sums [.., 6 K]; 0 where constant up to rounding."""
    n, x, y, xx, yy, xy = np.split(sums, 6, axis=-1)
    x, y, xx, yy, xy = x / n, y / n, xx / n, yy / n, xy / n
    square_x, square_y = xx - x * x, yy - y * y
    varies_x, varies_y = square_x > ROUNDING**2 * xx, square_y > ROUNDING**2 * yy
    return square_x * varies_x, square_y * varies_y, (xy - x * y) * varies_x * varies_y


def correlation(sums: np.ndarray) -> np.ndarray:
    """Pearson correlation over records of predicted and observed columns, averaged over columns, [..]."""
    x, y, xy = _moments(sums)
    return np.divide(xy, np.sqrt(x * y), out=np.zeros_like(xy), where=x * y > 0).mean(-1)


def calibration_slope(sums: np.ndarray) -> np.ndarray:
    """Slope of observed on predicted columns, averaged over columns, [..].

    1: predictions mean what they say; below 1 they are too large, above 1 too timid (Van Calster et al. 2019).
    """
    x, _, xy = _moments(sums)
    return np.divide(xy, x, out=np.zeros_like(xy), where=x > 0).mean(-1)


def spread_ratio(sums: np.ndarray) -> np.ndarray:
    """Standard deviation over records of predictions over that of observations, pooled over columns, [..].

    Near 0 the prediction has collapsed to a constant.
    """
    x, y, _ = _moments(sums)
    x, y = x.sum(-1), y.sum(-1)
    return np.sqrt(np.divide(x, y, out=np.zeros_like(x), where=y > 0))


def auroc(score: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Chance that a positive record scores higher than a negative one, ties counting half, [B]; NaN without both.

    score [n]; positive [n] bool; weight [B, n], how often each record counts. Mann and Whitney's statistic.
    """
    if not len(score):
        return np.full(len(weight), np.nan)
    order = np.argsort(score, kind="stable")
    _, first, tie = np.unique(score[order], return_index=True, return_inverse=True)
    weight, positive = weight[:, order], positive[order]
    negative = np.add.reduceat(weight * ~positive, first, axis=1)
    below = (np.cumsum(negative, axis=1) - negative / 2)[:, tie]
    pairs = (weight * positive).sum(1) * negative.sum(1)
    return np.divide((weight * positive * below).sum(1), pairs, out=np.full(len(weight), np.nan), where=pairs > 0)


def sign_auroc(predicted: np.ndarray, observed: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """How well predicted columns [n, T] tell observed values above 0 from those below, [B].

    Averaged over the columns that have both.
    """
    judged = observed != 0
    areas = [auroc(predicted[rows, t], observed[rows, t] > 0, weight[:, rows]) for t, rows in enumerate(judged.T)]
    known = np.isfinite(areas)
    count = known.sum(0)
    return np.where(count > 0, np.where(known, areas, 0).sum(0) / np.maximum(count, 1), 0.5)


class Resamples:
    """Bootstrap over the regulators of n records, with the draws that all other metrics share."""

    def __init__(self, regulator: np.ndarray, resamples: int, confidence: float, seed: int):
        self.regulator, self.resamples, self.seed = regulator, resamples, seed
        self.confidence = confidence
        names, self.index = np.unique(regulator, return_inverse=True)
        self.regulators = len(names)

    def limits(self, value: float, draws: np.ndarray) -> Limits:
        """A value with its interval, NaN with one regulator."""
        if self.regulators < 2:
            return float(value), float("nan"), float("nan")
        lower, upper = percentile_limits(draws, self.confidence, self.regulators)
        return float(value), float(lower), float(upper)

    def of_sums(self, columns: np.ndarray, metrics: dict) -> dict[str, Limits]:
        """Functions of the sums of columns [n, M], by name."""
        sums = resampled_sums(columns, self.regulator, self.resamples, self.seed)
        total = columns.sum(0)
        return {name: self.limits(metric(total), metric(sums)) for name, metric in metrics.items()}

    def of_weights(self, metric) -> Limits:
        """A function of how often each record counts, [B, n] -> [B]."""
        counts = resample_counts(self.regulators, self.resamples, self.seed, 1)
        step = max(BLOCK // len(self.index), 1)
        draws = [metric(counts[at : at + step][:, self.index]) for at in range(0, self.resamples, step)]
        return self.limits(metric(np.ones((1, len(self.index))))[0], np.concatenate(draws))


def pooled_metrics(
    program: tuple[np.ndarray, np.ndarray] | None, trait: tuple[np.ndarray, np.ndarray], resamples: Resamples
) -> dict[str, Limits]:
    """All metrics of predicted and observed programs [n, K] and traits [n, T], by name."""
    found = {}
    if program is not None:
        found |= resamples.of_sums(sums_of(*program), {"spread_ratio": spread_ratio})
    if trait[1].shape[1]:
        by_name = {"trait_correlation": correlation, "trait_calibration_slope": calibration_slope}
        found |= resamples.of_sums(sums_of(*trait), by_name)
        found["trait_auroc"] = resamples.of_weights(lambda weight: sign_auroc(*trait, weight))
    return found
