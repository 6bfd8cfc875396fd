"""Results that few regulators cannot decide: the interquartile mean, and the probability of improvement.

Both look at pairs of seed and regulator, each counting once however large its errors are (Agarwal et al. 2021, "Deep
reinforcement learning at the edge of the statistical precipice"; their runs and tasks are our seeds and regulators).
"""

from __future__ import annotations

import numpy as np
from scipy.special import betaincinv, stdtrit

from mantra_ray.evaluation.components import cell_sums
from mantra_ray.evaluation.statistics import Bootstrap, Interval, Spread, resample_counts

BLOCK = 2**22  # entries of the largest temporary table

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
    """
    order = np.argsort(gain, kind="stable")
    gain, seed = gain[order], seed[order]
    names, index = np.unique(regulator[order], return_inverse=True)
    value = interquartile_mean(gain, np.ones((1, len(gain))))
    if len(names) < 2:
        return Interval(float(value[0]), float("nan"), float("nan"), len(gain))
    counts, step = resample_counts(len(names), resamples, rng_seed, 1), max(BLOCK // len(gain), 1)
    draws = [interquartile_mean(gain, counts[at : at + step][:, index]) for at in range(0, resamples, step)]
    kept = np.clip(gain, *np.quantile(gain, [0.25, 0.75]))
    columns = np.stack([2 * (kept - kept.mean()), np.ones(len(gain))], axis=1) / len(gain)
    cells = cell_sums(columns, index, seed)
    drawn = Bootstrap(value, np.concatenate(draws)[:, None], Spread.of(cells[..., :1], cells[..., 1:]), rng_seed)
    return Interval(*(float(limit[0]) for limit in (value, *drawn.limits(1 - confidence))), len(gain))


def improvement_interval(
    gain: np.ndarray, regulator: np.ndarray, seed: np.ndarray, confidence: float = 0.95
) -> Interval:
    """Probability that a pair's gain [n] is above 0, ties counting half, with its interval (NaN with one regulator).

    Clopper and Pearson's interval for as many independent pairs as would leave the variance over regulators and seeds
    (Korn and Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts"): it
    stays in [0, 1], and is more than a point where all regulators agree. Seeds that each turn all regulators alike
    are another matter: that three such seeds agree tells little, and the interval does not know it.
    """
    better = (gain > 0) + (gain == 0) / 2
    share, n, regulators = float(better.mean()), len(gain), len(np.unique(regulator))
    if regulators < 2:
        return Interval(share, float("nan"), float("nan"), n)
    cells = cell_sums(np.stack([better - share, np.ones(n)], axis=1) / n, regulator, seed)
    spread = Spread.of(cells[..., :1], cells[..., 1:])
    variance, freedom = float(spread.variance[0]), float(spread.freedom[0])
    tail = (1 - confidence) / 2
    count = share * (1 - share) / variance if variance > 0 else regulators
    count = min(count * (stdtrit(n - 1, tail) / stdtrit(freedom, tail)) ** 2, n)
    hits, misses = share * count, (1 - share) * count
    lower = betaincinv(hits, misses + 1, tail) if hits > 0 else 0.0
    upper = betaincinv(hits + 1, misses, 1 - tail) if misses > 0 else 1.0
    return Interval(share, float(lower), float(upper), n)
