"""Intervals and p-values for paired results over seeds and regulators.

Regulators are resampled with replacement; one that is drawn twice counts twice in every seed, since the seeds split
one data set and what is easy or hard about a regulator recurs in all of them. What seeds differ in beyond that is
estimated (`components.seed_variance`) and added to the draws as normal noise: percentiles of 3 to 5 resampled seeds
would cover 70 to 87 % where seeds dominate. Three things then set the limits:

- percentiles further out than the nominal ones, as Student's t is wider than the normal (Hesterberg 2015, "What
  teachers should know about the bootstrap": the expanded percentile interval);
- where those of the bias-corrected accelerated bootstrap lie further out, these (Efron 1987, BCa): alone they cover
  too little under heavy tails, as the others do under skew;
- distances to the estimate stretched to Student's t with Satterthwaite's degrees of freedom, few where seeds dominate.

`mantra bench coverage` measures how often the intervals hold the truth. The price: where seeds differ by chance alone,
three of them look different in a third of all experiments, and the interval is then several times too wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from mantra_ray.evaluation.components import cell_sums, seed_variance

BISECTIONS = 30
STEEPEST = 0.1  # least denominator of the acceleration's correction, so that it stays monotone


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval (NaN with one regulator) from n records, or pairs of seed and regulator."""

    value: float
    lower: float
    upper: float
    n: int


@lru_cache(maxsize=16)
def resample_counts(units: int, resamples: int, rng_seed: int, stream: int) -> np.ndarray:
    """How often each unit is drawn, float32 [resamples, units]; cached, so that all configurations share draws."""
    rng = np.random.default_rng((rng_seed, stream))
    counts = rng.multinomial(units, np.full(units, 1 / units), size=resamples).astype(np.float32)
    counts.setflags(write=False)
    return counts


@lru_cache(maxsize=16)
def normal_draws(resamples: int, rng_seed: int) -> np.ndarray:
    """Standard normal draws [resamples] in random order, at even quantiles, so that few are enough."""
    even = ndtri((np.arange(resamples) + 0.5) / resamples)
    draws = np.random.default_rng((rng_seed, 0)).permutation(even)
    draws.setflags(write=False)
    return draws


def resampled_sums(columns: np.ndarray, regulator: np.ndarray, resamples: int, rng_seed: int) -> np.ndarray:
    """Sums of `columns` [n, M] over bootstrap resamples of the regulators [n], [resamples, M]."""
    cells = cell_sums(columns, regulator, np.zeros_like(regulator))[0]
    return resample_counts(len(cells), resamples, rng_seed, 1) @ cells


def expanded(alpha: float, regulators: int) -> float:
    """Standard normal quantile z < 0 at which percentiles of resampled regulators bound a 1 - alpha interval.

    Student's t, times sqrt(R / (R - 1)), by which a bootstrap's spread is too small.
    """
    return float(stdtrit(regulators - 1, alpha / 2) * np.sqrt(regulators / (regulators - 1)))


def percentile_limits(draws: np.ndarray, confidence: float, regulators: int) -> np.ndarray:
    """Expanded percentiles of draws [B, ..] over resampled regulators: lower and upper limits [2, ..]."""
    tail = ndtr(expanded(1 - confidence, regulators))
    return np.quantile(draws, [tail, 1 - tail], axis=0)


