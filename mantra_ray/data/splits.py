"""Splits into training, validation and test records, and the folds of cross-fitting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mantra_ray.config import SplitConfig, SplitKind
from mantra_ray.data.records import PerturbationData
from mantra_ray.errors import InputError

NEEDS = {
    "seen": "regulators with two records or more",
    "strategy": "(regulator, state) pairs with two records or more",
    "context": "regulators in two states or more",
    "unseen": "regulators",
}


@dataclass(frozen=True, eq=False)
class Split:
    """Row numbers of the three parts: ascending, disjoint, together all N rows."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def make_split(data: PerturbationData, config: SplitConfig, seed: int) -> Split:
    """Hold out whole units of `config.kind`, so that each leaves at least one unit of its anchor in training.

    | kind | unit | anchor |
    |---|---|---|
    | seen | record | its regulator |
    | strategy | record | its (regulator, state) pair |
    | context | (regulator, state) pair | its regulator |
    | unseen | regulator | none (some regulator stays) |

    The fractions apply to the units whose anchor has two units or more; where the anchors cannot spare that many,
    test and validation shrink alike. Raises InputError if the fractions make no sense or two units cannot be spared.
    """
    test, validation = config.test_fraction, config.validation_fraction
    for name, fraction in (("test_fraction", test), ("validation_fraction", validation)):
        if not 0 < fraction < 1:
            raise InputError("split", name, fraction, "must lie between 0 and 1")
    if test + validation >= 1:
        raise InputError(
            "split", "test_fraction", test, f"with validation_fraction {validation} nothing is left to train on"
        )
    unit, anchor = _units(data, np.arange(len(data)), config.kind)
    sizes = np.bincount(anchor)
    eligible = np.flatnonzero(sizes[anchor] >= 2)
    spare = int((sizes - 1).sum())  # as an anchor keeps one unit
    if spare < 2:
        raise InputError(
            "split", "kind", config.kind, f"needs two units to spare among {NEEDS[config.kind]}, the data has {spare}"
        )
    n_test, n_validation = (max(1, round(fraction * len(eligible))) for fraction in (test, validation))
    if n_test + n_validation > spare:
        n_validation = min(max(1, round(spare * validation / (test + validation))), spare - 1)
        n_test = spare - n_validation
    rng = np.random.default_rng([seed, 1])
    # In random order, the last unit of every anchor is the one that stays.
    order = rng.permutation(eligible)
    _, last = np.unique(anchor[order][::-1], return_index=True)
    free = np.delete(order, len(order) - 1 - last)
    part = np.zeros(len(anchor), np.int64)
    part[free[:n_test]] = 2
    part[free[n_test : n_test + n_validation]] = 1
    return Split(*(np.flatnonzero(part[unit] == value) for value in (0, 1, 2)))


def cross_fit_folds(data: PerturbationData, train: np.ndarray, kind: SplitKind, folds: int, seed: int) -> np.ndarray:
    """Cross-fitting fold of each training row, [len(train)] int64 in 0 .. folds - 1.

    Units as in `make_split` stay whole. The units of one anchor spread over the folds, so that a model that left a
    record out has seen its anchor, as the final model has for a test record; folds are then balanced in size.
    Raises InputError if there are fewer units than folds.
    """
    unit, anchor = _units(data, train, kind)
    if not 2 <= folds <= len(anchor):
        raise InputError("cross-fitting", "folds", folds, f"must lie between 2 and {len(anchor)}, the units of {kind}")
    if kind == "unseen":
        anchor = np.arange(len(anchor))  # whole regulators are only to be balanced
    rng = np.random.default_rng([seed, 2])
    sizes = np.bincount(unit)
    anchor_sizes = np.bincount(anchor, weights=sizes)
    tie = rng.permutation(len(anchor_sizes))
    order = rng.permutation(len(anchor))
    # Largest anchors first, and their largest units first: the greedy rule below then ends balanced.
    order = order[np.lexsort((-sizes[order], tie[anchor[order]], -anchor_sizes[anchor[order]]))]
    fold = np.zeros(len(anchor), np.int64)
    filled = np.zeros(folds)
    current, held = -1, np.zeros(folds)
    for i in order:
        if anchor[i] != current:
            current, held = anchor[i], np.zeros(folds)
        fold[i] = np.lexsort((filled, held))[0]  # fewest units of the anchor, then fewest rows
        held[fold[i]] += 1
        filled[fold[i]] += sizes[i]
    return fold[unit]


def _units(data: PerturbationData, rows: np.ndarray, kind: SplitKind) -> tuple[np.ndarray, np.ndarray]:
    """Unit of each row and anchor of each unit, both counted from 0."""
    regulator = data.regulator[rows]
    pair = regulator * (data.state.max() + 1) + data.state[rows]
    record = np.arange(len(rows))
    whole, part = {
        "seen": (regulator, record),
        "strategy": (pair, record),
        "context": (regulator, pair),
        "unseen": (np.zeros_like(regulator), regulator),
    }[kind]
    _, first, unit = np.unique(part, return_index=True, return_inverse=True)
    _, anchor = np.unique(whole[first], return_inverse=True)
    return unit, anchor
