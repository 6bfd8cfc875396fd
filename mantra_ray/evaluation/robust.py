"""Results that few regulators cannot decide: the interquartile mean, and the probability of improvement.

Both look at pairs of seed and regulator, each counting once however large its errors are (Agarwal et al. 2021, "Deep
reinforcement learning at the edge of the statistical precipice"; their runs and tasks are our seeds and regulators).
What seeds differ by is estimated from how large the gains are: seeds that by chance agree on who gains still show it.
"""

from __future__ import annotations

import numpy as np
from scipy.special import betaincinv, gammaincinv, ndtr, stdtrit

from mantra_ray.evaluation.components import cell_sums
from mantra_ray.evaluation.statistics import Bootstrap, Interval, Spread, normal_draws, resample_counts

BLOCK = 2**22  # entries of the largest temporary table
OUTER = 0.05  # share of the pairs cut off at either end before seeds are compared: a seed's shift, not its outliers
EFFICIENCY = 0.84  # of the interquartile mean of normal draws, as many seeds' shifts are, against their mean
POINTS = 256  # at which the distribution of the pairs' gains is looked at

PairGains = tuple[np.ndarray, np.ndarray, np.ndarray]  # gain, regulator and seed of each pair


def pair_gains(gained: np.ndarray, reference: np.ndarray, regulator: np.ndarray, seed: np.ndarray) -> PairGains:
    """Sum of `gained` over sum of `reference` in each pair of seed and regulator, from records [n].

    Pairs are in the order of seeds, then of regulators; one whose reference sums to 0 is left out.
    """
    cells = cell_sums(np.stack([gained, reference], axis=1), regulator, seed)
    place = np.nonzero(cells[..., 1])
    held = cells[place]
    return held[:, 0] / held[:, 1], np.unique(regulator)[place[1]], np.unique(seed)[place[0]]


