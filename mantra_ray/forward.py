"""The forward pass: (regulator, dose, state) to changes of expression, programs and traits.

A `Fold` holds every stage upstream of the memory for one data set, split and seed. It is made once and
shared by all trials, which only add a correction in program space.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from mantra_ray.cascade.energy import Energy
from mantra_ray.cascade.manifold import Descent
from mantra_ray.errors import InputError
from mantra_ray.files import atomic


@dataclass(frozen=True)
class Fold:
    """One data set, split and seed with the fixed stages applied.

    N records, G kept genes, K programs, T traits, R regulators, C states. Arrays of G are None when the
    data has no expression; T may be 0. Predictions of training rows are out of fold.
    """

    regulator: np.ndarray  # [N] int64
    dose: np.ndarray  # [N] float32, 0 to 1
    state: np.ndarray  # [N] int64
    strategy: np.ndarray  # [N] int64, kind of perturbation (all 0 where not recorded)
    group: np.ndarray  # [N] int64, records with correlated errors (shared controls) share a group
    train: np.ndarray  # row numbers, ascending
    validation: np.ndarray
    test: np.ndarray
    cross_fit: np.ndarray  # [N] int64, cross-fitting fold of a training row, -1 elsewhere
    regulator_class: np.ndarray  # [R] int64, functional class, -1 where unknown
    delta_program: np.ndarray  # [N, K] float32, observed
    program_noise: np.ndarray  # [N, K] float32, variance of the observation (0 where unknown)
    base_program: np.ndarray  # [N, K] float32, predicted before the memory (arm `gnn`), after the manifold
    lift: np.ndarray  # [K, K] float32, change after the manifold of a unit program correction before it
    trait_weights: np.ndarray  # [K, T] float32
    delta_trait: np.ndarray  # [N, T] float32, observed if measured, else observed programs @ trait_weights
    delta_expression: np.ndarray | None  # [N, G] float32, observed
    base_expression: np.ndarray | None  # [N, G] float32, predicted, after the manifold
    lift_expression: np.ndarray | None  # [K, G] float32, lift from programs to genes
    loadings: np.ndarray | None  # [G, K] float32
    names: dict[str, list[str]]  # regulator, state, strategy, program, trait, gene
    meta: dict  # split kind, seed, data hash, what the base is, calibration slope, seconds by stage
    free_program: np.ndarray | None = None  # [N, K] float32, base_program before the manifold; None: no manifold
    gene_effect: np.ndarray | None = None  # [G, T] float32, effect of a gene on a trait, NaN where it has none
    gene_effect_se: np.ndarray | None = None  # [G, T] float32, its standard error
    significant: np.ndarray | None = None  # [N, G] bool, genes observed to change; None where no errors are known
    smooth_expression: np.ndarray | None = None  # [N, G] float32, base_expression before the energy's descent
    descent: dict[str, np.ndarray] | None = None  # the energy's arrays, steps and reach; None: no descent

    @property
    def programs(self) -> int:
        return self.delta_program.shape[1]

    @property
    def residual(self) -> np.ndarray:
        """What the base leaves unexplained: observed minus predicted changes of programs, [N, K]."""
        return self.delta_program - self.base_program

    def save(self, path: Path) -> None:
        """Write an NPZ file atomically."""
        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        descent = {f"descent.{name}": value for name, value in (arrays.pop("descent") or {}).items()}
        text = {name: json.dumps(arrays.pop(name)) for name in ("names", "meta")}
        arrays = {name: value for name, value in arrays.items() if value is not None}
        with atomic(path) as partial, partial.open("wb") as handle:
            np.savez(handle, **arrays, **descent, **text)

    @staticmethod
    def load(path: Path) -> Fold:
        """Read what `save` wrote; InputError if the file is damaged."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            fields = {f.name: arrays.get(f.name) for f in dataclasses.fields(Fold)}
            parts = {name.removeprefix("descent."): arrays[name] for name in arrays if name.startswith("descent.")}
            fields["descent"] = parts or None
            lacking = [f.name for f in dataclasses.fields(Fold) if f.name not in arrays and "None" not in f.type]
            if lacking:
                raise KeyError(f"lacks {', '.join(lacking)}")
            fields["names"], fields["meta"] = (json.loads(str(arrays[name])) for name in ("names", "meta"))
        except Exception as error:
            raise InputError(path, "fold artifact", type(error).__name__, f"cannot be read: {error}") from error
        return Fold(**fields)


class Base(Protocol):
    """What the cascade reads of a `Fold`, for rows that need not be observed."""

    state: np.ndarray
    base_program: np.ndarray
    base_expression: np.ndarray | None
    smooth_expression: np.ndarray | None
    lift: np.ndarray
    lift_expression: np.ndarray | None
    loadings: np.ndarray | None
    trait_weights: np.ndarray
    descent: dict[str, np.ndarray] | None


@dataclass(frozen=True)
class Prediction:
    """Predicted changes of some rows: expression [n, G] or None, programs [n, K] (None in an arm on traits alone),
    traits [n, T]."""

    expression: np.ndarray | None
    program: np.ndarray | None
    trait: np.ndarray


def predict(
    fold: Base, rows: np.ndarray, correction: np.ndarray | None = None, expression: np.ndarray | None = None
) -> Prediction:
    """Apply the cascade to `rows`, with a correction [n, K] in program space before the manifold.

    Or with a change of expression [n, G] past its smoothing, from which programs and traits follow. Where the manifold
    descends an energy, base and change descend it together: the memory is trained as if the descent moved both as far
    as it moves the base, since its lift is then one matrix for all records, but it is judged on what the whole
    projection makes of it. Without a change a record keeps the base's prediction bit for bit.
    """
    program = fold.base_program[rows]
    changes = None if fold.base_expression is None else fold.base_expression[rows]
    if correction is not None:
        program = program + correction @ fold.lift
        if changes is not None:
            changes = changes + correction @ fold.lift_expression
    if expression is not None:
        program, changes = program + expression @ fold.loadings, changes + expression
    if fold.descent is not None and not (correction is None and expression is None):
        program, changes = _descend(fold, rows, correction, expression)
    return Prediction(changes, program, program @ fold.trait_weights)


def _descend(
    fold: Base, rows: np.ndarray, correction: np.ndarray | None, expression: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Programs and expression of base and change, projected together; records without a change keep the base."""
    added = np.zeros((len(rows), len(fold.loadings)), np.float32) if expression is None else expression
    if correction is not None:
        added = added + correction @ fold.lift_expression
    changed = added.any(1)
    program, changes = fold.base_program[rows], fold.base_expression[rows]
    some = rows[changed]
    descend = Descent(Energy.from_arrays(fold.descent), int(fold.descent["steps"]), float(fold.descent["reach"]))
    changes[changed] = descend(fold.smooth_expression[some] + added[changed], fold.state[some])
    program[changed] = changes[changed] @ fold.loadings
    return program, changes
