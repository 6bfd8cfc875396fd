"""The sweep that `mantra bench faults` disturbs, and trials of it that misbehave once.

    python -m mantra_ray.bench.fault_sweep KIND NOTES [options of a sweep]

KIND `none` runs it as it is. With another kind of `MISBEHAVIOURS` the chosen trials misbehave the first time that they
run; a file in the folder NOTES tells that they did.
"""

from __future__ import annotations

import functools
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mantra_ray.sweep.options import Options, parse
from mantra_ray.sweep.runner import run_sweep
from mantra_ray.sweep.spec import SweepSpec, TrialSpec
from mantra_ray.sweep.trial import TrialOutcome
from mantra_ray.sweep.worker import execute
from mantra_ray.terminal import console, guarded

NAME = "faults"
ALPHAS = (0.0, 0.3, 0.7, 1.0)
MIB = 2**20
APPETITE = 3072 * MIB  # most that a trial takes until Ray's memory monitor ends it
SURVIVED = "survived"


def recipe(options: Options) -> SweepSpec:
    """Small trials for faults to hit: query alpha on both splits, with the baselines 20 trials on 2 seeds."""
    return options.sweep(NAME, [{"nexus.query_alpha": alpha} for alpha in ALPHAS])


def chosen(spec: TrialSpec) -> bool:
    """Whether a trial is to misbehave: one a split."""
    return spec.kind == "nexus" and spec.config.nexus.query_alpha == ALPHAS[1] and spec.config.seed == 0


def misbehaving(spec: TrialSpec, *shared: Any, kind: str, notes: Path) -> TrialOutcome:
    """Run a trial as `execute` does; a chosen one misbehaves before or after, unless it has before."""
    note = notes / spec.id
    if not chosen(spec) or note.exists():
        return execute(spec, *shared)
    notes.mkdir(parents=True, exist_ok=True)
    note.touch()
    outcome = MISBEHAVIOURS[kind](lambda: execute(spec, *shared))
    note.write_text(SURVIVED)
    return outcome


def _raise(run: Callable[[], TrialOutcome]) -> TrialOutcome:
    run()
    raise RuntimeError("this trial was told to raise")


def _nan(run: Callable[[], TrialOutcome]) -> TrialOutcome:
    outcome = run()
    for row in outcome.scores:
        row["value"] = float("nan")
    return outcome


def _hang(run: Callable[[], TrialOutcome]) -> TrialOutcome:
    re.fullmatch(r"(a+)+b", "a" * 64)  # 2^64 steps of compiled code, during which no other thread of Python runs
    return run()


def _allocate(run: Callable[[], TrialOutcome]) -> TrialOutcome:
    """Real memory is never short: the process may map only a little more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 256 * MIB, limits[1]))
    try:
        np.ones(512 * MIB, np.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    return run()


def _outgrow(run: Callable[[], TrialOutcome]) -> TrialOutcome:
    """Take memory until Ray's monitor, whose threshold the bench has lowered, ends this process."""
    taken = []
    while len(taken) * 64 * MIB < APPETITE:
        taken.append(np.ones(64 * MIB, np.uint8))
        time.sleep(0.1)
    time.sleep(10)
    del taken
    return run()


MISBEHAVIOURS = {"raise": _raise, "nan": _nan, "hang": _hang, "memory": _allocate, "outgrow": _outgrow}


def main(args: Sequence[str]) -> int:
    """Run the sweep; returns the exit code of `run_sweep`."""
    kind, notes, *rest = args

    def run() -> int:
        options = parse(rest, recipe.__doc__)
        spec = recipe(options)
        if kind == "none":
            return run_sweep(spec, options, console())
        return run_sweep(spec, options, console(), functools.partial(misbehaving, kind=kind, notes=Path(notes)))

    return guarded(run)


if __name__ == "__main__":
    from mantra_ray.bench import fault_sweep  # by its name, so that other processes find what it sends them

    sys.exit(fault_sweep.main(sys.argv[1:]))