def interquartile_mean(ordered: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mean of the middle half of the values, [B]: ordered [n] ascending, weight [B, n] how much each counts."""
    end = np.cumsum(weight, axis=1, dtype=float)
    total = end[:, -1:]
    inner = np.clip(end, total / 4, 3 * total / 4)
    middle = np.diff(inner, axis=1, prepend=total / 4)
    return middle @ ordered / (total[:, 0] / 2)


def interquartile_interval(
    gain: np.ndarray,
    regulator: np.ndarray,
    seed: np.ndarray,
    resamples: int = 1000,
    confidence: float = 0.95,
    rng_seed: int = 0,
) -> Interval:
    """Mean of the middle half of the pairs' gains [n], with its interval (NaN with one regulator).

    Its influence function is that of a trimmed mean: deviations cut off at the quartiles, over the half that is kept.
    A seed that shifts all of its pairs is not seen so; its shift counts as in a mean, over the trimmed mean's
    efficiency.
    """
    order = np.argsort(gain, kind="stable")
    gain, regulator, seed = gain[order], regulator[order], seed[order]
    names, index = np.unique(regulator, return_inverse=True)
    value = interquartile_mean(gain, np.ones((1, len(gain))))
    if len(names) < 2:
        return Interval(float(value[0]), float("nan"), float("nan"), len(gain))
    counts, step = resample_counts(len(names), resamples, rng_seed, 1), max(BLOCK // len(gain), 1)
    draws = [interquartile_mean(gain, counts[at : at + step][:, index]) for at in range(0, resamples, step)]
    kept = _trimmed(gain, 0.25)
    influence, share = _deviations(2 * kept, regulator, seed)
    shift = _deviations(_trimmed(gain, OUTER), regulator, seed)[0] / np.sqrt(EFFICIENCY)
    drawn = Bootstrap(value, np.concatenate(draws)[:, None], Spread.of(influence, share, shift), rng_seed)
    return Interval(*(float(limit[0]) for limit in (value, *drawn.limits(1 - confidence))), len(gain))


def improvement_interval(
    gain: np.ndarray,
    regulator: np.ndarray,
    seed: np.ndarray,
    resamples: int = 1000,
    confidence: float = 0.95,
    rng_seed: int = 0,
) -> Interval:
    """Probability that a pair's gain [n] is above 0, ties counting half, with its interval (NaN with one regulator).

    Without differences between seeds it is Jeffreys' interval (Brown, Cai and DasGupta 2001, "Interval estimation for a
    binomial proportion") for as many independent pairs as would leave the variance over regulators (Korn and Graubard
    1998): it stays in [0, 1], and is more than a point where all regulators agree. Where seeds differ in their gains, a
    new one is taken to shift the gains by a normal draw, and the probability follows from generalized pivots of the
    shift's mean and variance (Weerahandi 1993, "Generalized confidence intervals").
    """
    better = (gain > 0) + (gain == 0) / 2
    share, n, regulators = float(better.mean()), len(gain), len(np.unique(regulator))
    if regulators < 2:
        return Interval(share, float("nan"), float("nan"), n)
    tail = (1 - confidence) / 2
    count = _independent_pairs(better, regulator, seed, tail)
    trimmed = _trimmed(gain, OUTER)
    shift, weight = _deviations(trimmed, regulator, seed)
    spread = Spread.of(shift, weight)
    if spread.between[0] == 0:
        hits, misses = share * count, (1 - share) * count
        lower = betaincinv(hits + 0.5, misses + 0.5, tail) if hits > 0 else 0.0
        upper = betaincinv(hits + 0.5, misses + 0.5, 1 - tail) if misses > 0 else 1.0
        return Interval(share, float(lower), float(upper), n)
    rng = np.random.default_rng((rng_seed, 2))
    even = (np.arange(resamples) + 0.5) / resamples
    of_seeds = _seed_variance_pivots(spread, rng.permutation(even))
    _, of_pair = np.unique(seed, return_inverse=True)
    own_mean = np.bincount(of_pair, trimmed) / np.bincount(of_pair)
    alike = np.quantile(gain - own_mean[of_pair] + trimmed.mean(), (np.arange(POINTS) + 0.5) / POINTS)
    moved = alike + (normal_draws(resamples, rng_seed) * np.sqrt(of_seeds))[:, None]
    width = np.sqrt(of_seeds * len(shift))[:, None]  # of one seed's shift, not of the mean of all
    chance = np.where(width > 0, ndtr(moved / np.where(width > 0, width, 1)), (np.sign(moved) + 1) / 2).mean(1)
    drawn = betaincinv(chance * count + 0.5, (1 - chance) * count + 0.5, rng.permutation(even))
    lower, upper = np.quantile(drawn, [tail, 1 - tail])
    return Interval(share, float(min(lower, share)), float(max(upper, share)), n)


def _trimmed(gain: np.ndarray, outer: float) -> np.ndarray:
    return np.clip(gain, *np.quantile(gain, [outer, 1 - outer]))


def _deviations(value: np.ndarray, regulator: np.ndarray, seed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each cell adds to the mean's error, and the cells' weights, each [S, R, 1], from values of pairs [n]."""
    columns = np.stack([value - value.mean(), np.ones(len(value))], axis=1) / len(value)
    cells = cell_sums(columns, regulator, seed)
    return cells[..., :1], cells[..., 1:]


def _independent_pairs(better: np.ndarray, regulator: np.ndarray, seed: np.ndarray, tail: float) -> float:
    """How many independent pairs would tell as much of the mean of `better` [n] as these do, regulators recurring."""
    share, n, regulators = better.mean(), len(better), len(np.unique(regulator))
    by_regulator = _deviations(better, regulator, seed)[0].sum(0)
    variance = float(np.square(by_regulator).sum()) * regulators / (regulators - 1)
    if share in (0, 1):  # that all agree does not tell how alike a regulator's pairs are
        count = regulators
    elif variance > 0:
        count = share * (1 - share) / variance
    else:
        count = n
    return float(min(count * (stdtrit(n - 1, tail) / stdtrit(regulators - 1, tail)) ** 2, n))


def _seed_variance_pivots(spread: Spread, quantile: np.ndarray) -> np.ndarray:
    """Pivots [B] of what seeds add to the variance of the mean, at quantiles [B] of chi-square: 0 or more."""
    freedom, of_regulators = spread.freedom[0], spread.variance[0] - spread.between[0]
    return np.maximum(spread.variance[0] * freedom / (2 * gammaincinv(freedom / 2, quantile)) - of_regulators, 0)
