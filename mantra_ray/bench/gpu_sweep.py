"""What GPUs bring to a sweep of small trials, and what a process's first trial costs beside its later ones."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import torch

from mantra_ray.bench.throughput import by_sweep
from mantra_ray.config import GrnConfig
from mantra_ray.sweep.options import SMOKE, Options
from mantra_ray.sweep.store import Store

GPUS_PER_TRIAL = 0.125  # 8 trials side by side on a GPU
TRIALS, SEEDS = 240, 1  # on the built-in simulator: 239 values of alpha, and the baselines
QUICK_TRIALS, QUICK_SEEDS = 6, 1
BASE = Options(gpus_per_trial=GPUS_PER_TRIAL, grn=GrnConfig(epochs=3))  # networks are made before and not counted


def sweep_scaling(gpus: int, quick: bool = False) -> list[dict[str, Any]]:
    """Trials an hour of a sweep on one GPU and on `gpus`, 8 side by side on each; goal at 2 GPUs: 1.9.

    Where there are not as many, one trial on each of as many CPU cores. Each sweep compiles its kernels. `speed_up`
    compares them while all their processes are at work and past their first trial, `whole_speed_up` from the first
    trial's start to the last's end.
    """
    rows: list[dict[str, Any]] = []
    on_gpus = torch.cuda.device_count() >= gpus
    with tempfile.TemporaryDirectory() as place:
        for count in sorted({1, gpus}):
            root = sweep_folder(Path(place) / str(count), quick)
            if rows:  # the networks need not be trained again
                shutil.copytree(sweep_folder(Path(place) / "1", quick) / "artifacts", root / "artifacts")
            environment = seeing(count, on_gpus) | {"TRITON_CACHE_DIR": str(Path(place) / f"{count}.triton")}
            with ProcessPoolExecutor(1, get_context("spawn"), see, (environment,)) as process:
                rows.append(
                    {"device": "cuda" if on_gpus else "cpu", "devices": count}
                    | process.submit(swept, Path(place) / str(count), quick).result()
                )
    first = rows[0]
    return [
        row
        | {"speed_up": row["trials_per_hour"] / first["trials_per_hour"]}
        | {"whole_speed_up": row["whole_trials_per_hour"] / first["whole_trials_per_hour"]}
        for row in rows
    ]


def sweep_folder(folder: Path, quick: bool) -> Path:
    """Where the sweep that runs in `folder` puts its files."""
    return folder / f"sweep{QUICK_TRIALS if quick else TRIALS}"


def seeing(count: int, on_gpus: bool) -> dict[str, str]:
    """Environment of a process that sees so many GPUs, or no GPU and so many CPU cores."""
    if not on_gpus:
        return {"CUDA_VISIBLE_DEVICES": "", "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": count})}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return {"CUDA_VISIBLE_DEVICES": ",".join(visible.split(",")[:count])}


def see(environment: dict[str, str]) -> None:
    """Begin a process with this beside its environment."""
    os.environ.update(environment)


def swept(folder: Path, quick: bool) -> dict[str, Any]:
    """Run the sweep on all GPUs, or cores, that this process sees."""
    base = replace(SMOKE if quick else BASE, gpus_per_trial=GPUS_PER_TRIAL if torch.cuda.device_count() else 0.0)
    row = by_sweep(*((QUICK_TRIALS, QUICK_SEEDS) if quick else (TRIALS, SEEDS)), base, folder)
    columns, of_memory = ["provenance.actor", "started", "ended"], ds.field("kind") == "nexus"  # baselines use no GPU
    trials = Store(sweep_folder(folder, quick) / "results").read("trials", columns=columns, where=of_memory).to_pylist()
    wall = row["wall"] - row["starting"]
    return {
        "slots": row["slots"],
        "trials": row["count"],
        "failed": row["failed"],
        "whole_trials_per_hour": 3600 * row["count"] / wall,
        "slots_busy": row["compute"] / (wall * row["slots"]),
    } | pace([tuple(trial[name] for name in columns) for trial in trials])


def pace(trials: Sequence[tuple[str, datetime, datetime]]) -> dict[str, Any]:
    """The pace of trials of (process, start, end), apart from every process's first one.

    `trials_per_hour` is counted from when all processes have ended their first trial until the first of them runs out
    of trials; not a number if that never is.
    """
    own: dict[str, list[tuple[datetime, datetime]]] = {}
    for process, start, end in sorted(trials, key=lambda trial: trial[1]):
        own.setdefault(process, []).append((start, end))
    warm, idle = max(mine[0][1] for mine in own.values()), min(mine[-1][1] for mine in own.values())
    counted = sum(warm < end <= idle for _, _, end in trials)
    firsts, laters = [mine[0] for mine in own.values()], [trial for mine in own.values() for trial in mine[1:]]
    return {
        "processes": len(own),
        "first_seconds": median_length(firsts),
        "later_seconds": median_length(laters),
        "counted": counted,
        "trials_per_hour": 3600 * counted / (idle - warm).total_seconds() if counted else math.nan,
    }


def median_length(trials: Sequence[tuple[datetime, datetime]]) -> float:
    """Median seconds of trials of (start, end); 0 without any."""
    return statistics.median((end - start).total_seconds() for start, end in trials) if trials else 0.0
