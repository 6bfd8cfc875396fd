"""What a predictor may know of a record before it is observed, and which records stand in for the test."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from mantra_ray.forward import Fold


@dataclass(frozen=True)
class Headers:
    """Regulator, dose, state and strategy of n records, each [n]."""

    regulator: np.ndarray
    dose: np.ndarray
    state: np.ndarray
    strategy: np.ndarray

    @staticmethod
    def of(fold: Fold, rows: np.ndarray) -> Headers:
        return Headers(fold.regulator[rows], fold.dose[rows], fold.state[rows], fold.strategy[rows])

    def joined(self, other: Headers) -> Headers:
        """These records, then the others."""
        pairs = ((getattr(self, item.name), getattr(other, item.name)) for item in fields(Headers))
        return Headers(*(np.concatenate(pair) for pair in pairs))

    @property
    def context(self) -> np.ndarray:
        """One number for each (regulator, state) pair, [n]; comparable only within these records."""
        return self.regulator * (int(self.state.max(initial=0)) + 1) + self.state


def equal(query: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """Which entries of `query` [n] and `memory` [m] agree, bool [n, m]."""
    return query[:, None] == memory[None, :]


def held_out_groups(train: Headers, kind: str) -> np.ndarray:
    """Groups of training rows that are left out together, as the split leaves them out, int [n].

    A record (seen, strategy), a (regulator, state) pair (context) or a regulator (unseen).
    """
    if kind == "unseen":
        return train.regulator
    return train.context if kind == "context" else np.arange(len(train.regulator))


def stand_ins(train: Headers, kind: str) -> np.ndarray:
    """Training rows on which settings are chosen: those that the split could have tested, bool [n].

    seen: its regulator has another row; strategy: its (regulator, state) has another row; context: its
    regulator has another state; unseen: all. All rows if no row qualifies.
    """
    other = ~equal(held_out_groups(train, kind), held_out_groups(train, kind))
    if kind == "unseen":
        return np.ones(len(train.regulator), bool)
    anchor = train.context if kind == "strategy" else train.regulator
    eligible = (equal(anchor, anchor) & other).any(1)
    return eligible if eligible.any() else np.ones_like(eligible)
