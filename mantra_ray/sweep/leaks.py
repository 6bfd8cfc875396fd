"""What training rows and held-out rows of a fold must not share, and what an alarm is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:  # importing it takes torch, which readers of results can do without
    from mantra_ray.forward import Fold

NAMED = 4  # trials or rows that an alarm names
HELD_OUT = ("validation", "test")


@dataclass(frozen=True)
class Alarm:
    """What is wrong, in one sentence; a sweep with a loud one has failed, the others are notes."""

    kind: Literal["dead knob", "evaluation wrote", "leak", "shuffled gain"]
    text: str
    trials: tuple[str, ...] = ()
    loud: bool = True

    def __str__(self) -> str:
        named = ", ".join(self.trials[:NAMED]) + (", ..." if len(self.trials) > NAMED else "")
        return f"{self.kind}: {self.text}" + (f" (trials {named})" if named else "")


def leaks(fold: Fold) -> list[Alarm]:
    """What training rows share with held-out ones: rows, whole units of the split, or the same measurement twice.

    A unit is a (regulator, state) pair on `context`, a regulator on `unseen`, a row elsewhere. No unit may lie in
    two of training, validation and test, nor in two cross-fitting folds, nor may a network train on a held-out row.
    The same measurement: equal regulator, dose, state and strategy with identical effects that are not all 0.
    """
    kind, count = fold.meta["kind"], len(fold.regulator)
    parts = {name: getattr(fold, name) for name in ("train", *HELD_OUT)}
    row = np.arange(count)
    unit = {"context": fold.regulator * (fold.state.max(initial=0) + 1) + fold.state, "unseen": fold.regulator}
    what = {"context": "the (regulator, state) pair", "unseen": "the regulator"}
    labels = {"the record": row} | ({what[kind]: unit[kind]} if kind in unit else {})
    where, found = f"{kind}, seed {fold.meta['seed']}", []

    def tell(label: str, shared: np.ndarray, between: str) -> None:
        if len(shared):
            names = ", ".join(_name(fold, int(i)) for i in shared[:NAMED]) + (", ..." if len(shared) > NAMED else "")
            found.append(Alarm("leak", f"{where}: {between} share {label} of {len(shared)} rows: {names}"))

    for label, ids in labels.items():
        for one, other in combinations(parts, 2):
            tell(label, parts[other][np.isin(ids[parts[other]], ids[parts[one]])], f"{one} and {other}")
    held_out = np.concatenate([parts[name] for name in HELD_OUT])
    tell("the record", held_out[fold.cross_fit[held_out] >= 0], "the networks' training and the held-out rows")
    if kind in unit:
        ids, fitted = unit[kind], np.flatnonzero(fold.cross_fit >= 0)
        pairs = np.unique(np.stack([ids[fitted], fold.cross_fit[fitted]]), axis=1)
        torn = pairs[0][np.flatnonzero(pairs[0][1:] == pairs[0][:-1])]
        tell(what[kind], fitted[np.isin(ids[fitted], torn)], "two cross-fitting folds")
    for other in HELD_OUT:
        tell("the measurement", _copied(fold, fold.train, parts[other]), f"train and {other}")
    return found


def _copied(fold: Fold, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Rows of `other` whose header and effects are those of a row of `one`."""
    effect = fold.delta_program if fold.delta_expression is None else fold.delta_expression
    headers = np.stack([fold.regulator, fold.dose, fold.state, fold.strategy], axis=1)
    header = np.unique(headers, axis=0, return_inverse=True)[1]
    one, other = (rows[np.isin(header[rows], header[others])] for rows, others in ((one, other), (other, one)))

    def measurement(row: int) -> tuple[int, bytes]:
        return int(header[row]), hashlib.sha256(effect[row].tobytes()).digest()

    known = {measurement(row) for row in one}
    return np.array([row for row in other if effect[row].any() and measurement(row) in known], int)


def _name(fold: Fold, row: int) -> str:
    """A row in words."""
    regulator, state = fold.names["regulator"][fold.regulator[row]], fold.names["state"][fold.state[row]]
    return f"row {row} ({regulator}, dose {fold.dose[row]:.3g}, {state})"
