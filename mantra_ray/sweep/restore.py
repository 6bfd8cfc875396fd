"""A trial from its row alone, and how far what it gives now is from what was stored."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mantra_ray.config import ExperimentConfig
from mantra_ray.errors import InputError
from mantra_ray.fields import flatten, unflatten
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.sweep.store import Store

SCORE_KEYS, SCORE_VALUES = ("arm", "split", "part", "slice", "metric"), ("value", "lower", "upper")
RECORD_KEYS, RECORD_VALUES = ("arm", "part", "record"), ("squared_error", "reference_error")


def find_row(store: Store, trial: str) -> dict[str, Any]:
    """The row of a trial, by its id or the beginning of it; InputError unless there is one, and it is done."""
    ids = sorted(name for name in store.ended() if name.startswith(trial))
    if len(ids) != 1:
        found = f"several begin so: {', '.join(ids[:5])}" if ids else "no trial with whole files begins so"
        raise InputError(store.folder, "trial", trial, found)
    (row,) = store.read("trials", ids).to_pylist()
    if row["status"] != "done":
        raise InputError(store.folder, "trial", ids[0], f"is {row['status']}: it left no numbers to compare with")
    return row


def config_of(row: Mapping[str, Any]) -> ExperimentConfig:
    """The configuration whose fields a row holds by their dotted names; settings that came later have defaults."""
    values = {}
    for name, default in flatten(ExperimentConfig()).items():
        if (value := row.get(name)) is not None:
            values[name] = json.loads(value) if isinstance(default, list) else type(default)(value)
    return unflatten(ExperimentConfig, values)


def spec_of(row: Mapping[str, Any]) -> TrialSpec:
    """The trial that wrote a row."""
    return TrialSpec(row["kind"], config_of(row), row["provenance.data_sha256"], row["provenance.code"])


@dataclass(frozen=True)
class Difference:
    """How far two sets of numbers with the same keys are apart."""

    compared: int
    different: int  # not equal bit for bit
    absolute: float  # the largest
    relative: float  # the largest, as a share of the stored number
    where: str  # of the largest relative one
    missing: int  # keys that one side alone has

    @property
    def equal(self) -> bool:
        """Whether all is equal bit for bit."""
        return not self.different and not self.missing

    def within(self, tolerance: float) -> bool:
        """Whether no number differs by more than a share of itself, and none is missing."""
        return not self.missing and self.relative <= tolerance


def compare(stored: pa.Table, again: pa.Table, keys: Sequence[str], values: Sequence[str]) -> Difference:
    """The stored numbers and those of another run, joined by `keys`; NaN and null are equal to themselves."""
    sides = []
    for rows in (stored, again):
        names = zip(*(rows[key].to_pylist() for key in keys), strict=True)
        numbers = np.stack([rows[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in values], 1)
        sides.append(dict(zip(names, numbers, strict=True)))
    shared = [key for key in sides[0] if key in sides[1]]
    missing = len(sides[0]) + len(sides[1]) - 2 * len(shared)
    if not shared:
        return Difference(0, 0, 0.0, 0.0, "", missing)
    old, new = (np.stack([side[key] for key in shared]) for side in sides)
    same = (old.view(np.int64) == new.view(np.int64)) | (np.isnan(old) & np.isnan(new))
    absolute = np.where(same, 0.0, np.abs(new - old))
    absolute = np.where(np.isnan(absolute), np.inf, absolute)  # a number here, none there
    relative = np.where(same, 0.0, absolute / np.maximum(np.abs(old), np.finfo(np.float64).tiny))
    relative = np.where(np.isnan(relative), np.inf, relative)
    row, column = np.unravel_index(int(np.argmax(relative)), relative.shape)
    where = " ".join(map(str, shared[row])) + f" {values[column]}"
    counts = old.size, int((~same).sum())
    return Difference(*counts, float(absolute.max()), float(relative.max()), where, missing)


def differences(store: Store, trial: str, again: Store, trial_again: str) -> dict[str, Difference]:
    """Scores and errors by record of a trial, and of another run of it, which may have another id."""
    tables = {"scores": (SCORE_KEYS, SCORE_VALUES), "records": (RECORD_KEYS, RECORD_VALUES)}
    return {
        table: compare(store.read(table, [trial]), again.read(table, [trial_again]), *names)
        for table, names in tables.items()
    }


def relocated(config: ExperimentConfig, data_dir: str) -> ExperimentConfig:
    """The configuration with the built-in data's files in another folder, if one is given."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=data_dir)) if data_dir else config
