"""The folder of a sweep, by path or address."""

from __future__ import annotations

from mantra_ray.errors import InputError
from mantra_ray.files import Place, place
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.summary import read_description


def sweep_folder(address: str) -> tuple[Place, Store, list[str]]:
    """Place and results of a sweep, and the trials of its last command; InputError if there is no sweep."""
    try:
        root = place(address)
    except ValueError as error:
        raise InputError("options", "FOLDER", address, str(error)) from error
    described = read_description(root)
    trials = described.get("trials") if isinstance(described, dict) else None
    if not isinstance(trials, list) or not all(isinstance(trial, str) for trial in trials):
        raise InputError(root, "sweep.json", type(trials).__name__, "does not list the trials of a sweep")
    return root, Store(root / "results"), trials
