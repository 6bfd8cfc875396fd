"""Power before the fact: the least difference that an experiment finds, and the seeds that a wished-for one needs."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaincinv, ndtr, stdtrit

from mantra_ray.evaluation.components import cell_sums, mean_products

MOST_SEEDS = 1000  # that are tried; what they cannot find is beyond seeds
DRAWS = 2000  # of the variances that a test estimates


@dataclass(frozen=True)
class Components:
    """Variances of a record's result: what its regulator, its seed, both together and nothing else explain.

    A record has the regulator's part in every seed that tests it, so more seeds do not take it away.
    """

    regulator: float
    seed: float
    both: float
    record: float

    @staticmethod
    def mean(found: Sequence[Components]) -> Components:
        """Means over several estimates."""
        return Components(*np.mean([astuple(item) for item in found], axis=0).tolist())


def components(result: np.ndarray, regulator: np.ndarray, seed: np.ndarray) -> Components:
    """Variance components of the results [n] of records, from mean products of pairs (see `components`).

    With one seed all that a regulator's records share counts as the regulator's, and the seeds' part, which nothing
    tells, as 0. Parts that come out negative are 0.
    """
    deviation = (result - result.mean())[:, None] / len(result)
    each = np.full_like(deviation, 1 / len(result))
    cells, weights = cell_sums(deviation, regulator, seed), cell_sums(each, regulator, seed)
    pairs = mean_products(cells, weights)
    own, own_weight = np.square(deviation).sum(), np.square(each).sum()
    within, within_weight = np.square(cells).sum() - own, np.square(weights).sum() - own_weight
    several = len(cells) > 1
    # Centring takes the same off all mean products: with one seed, what regulators that share it have in common.
    shift = float((pairs.neither if several else pairs.seed)[0])
    of_regulator, of_seed = (float(part[0]) - shift if several else 0.0 for part in (pairs.regulator, pairs.seed))
    of_cell = within / within_weight - shift if within_weight > 1e-12 else of_regulator + of_seed
    if not several:
        of_regulator = of_cell
    of_record = own / own_weight - shift - of_cell
    parts = of_regulator, of_seed, of_cell - max(of_regulator, 0.0) - max(of_seed, 0.0), of_record
    return Components(*(max(float(part), 0.0) for part in parts))


@dataclass(frozen=True)
class Design:
    """How the test records of a seed spread over regulators: sums of squared shares, means over the seeds known."""

    regulator: float  # sum over regulators of their share's square in one seed
    shared: float  # the same of two seeds' shares, multiplied: what is tested twice
    record: float  # 1 / records of a seed
    regulators: int  # that one seed tests

    @staticmethod
    def of(regulator: np.ndarray, seed: np.ndarray) -> Design:
        """The design of test records [n]; with one seed, all seeds are taken to test the same regulators alike."""
        counts = cell_sums(np.ones((len(regulator), 1)), regulator, seed)[..., 0]
        size = counts.sum(1, keepdims=True)
        share = counts / size
        overlap = share @ share.T
        own, seeds = np.trace(overlap), len(share)
        shared = (overlap.sum() - own) / (seeds * (seeds - 1)) if seeds > 1 else own
        tested = round(float((counts > 0).sum(1).mean()))
        return Design(float(own / seeds), float(shared), float(np.mean(1 / size)), tested)


def variance(parts: Components, design: Design, seeds: float) -> tuple[float, float, float]:
    """Variance of the mean over the test records of `seeds` seeds: what they share, seeds' own part, and the rest's."""
    alone = parts.regulator * (design.regulator - design.shared)
    rest = alone + parts.both * design.regulator + parts.record * design.record
    return parts.regulator * design.shared, parts.seed / seeds, max(rest, 0.0) / seeds


def detectable(parts: Components, design: Design, seeds: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """Least mean difference that a two-sided test at `alpha` finds with probability `power`, in the results' units.

    The test is that of `statistics.Bootstrap` with normal results: Student's t with Satterthwaite's degrees of freedom
    from variances that are estimated themselves, here drawn from chi-square. NaN with a single regulator.
    """
    if design.regulators < 2:
        return float("nan")
    variances, most = np.array(variance(parts, design, seeds)), design.regulators - 1
    total = variances.sum()
    if not total > 0:
        return 0.0
    shared, of_seeds, rest = variances / total
    regulator = (shared + rest) * _chi_square(most, 0)
    freedom = np.full(DRAWS, float(most))
    between = np.zeros(DRAWS)
    if seeds > 1:
        apart = (of_seeds + rest) * _chi_square(seeds - 1, 1)
        between = np.maximum(apart - rest, 0)
        spread = np.square(regulator) / most + np.square(apart) / (seeds - 1)
        freedom = np.where(between > 0, np.clip(np.square(regulator + between) / spread, 1, most), freedom)
    needed = -stdtrit(freedom, alpha / 2) * np.sqrt(regulator + between)
    found = brentq(lambda effect: ndtr(effect - needed).mean() - power, 0, needed.max() + 10)
    return float(found * np.sqrt(total))


@lru_cache(maxsize=64)
def _chi_square(freedom: int, stream: int) -> np.ndarray:
    """Chi-square over its degrees of freedom at even quantiles [DRAWS], in an order of its own."""
    even = 2 * gammaincinv(freedom / 2, (np.arange(DRAWS) + 0.5) / DRAWS) / freedom
    return np.random.default_rng(stream).permutation(even)


def seeds_needed(
    parts: Components, design: Design, effect: float, power: float = 0.8, alpha: float = 0.05
) -> int | None:
    """Fewest seeds that find `effect` with probability `power`; None where the regulators' part forbids it.

    At least 2 where seeds differ, which a single one cannot tell.
    """

    def find(seeds: int) -> bool:
        return detectable(parts, design, seeds, power, alpha) <= effect

    tried = range(2 if parts.seed > 0 else 1, MOST_SEEDS + 1)
    place = bisect.bisect_left(tried, True, key=find)
    return tried[place] if place < len(tried) else None
