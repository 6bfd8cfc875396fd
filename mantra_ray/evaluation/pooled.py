"""Metrics of all records of a slice at once: functions of sums over records, so that a bootstrap resamples the sums.

A metric that is defined for one column (a trait) is averaged over columns. Conventions, so that no value is NaN: where
predictions or observations do not vary, correlation, slope and spread ratio are 0; where observed signs agree in all
columns, the area under the curve is 1/2 and the curve the diagonal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mantra_ray.evaluation.metrics import ROUNDING
from mantra_ray.evaluation.statistics import percentile_limits, resample_counts, resampled_sums

Limits = tuple[float, float, float]  # value, lower, upper
BLOCK = 2**22  # entries of the largest temporary table
STEPS = 20  # of the false-positive rate
RATES = np.arange(1, STEPS) / STEPS  # at which ROC curves are read
CURVE = tuple(f"trait_tpr_at_fpr_{rate:.2f}" for rate in RATES)  # what the scores call the true-positive rates there


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


def roc(score: np.ndarray, positive: np.ndarray, weight: np.ndarray, curve: bool = True) -> np.ndarray:
    """Area under the ROC curve and, with `curve`, its true-positive rates at `RATES`, [B, 1 + 19]; NaN without both.

    score [n]; positive [n] bool; weight [B, n], how often each record counts. The area is the chance that a positive
    record scores higher than a negative one, ties counting half (Mann and Whitney's statistic). Between two thresholds
    the curve is a line; where it rises straight up, the upper end counts (Fawcett 2006, "An introduction to ROC
    analysis", algorithm 4).
    """
    found = np.full((len(weight), 1 + curve * len(RATES)), np.nan)
    if not len(score):
        return found
    order = np.argsort(-score, kind="stable")
    _, first = np.unique(-score[order], return_index=True)  # where each group of equal scores begins
    weight = weight[:, order]
    hits = weight * positive[order]
    alarms = weight - hits
    if len(first) < len(score):
        hits, alarms = (np.add.reduceat(each, first, axis=1) for each in (hits, alarms))
    passed = np.cumsum(alarms, axis=1)
    most, total = passed[:, -1:], hits.sum(1, keepdims=True)
    pairs = (most * total)[:, 0]
    np.divide((hits * (most - passed + alarms / 2)).sum(1), pairs, out=found[:, 0], where=pairs > 0)
    rows = np.flatnonzero(pairs)
    if not curve or not len(rows):
        return found
    wanted = np.arange(1, STEPS) * most[rows].astype(float)
    # one search for all rows, each lifted above the one before; whole numbers stay exact
    lift = np.arange(len(rows))[:, None] * (STEPS * float(most.max()) + 1)
    group = np.searchsorted((STEPS * passed[rows] + lift).ravel(), (wanted + lift).ravel(), side="right")
    place = rows[:, None], group.reshape(wanted.shape) % len(first)  # the first group that passes the rate
    beyond = (passed[place] - wanted / STEPS) / alarms[place]  # share of the group
    found[rows, 1:] = (np.cumsum(hits, axis=1)[place] - beyond * hits[place]) / total[rows]
    return found


def sign_roc(predicted: np.ndarray, observed: np.ndarray, weight: np.ndarray, curve: bool = True) -> np.ndarray:
    """How well predicted columns [n, T] tell observed values above 0 from those below: as `roc`, [B, 1 + 19].

    Averaged over the columns that have both, curves vertically: true-positive rates at the same false-positive rate.
    """
    found = np.stack(
        [
            roc(predicted[rows, t], observed[rows, t] > 0, weight[:, rows], curve)
            for t, rows in enumerate((observed != 0).T)
        ]
    )
    known = np.isfinite(found)
    count = known.sum(0)
    chance = np.array([0.5, *RATES])[: found.shape[2]]
    return np.where(count > 0, np.where(known, found, 0).sum(0) / np.maximum(count, 1), chance)


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

    def of_weights(self, metric: Callable[[np.ndarray], np.ndarray], names: Sequence[str]) -> dict[str, Limits]:
        """Functions of how often each record counts, [B, n] -> [B, M], by name."""
        counts = resample_counts(self.regulators, self.resamples, self.seed, 1)
        step = max(BLOCK // len(self.index), 1)
        draws = [metric(counts[at : at + step][:, self.index]) for at in range(0, self.resamples, step)]
        values = metric(np.ones((1, len(self.index))))[0]
        return {name: self.limits(*of) for name, *of in zip(names, values, np.concatenate(draws).T, strict=True)}


def pooled_metrics(
    program: tuple[np.ndarray, np.ndarray] | None,
    trait: tuple[np.ndarray, np.ndarray],
    resamples: Resamples,
    curve: bool = True,
) -> dict[str, Limits]:
    """All metrics of predicted and observed programs [n, K] and traits [n, T], by name; `curve`: with the ROC curve."""
    found = {}
    if program is not None:
        found |= resamples.of_sums(sums_of(*program), {"spread_ratio": spread_ratio})
    if trait[1].shape[1]:
        by_name = {"trait_correlation": correlation, "trait_calibration_slope": calibration_slope}
        found |= resamples.of_sums(sums_of(*trait), by_name)
        names = ("trait_auroc", *(CURVE if curve else ()))
        found |= resamples.of_weights(lambda weight: sign_roc(*trait, weight, curve), names)
    return found
