"""Racing: configurations that are behind the best with the stated confidence get no more seeds.

As F-Race and irace do (Birattari et al. 2002; Lopez-Ibanez et al. 2016, "The irace package"), seeds come in rounds, and
after each the survivors are compared on what they share. The comparison is of ours: validation records of the same
seeds and splits, paired, with a variance that counts a regulator's records, and a seed's, as one draw each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from mantra_ray.sweep.measured import Cells, gain

FIRST = 3  # seeds before the first comparison: a variance between fewer is no estimate


@dataclass(frozen=True)
class Lag:
    """How far a configuration is behind a rival on validation: a share of the GNN's error, mean over splits."""

    behind: float  # above 0 the rival is better
    error: float  # standard error
    freedom: float  # its degrees of freedom

    @property
    def p_value(self) -> float:
        """One-sided, of being behind no more than by chance."""
        if self.error == 0:
            return 0.0 if self.behind > 0 else 1.0
        return float(stdtr(self.freedom, -self.behind / self.error))


def lag(cells: Cells, rival: Cells) -> Lag:
    """`cells` less `rival` on the seeds and splits that both have.

    The variance is that of the linearised mean, clustered two ways, by regulator and by seed (Cameron, Gelbach and
    Miller 2011), never below that of either alone; its degrees of freedom are Satterthwaite's (1946). With few seeds
    and large differences between them it hence decides late. With a single seed or regulator nothing is certain.
    """
    keys = sorted(cells.keys() & rival.keys())
    influence, regulators, seeds, behind = [], [], [], 0.0
    splits = sorted({split for _, split in keys})
    for split in splits:
        here = [key for key in keys if key[1] == split]
        difference = np.concatenate([cells[key].error - rival[key].error for key in here])
        reference = np.concatenate([rival[key].reference for key in here])
        share = difference.sum() / reference.sum()
        behind += share / len(splits)
        influence.append((difference - share * reference) / reference.sum() / len(splits))
        regulators += [rival[key].regulator for key in here]
        seeds += [np.full(len(rival[key].error), key[0]) for key in here]
    if not keys:
        return Lag(0.0, float("inf"), 1.0)
    influence, (regulator, seed) = np.concatenate(influence), map(np.concatenate, (regulators, seeds))
    counts = [len(np.unique(cluster)) for cluster in (seed, regulator)]
    if min(counts) < 2:
        return Lag(float(behind), float("inf"), 1.0)
    by_seed, by_regulator = _clustered(influence, seed), _clustered(influence, regulator)
    both = _clustered(influence, np.unique(regulator, return_inverse=True)[1] * (seed.max() + 1) + seed)
    variance = max(by_seed, by_regulator, by_seed + by_regulator - both)
    if variance == 0:
        return Lag(float(behind), 0.0, 1.0)
    freedom = variance**2 / sum(v**2 / (n - 1) for v, n in zip((by_seed, by_regulator), counts, strict=True))
    return Lag(float(behind), float(np.sqrt(variance)), float(freedom))


def _clustered(influence: np.ndarray, cluster: np.ndarray) -> float:
    """Variance of the sum of `influence` [n], whose total is 0, with clusters drawn as one."""
    index = np.unique(cluster, return_inverse=True)[1]
    sums = np.bincount(index, influence)
    return float(len(sums) / (len(sums) - 1) * np.square(sums).sum())


@dataclass(frozen=True)
class Dropped:
    """A configuration that gets no more seeds: after which ones, and behind whom."""

    name: str
    rival: str
    seeds: int
    lag: Lag


@dataclass(frozen=True)
class Race:
    """When to drop: `configurations` that are compared `looks` times, at a confidence for the whole search.

    A comparison drops at 1 - confidence over the number of comparisons that could ever cost one configuration its
    place, (configurations - 1) x looks (Bonferroni). So the chance that the best of them is dropped, whichever its
    rivals, is at most 1 - confidence, as far as the t distribution holds. Best means least validation error over
    regulators and seeds; that a survivor is the best is not claimed.
    """

    configurations: int
    looks: int
    confidence: float

    @property
    def level(self) -> float:
        """P-value below which a comparison drops."""
        return (1 - self.confidence) / max(1, (self.configurations - 1) * self.looks)

    def look(
        self, running: Mapping[str, Cells], finished: Mapping[str, Cells], may_beat: Callable[[str, str], bool] | None
    ) -> list[Dropped]:
        """Who of the `running` falls behind the best of all, on the seeds run so far.

        With several objectives `may_beat(rival, name)` says which rivals are as good in the others; each is compared.
        """
        seeds = {seed for cells in running.values() for seed, _ in cells}
        known = {
            name: {key: cell for key, cell in cells.items() if key[0] in seeds}
            for name, cells in (finished | running).items()
        }
        gains = {name: gain(cells) for name, cells in known.items() if cells}
        if not gains:
            return []
        best = max(gains, key=gains.__getitem__)
        dropped = []
        for name in running:
            rivals = [best] if may_beat is None else [other for other in gains if may_beat(other, name)]
            lags = {rival: lag(known[name], known[rival]) for rival in rivals if rival != name}
            rival = min(lags, key=lambda rival: lags[rival].p_value, default=None)
            if rival is not None and lags[rival].p_value < self.level:
                dropped.append(Dropped(name, rival, len(seeds), lags[rival]))
        return dropped