@dataclass(frozen=True)
class Spread:
    """Variances of M statistics over regulators and seeds, each [M], from the influence of their cells.

    influence [S, R, M]: what a cell (seed, regulator) adds to the statistic's error in first order, summing to 0 over
    cells; share [S, R, M]: the cells' weights, summing to 1; seed_influence [S, R, M]: the same where seeds are to be
    compared by something else than the influence.
    """

    variance: np.ndarray  # of the statistic
    between: np.ndarray  # what differences between seeds add to it
    freedom: np.ndarray  # Satterthwaite's, R - 1 where seeds add nothing
    acceleration: np.ndarray  # Efron's: a sixth of the skewness
    regulators: int

    @staticmethod
    def of(influence: np.ndarray, share: np.ndarray, seed_influence: np.ndarray | None = None) -> Spread:
        seeds, regulators, _ = influence.shape
        shrink, freedom = (regulators - 1) / regulators, max(seeds - 1, 1)
        by_seed = influence if seed_influence is None else seed_influence
        by_regulator, between = influence.sum(0), seed_variance(by_seed, share)
        of_regulators = np.square(by_regulator).sum(0) / shrink
        of_seeds = np.square(by_seed.sum(1)).sum(0) * seeds / freedom  # with what seeds differ in by chance
        variance, most = of_regulators + between, np.full_like(between, regulators - 1)
        spread = np.square(of_regulators) / (regulators - 1) + np.square(of_seeds) / freedom
        found = np.divide(np.square(variance), spread, out=most.copy(), where=between > 0)
        cubes, scale = np.power(by_regulator, 3).sum(0), 6 * (variance * shrink) ** 1.5
        acceleration = np.divide(cubes, scale, out=np.zeros_like(cubes), where=scale > 0)
        return Spread(variance, between, np.clip(found, 1, most), acceleration, regulators)


