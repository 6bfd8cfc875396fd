"""The data contract: one row is one perturbation (regulator, dose, state) with its observed effect."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mantra_ray.errors import InputError

ROWS = ("regulator", "state", "strategy", "group")  # integer [N]
VECTORS = ("dose", "n_cells")  # float32 [N]
MATRICES = ("delta_expression", "delta_expression_se", "delta_program", "delta_trait")  # float32 [N, *]
NAMES = ("gene_names", "regulator_names", "state_names", "strategy_names", "program_names", "trait_names")

NAMELESS_LIMIT = 1_000_000  # an index above this without a list of names is a mistake, not a regulator


@dataclass(frozen=True, eq=False)
class PerturbationData:
    """N perturbation records; readers validate them, other makers call `validate`.

    G genes, K programs, T traits. Changes are log2 against the matched control. Missing `state` and `strategy`
    become zeros, a missing `group` makes every record its own, and missing names are counted from 0 ("gene0").
    """

    regulator: np.ndarray  # [N] int64, index into regulator_names
    dose: np.ndarray  # [N] float32, 0 (no effect on the regulator) to 1 (complete loss)
    state: np.ndarray | None = None  # [N] int64, index into state_names
    delta_expression: np.ndarray | None = None  # [N, G] float32
    delta_expression_se: np.ndarray | None = None  # [N, G] float32, standard errors
    delta_program: np.ndarray | None = None  # [N, K] float32
    delta_trait: np.ndarray | None = None  # [N, T] float32
    n_cells: np.ndarray | None = None  # [N] float32, cells behind a record
    strategy: np.ndarray | None = None  # [N] int64, kind of perturbation, index into strategy_names
    group: np.ndarray | None = None  # [N] int64, records with correlated errors (shared controls) share a group
    gene_names: tuple[str, ...] = ()
    regulator_names: tuple[str, ...] = ()
    state_names: tuple[str, ...] = ()
    strategy_names: tuple[str, ...] = ()
    program_names: tuple[str, ...] = ()
    trait_names: tuple[str, ...] = ()

    def __post_init__(self):
        fill = {}
        for name in ("state", "strategy"):
            if getattr(self, name) is None:
                fill[name] = np.zeros(len(self), np.int64)
        if self.group is None:
            fill["group"] = np.arange(len(self))
        for name in ("regulator", "state", "strategy"):
            index = fill.get(name, getattr(self, name))
            if not getattr(self, name + "_names"):
                fill[name + "_names"] = _counted(
                    name[:3] if name == "regulator" else name, int(index.max(initial=-1)) + 1
                )
        for name, field in (("gene", "delta_expression"), ("program", "delta_program"), ("trait", "delta_trait")):
            matrix = getattr(self, field)
            if matrix is not None and matrix.ndim == 2 and not getattr(self, name + "_names"):
                fill[name + "_names"] = _counted(name, matrix.shape[1])
        for name, value in fill.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.regulator)

    def validate(self, source: object = "data", keys: Mapping[str, str] | None = None) -> PerturbationData:
        """Check everything and return the data itself; `keys` gives the names that the source uses for fields.

        Raises InputError with the source, the field, the first offending value and its place.
        """
        keys = {field.name: field.name for field in dataclasses.fields(self)} | dict(keys or {})

        def fail(name: str, value: Any, problem: str):
            raise InputError(source, keys[name], value.item() if isinstance(value, np.generic) else value, problem)

        def check(name: str, bad: np.ndarray, problem: str):
            if bad.any():
                place = tuple(int(i) for i in np.argwhere(bad)[0])
                where = f"record {place[0]}" + (f", column {place[1]}" if len(place) > 1 else "")
                fail(name, getattr(self, name)[place], f"{where}: {problem}")

        n = len(self)
        if n == 0:
            fail("regulator", 0, "there are no records")
        for name in (*ROWS, *VECTORS, *MATRICES):
            values = getattr(self, name)
            if values is None:
                continue
            shape = (n, *values.shape[1:]) if name in MATRICES and values.ndim == 2 and values.shape[1] else (n,)
            if values.shape != shape or (name in MATRICES) != (values.ndim == 2):
                wanted = f"[{n}, columns]" if name in MATRICES else f"[{n}]"
                fail(name, values.shape, f"has the wrong shape, {wanted} is wanted")
            if name not in ROWS:
                check(name, ~np.isfinite(values), "is not finite")
        for name in NAMES:
            names = list(getattr(self, name))
            if len(set(names)) < len(names):
                first = next(i for i, value in enumerate(names) if value in names[:i])
                fail(name, names[first], f"position {first}: the name occurs twice")
        for name, field in (("gene", "delta_expression"), ("program", "delta_program"), ("trait", "delta_trait")):
            matrix, names = getattr(self, field), getattr(self, name + "_names")
            if matrix is not None and len(names) != matrix.shape[1]:
                fail(name + "_names", len(names), f"{matrix.shape[1]} names are wanted, one a column of {keys[field]}")
        for name in ("regulator", "state", "strategy"):
            index, names = getattr(self, name), getattr(self, name + "_names")
            check(name, (index < 0) | (index >= len(names)), f"is not one of the {len(names)} {name}s (0 is the first)")
        check("dose", (self.dose < 0) | (self.dose > 1), "lies outside [0, 1]")
        if self.n_cells is not None:
            check("n_cells", self.n_cells < 0, "is negative")
        if self.delta_expression is None and self.delta_program is None:
            fail("delta_expression", None, f"neither {keys['delta_expression']} nor {keys['delta_program']} is given")
        if self.delta_expression_se is not None:
            if self.delta_expression is None or self.delta_expression.shape != self.delta_expression_se.shape:
                fail(
                    "delta_expression_se",
                    self.delta_expression_se.shape,
                    f"differs from {keys['delta_expression']} in shape",
                )
            check("delta_expression_se", self.delta_expression_se <= 0, "a standard error must be above 0")
        return self

    def take(self, rows: np.ndarray) -> PerturbationData:
        """The records of `rows` (row numbers or a mask), names unchanged."""
        arrays = {name: getattr(self, name) for name in (*ROWS, *VECTORS, *MATRICES)}
        return dataclasses.replace(self, **{name: None if a is None else a[rows] for name, a in arrays.items()})


def from_arrays(
    arrays: Mapping[str, Any], source: object = "data", keys: Mapping[str, str] | None = None
) -> PerturbationData:
    """Convert arrays by field name to the contract's types and validate them; names may be any sequence of strings.

    Raises InputError, which calls a field by its name in `keys`.
    """
    keys = dict(keys or {})
    fields: dict[str, Any] = {}
    for name, value in arrays.items():
        if name in NAMES:
            items = np.asarray(value).ravel()
            fields[name] = tuple(i.decode(errors="replace") if isinstance(i, bytes) else str(i) for i in items)
        else:
            fields[name] = _numeric(np.asarray(value), name in ROWS, source, keys.get(name, name))
    for name in ("regulator", "dose"):
        if name not in fields:
            raise InputError(
                source, keys.get(name, name), ", ".join(keys.get(key, key) for key in fields), "is missing"
            )
    for name in ("regulator", "state", "strategy"):
        largest = int(fields[name].max(initial=0)) if name in fields else 0
        if largest >= NAMELESS_LIMIT and not fields.get(name + "_names"):
            raise InputError(source, keys.get(name, name), largest, f"so large an index needs {name}_names")
    return PerturbationData(**fields).validate(source, keys)


def _counted(stem: str, count: int) -> tuple[str, ...]:
    return tuple(f"{stem}{i}" for i in range(count))


def _numeric(values: np.ndarray, integer: bool, source: object, key: str) -> np.ndarray:
    if values.dtype.kind not in "iufb":
        raise InputError(source, key, str(values.dtype), "is not numeric")
    if not values.ndim:
        raise InputError(source, key, values.item(), "has the wrong shape, an entry a record is wanted")
    if not integer:
        with np.errstate(over="ignore"):  # an overflow becomes infinite, which validation reports
            return values.astype(np.float32)
    if values.dtype.kind == "f":
        whole = np.isfinite(values) & (values == np.round(values))
        for place in np.argwhere(~whole)[:1]:
            raise InputError(source, key, values[tuple(place)].item(), f"record {place[0]}: is not a whole number")
    return values.astype(np.int64)
