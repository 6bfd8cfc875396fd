"""Configurations as flat fields with dotted names: changed, stored, read back and hashed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from mantra_ray.config import ExperimentConfig

LOCATIONS = ("data.data", "data.data_dir", "data.graph", "data.loadings", "data.classes", "manifold.controls")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Fields of a nested dataclass by their dotted names, tuples as JSON-like lists."""
    out: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value, name = getattr(config, item.name), prefix + item.name
        if dataclasses.is_dataclass(value):
            out.update(flatten(value, name + "."))
        else:
            out[name] = list(value) if isinstance(value, tuple) else value
    return out


def replace(config: Any, **changes: Any) -> Any:
    """A copy of a nested dataclass with dotted fields replaced: `replace(c, **{"nexus.tau": 0.2})`.

    Raises KeyError if a name is not a field.
    """
    for dotted, value in changes.items():
        head, _, rest = dotted.partition(".")
        if not dataclasses.is_dataclass(config) or head not in {item.name for item in dataclasses.fields(config)}:
            raise KeyError(f"{type(config).__name__} has no field {head!r}")
        value = replace(getattr(config, head), **{rest: value}) if rest else value
        config = dataclasses.replace(config, **{head: value})
    return config


def unflatten(cls: type, values: dict[str, Any]) -> Any:
    """The dataclass of `flatten`'s output; fields left out keep their defaults, unknown ones raise KeyError."""
    config = cls()
    hints = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return replace(config, **hints)


def identity(config: ExperimentConfig) -> dict[str, Any]:
    """The fields, by dotted name, that numbers depend on once the data's content is known by its hash.

    Where the inputs lie is left out; of the traits their names stay, whose order is that of the columns.
    """
    fields = {name: value for name, value in flatten(config).items() if name not in LOCATIONS}
    return fields | {"data.traits": [trait.partition("=")[0] for trait in config.data.traits]}


def digest(value: Any) -> str:
    """Content hash (16 hex digits of SHA-256) of a dataclass or of JSON-like data."""
    if dataclasses.is_dataclass(value):
        value = flatten(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
