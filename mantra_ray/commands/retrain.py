"""Checkpoints of a sweep's winner: the `mantra train` commands that make them, and where they then lie."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mantra_ray.commands.train import TrainOptions
from mantra_ray.config import ExperimentConfig, SplitKind
from mantra_ray.errors import InputError
from mantra_ray.fields import flatten
from mantra_ray.sweep.folder import sweep_folder
from mantra_ray.sweep.options import flag
from mantra_ray.sweep.restore import config_of
from mantra_ray.sweep.summary import chosen_on_validation, configurations
from mantra_ray.training.checkpoint import NAME

TRIAL = re.compile(r"[0-9a-f]{16}")  # what a row may call a folder


@dataclass(frozen=True)
class Winner:
    """One seed of the configuration that validation chose."""

    split: str
    folder: Path  # of its checkpoint
    command: str  # that makes it


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep, and not of a training."""
    return (folder / "sweep.json").exists() and not (folder / NAME).exists()


def winners(folder: Path, split: str = "") -> list[Winner]:
    """The winner of a split (default: the first that has one), by seed, under `checkpoints/TRIAL` of the sweep.

    Raises InputError for a folder without a sweep, a split that it does not have, and where no trial is done.
    """
    root, store, trials = sweep_folder(str(folder))
    rows = store.read("trials", trials).to_pylist()
    found = configurations(store, rows)
    splits = [kind for kind in get_args(SplitKind) if any(kind in item.results for item in found)]
    if split and split not in splits:
        raise InputError(root, "--split", split, f"the finished trials have {', '.join(splits) or 'none'}")
    for name in [split] if split else splits:
        if (item := chosen_on_validation(store, found, name)) is not None:
            ordered = sorted(item.results[name].trials, key=lambda row: row["seed"])
            return [_winner(Path(root), name, row) for row in ordered]
    raise InputError(root, "trials", len(rows), "none has a memory that was judged on validation")


def _winner(root: Path, split: str, row: dict[str, Any]) -> Winner:
    if not TRIAL.fullmatch(row["trial"]):
        raise InputError(root, "trial", row["trial"], "is no trial's id")
    folder = root / "checkpoints" / row["trial"]
    return Winner(split, folder, train_command(config_of(row), folder))


def train_command(config: ExperimentConfig, out: Path) -> str:
    """The `mantra train` command whose options say what a configuration says."""
    own, usual = flatten(config), flatten(TrainOptions().experiment(0))
    words = ["mantra", "train"]
    for name, value in own.items():
        if value == usual[name] and name not in ("split.kind", "seed"):
            continue
        option = _option(name)
        if isinstance(value, bool):
            section, _, last = option.rpartition(".")
            words.append(option if value else f"{section}.no-{last}")
        elif isinstance(value, list):
            words += [option, *map(str, value)]
        else:
            words.append(f"{option}={value}")
    return shlex.join([*words, f"--out={out}"])


def _option(name: str) -> str:
    """The option of `mantra train` for a field of the configuration."""
    section, _, rest = name.partition(".")
    if name == "split.kind":
        return "--split"
    return flag(rest) if section in ("data", "split") else flag(name)
