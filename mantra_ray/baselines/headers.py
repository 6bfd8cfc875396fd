"""What a predictor may know of a record before it is observed, and which records stand in for the test."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sparse

from mantra_ray.forward import Fold


@dataclass(frozen=True)
class Headers:
    """Regulator, dose, state, strategy and left-out group of n records, each [n].

    A query uses no record of its own group; groups lie within one regulator, and -1 is the group of nobody else.
    """

    regulator: np.ndarray
    dose: np.ndarray
    state: np.ndarray
    strategy: np.ndarray
    group: np.ndarray

    @staticmethod
    def of(fold: Fold, rows: np.ndarray) -> Headers:
        """Headers of some rows of a fold, which no group keeps from any record."""
        columns = (getattr(fold, name)[rows] for name in ("regulator", "dose", "state", "strategy"))
        return Headers(*columns, group=np.full(len(rows), -1))

    def grouped(self, kind: str) -> Headers:
        """The same training records in the groups that are left out together, as the split leaves them out.

        A record (seen, strategy), a (regulator, state) pair (context) or a regulator (unseen).
        """
        if kind == "unseen":
            return replace(self, group=self.regulator)
        context = codes(self, self, "regulator", "state")[0]
        return replace(self, group=context if kind == "context" else np.arange(len(self.regulator)))


def codes(query: Headers, memory: Headers, *fields: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Number of each record's combination of `fields`, the same for both, int [n] and [m], and how many there are."""
    labels = [np.concatenate([getattr(query, name), getattr(memory, name)]) for name in fields]
    code = np.zeros(len(query.regulator) + len(memory.regulator), np.int64)
    for label in labels:
        _, column = np.unique(label, return_inverse=True)
        _, code = np.unique(code * (column.max(initial=0) + 1) + column, return_inverse=True)
    return code[: len(query.regulator)], code[len(query.regulator) :], int(code.max(initial=-1)) + 1


class Members:
    """For each query the records that agree with it in some fields, less those of its own group."""

    def __init__(self, query: Headers, memory: Headers, *fields: str):
        self.levels = []  # (what is added, its sign): the records that agree, less the group's
        self.count = np.zeros((len(query.regulator), 1))
        for sign, level in ((1.0, fields), (-1.0, (*fields, "group"))):
            asked, held, size = codes(query, memory, *level)
            indicator = sparse.csr_array((np.ones(len(held)), (held, np.arange(len(held)))), shape=(size, len(held)))
            self.levels.append((sign, asked, indicator))
            self.count += sign * indicator.sum(1)[asked][:, None]

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sums of values [m, K] over each query's members, [n, K]; exactly 0 where there are none."""
        total = sum(sign * (indicator @ values)[asked] for sign, asked, indicator in self.levels)
        return np.where(self.count > 0, total, 0.0)


def pairs(query: Headers, memory: Headers) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (query i, record j) of one regulator, by i and then j; their own groups among them."""
    order = np.argsort(memory.regulator, kind="stable")
    held = memory.regulator[order]
    first, last = (np.searchsorted(held, query.regulator, side) for side in ("left", "right"))
    number = last - first
    i = np.repeat(np.arange(len(number)), number)
    place = np.arange(len(i)) - np.repeat(np.cumsum(number) - number, number)
    return i, order[first[i] + place]


def stand_ins(train: Headers, kind: str) -> np.ndarray:
    """Training rows on which settings are chosen: those that the split could have tested, bool [n].

    seen: its regulator has another row; strategy: its (regulator, state) has another row; context: its
    regulator has another state; unseen: all. All rows if no row qualifies.
    """
    if kind == "unseen":
        return np.ones(len(train.regulator), bool)
    anchor = ("regulator", "state") if kind == "strategy" else ("regulator",)
    eligible = Members(train, train, *anchor).count[:, 0] > 0
    return eligible if eligible.any() else np.ones_like(eligible)