class Bootstrap:
    """Draws [B, M] of M statistics of value [M] over resampled regulators, and the intervals that they give."""

    def __init__(self, value: np.ndarray, draws: np.ndarray, spread: Spread, rng_seed: int):
        self.value, self.spread = value, spread
        between, shrink = spread.between, (spread.regulators - 1) / spread.regulators  # of a bootstrap's variance
        if between.any():
            draws = draws + normal_draws(len(draws), rng_seed)[:, None] * np.sqrt(between * shrink)
        self.draws = np.sort(draws, axis=0)
        below = ((self.draws < value).sum(0) + (self.draws <= value).sum(0)) / 2
        edge = 1 / (len(draws) + 1)
        self.bias = ndtri(np.clip(below / len(draws), edge, 1 - edge))

    def limits(self, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper limits of the 1 - alpha intervals, each [M]."""
        regulators = self.spread.regulators
        z = expanded(alpha, regulators)
        stretch = stdtrit(self.spread.freedom, alpha / 2) / stdtrit(regulators - 1, alpha / 2)
        sides = []
        for side, furthest in ((z, np.minimum), (-z, np.maximum)):
            shifted = self.bias + side
            accelerated = self.bias + shifted / np.maximum(1 - self.spread.acceleration * shifted, STEEPEST)
            limit = self._percentile(furthest(accelerated, side))
            far = stretch > 1  # others as they are: they may be infinite
            sides.append(np.where(far, self.value + (limit - self.value) * np.where(far, stretch, 1), limit))
        return sides[0], sides[1]

    def _percentile(self, z: np.ndarray) -> np.ndarray:
        place = np.rint(ndtr(z) * (len(self.draws) - 1)).astype(np.int64)
        return np.take_along_axis(self.draws, place[None], axis=0)[0]

    def p_value(self) -> float:
        """Two-sided p-value that the first statistic is 0: the largest alpha whose interval still holds 0.

        At least 2 / (B + 1), what B draws can tell.
        """
        low, high = 2 / (len(self.draws) + 1), 1.0

        def holds(alpha: float) -> bool:
            lower, upper = self.limits(alpha)
            return bool(lower[0] <= 0 <= upper[0])

        if not holds(low) or self.value[0] == 0:
            return high if self.value[0] == 0 else low
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return low


def ratio_bootstrap(
    numerator: np.ndarray,
    denominator: np.ndarray,
    regulator: np.ndarray,
    seed: np.ndarray,
    resamples: int,
    rng_seed: int,
) -> Bootstrap:
    """Draws of ratios of sums of numerator and denominator [n, M]; regulator and seed are [n]."""
    cells = cell_sums(np.hstack([numerator, denominator]), regulator, seed)
    sums = resample_counts(cells.shape[1], resamples, rng_seed, 1) @ cells.sum(0)
    above, below = np.split(cells, 2, axis=-1)
    total = below.sum((0, 1))
    value = _ratio(above.sum((0, 1)), total)
    safe = np.where(total == 0, 1, total)
    influence = (above - np.where(total == 0, 0, value) * below) / safe * (total != 0)
    return Bootstrap(value, _ratio(*np.hsplit(sums, 2)), Spread.of(influence, below / safe), rng_seed)


def ratio_intervals(
    numerator: np.ndarray,
    denominator: np.ndarray,
    regulator: np.ndarray,
    seed: np.ndarray,
    resamples: int,
    confidence: float,
    rng_seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ratios of sums of numerator and denominator [n, M] with their limits: value, lower, upper, each [M].

    A ratio whose denominators sum to zero is 0 if its numerators do too, else infinite. Limits are NaN with a
    single regulator, whose spread cannot be known.
    """
    if len(np.unique(regulator)) < 2:
        value = _ratio(numerator.sum(0, dtype=float), denominator.sum(0, dtype=float))
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    drawn = ratio_bootstrap(numerator, denominator, regulator, seed, resamples, rng_seed)
    return drawn.value, *drawn.limits(1 - confidence)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((denominator == 0) & (numerator == 0), 0.0, numerator / denominator)


def nested_gain(
    error: np.ndarray,
    reference: np.ndarray,
    regulator: np.ndarray,
    seed: np.ndarray,
    resamples: int = 1000,
    confidence: float = 0.95,
    rng_seed: int = 0,
) -> Interval:
    """1 - sum(error) / sum(reference) over records [n] of all seeds, with its interval."""
    value, lower, upper = ratio_intervals(
        error[:, None], reference[:, None], regulator, seed, resamples, confidence, rng_seed
    )
    # Errors are no less than 0: no gain exceeds 1, however far an interval of few seeds is stretched.
    return Interval(1 - value[0], 1 - upper[0], float(np.minimum(1.0, 1 - lower[0])), len(error))


def mean_interval(
    value: np.ndarray,
    regulator: np.ndarray,
    seed: np.ndarray,
    resamples: int = 1000,
    confidence: float = 0.95,
    rng_seed: int = 0,
) -> Interval:
    """Mean over records [n] of all seeds, with its interval."""
    limits = ratio_intervals(value[:, None], np.ones((len(value), 1)), regulator, seed, resamples, confidence, rng_seed)
    return Interval(*(limit[0] for limit in limits), len(value))


def nested_difference(
    error: np.ndarray,
    reference: np.ndarray,
    regulator: np.ndarray,
    seed: np.ndarray,
    resamples: int = 1000,
    confidence: float = 0.95,
    rng_seed: int = 0,
) -> Interval:
    """Mean of error - reference over paired records [n] (below 0: the first is better), with its interval."""
    return mean_interval(error - reference, regulator, seed, resamples, confidence, rng_seed)


def nested_p_value(
    error: np.ndarray,
    reference: np.ndarray,
    regulator: np.ndarray,
    seed: np.ndarray,
    resamples: int = 1000,
    rng_seed: int = 0,
) -> float:
    """Two-sided p-value of no difference between paired errors [n]: below alpha where the 1 - alpha interval of
    `nested_difference` leaves out 0. At least 2 / (resamples + 1), so adjust few tests or resample more.

    1 with a single regulator, from which nothing can be concluded.
    """
    if len(np.unique(regulator)) < 2:
        return 1.0
    difference = (error - reference)[:, None]
    return ratio_bootstrap(difference, np.ones_like(difference), regulator, seed, resamples, rng_seed).p_value()


def holm(p_values: np.ndarray) -> np.ndarray:
    """P-values [m] adjusted for m tests (Holm 1979), in the order given."""
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
