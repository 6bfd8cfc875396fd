"""The folder of a small sweep, written by Store alone: what a report is made of."""

import json

import numpy as np
import pytest

from mantra_ray.config import ExperimentConfig
from mantra_ray.evaluation.pooled import CURVE, RATES
from mantra_ray.report.findings import read_findings
from mantra_ray.report.report import make_report
from mantra_ray.sweep.spec import GEOMETRIES, SweepSpec, grid
from mantra_ray.sweep.store import Store

SPLITS = ("seen", "unseen")
SIZES = [{"nexus.buckets": b, "nexus.slots": s} for b, s in GEOMETRIES.values()]
ARMS = [size | knobs for size in SIZES for knobs in grid(**{"nexus.regret_gamma": (-2.0, 0.0, 1.0)})]
ARMS += [size | {"nexus.load": load} for size in SIZES for load in (0.25, 4.0)]
ERROR = "Traceback (most recent call last):\n  <here>\nValueError: slot [3] & <b>more</b> is empty\n"
ORIGIN = {"commit": "c0ffee", "data_sha256": "d47a", "torch": "2.13", "command": "mantra sweep x.py --seeds 2"}
TRAITS = ("trait_sign_accuracy", "trait_auroc", "trait_calibration_slope", "trait_correlation")


def share_left(config):
    """The memory's error as a share of the GNN's: it falls with gamma, and is less in the aggressive geometry."""
    nexus = config.nexus
    if config.split.kind == "unseen":
        return 1.0
    return 0.8 - 0.2 * (nexus.buckets == 2048) - 0.05 * nexus.regret_gamma + 0.02 * nexus.load


def records(shares, seed):
    """Columns of `records`: 8 validation and 16 test records of 8 regulators, errors a share of the reference's."""
    rng = np.random.default_rng(seed)
    reference, count, rows = 1 + rng.random(24), len(shares), np.arange(24)
    return {
        "arm": np.repeat(list(shares), 24),
        "part": np.tile(np.where(rows < 8, "validation", "test"), count),
        "record": np.tile(rows, count),
        "regulator": np.tile(rows % 8, count),
        "dose": np.full(24 * count, 0.5, np.float32),
        "state": np.tile(rows % 2, count),
        "training_records": np.full(24 * count, 3),
        "rare": np.tile(rows % 8 < 5, count),
        "outlier": np.tile(rows % 8 > 4, count),
        "squared_error": np.concatenate([reference * (s + 0.05 * rng.random(24) * (s != 1)) for s in shares.values()]),
        "reference_error": np.tile(reference, count),
    }


def scores(shares, split, seed):
    """Rows of `scores` on test: gain by slice, traits, a noise ceiling for baselines."""
    where = {"split": split, "part": "test", "lower": 0.0, "upper": 1.0}
    sizes = {"all": 16, "rare": 4, "outlier": 6, "rare_programs": 16}
    rows = [
        where | {"arm": arm, "slice": name, "metric": "program_mse_gain", "value": 1 - share + 0.01 * seed, "n": size}
        for arm, share in shares.items()
        for name, size in sizes.items()
    ]
    level = {arm: {metric: 0.6 + 0.1 * (arm == "memory_on") for metric in TRAITS} for arm in shares}
    if "ridge" in shares:
        level["gnn"] = level["zero"] | {"trait_auroc": 0.65}
    for arm, metrics in level.items():
        metrics |= dict(zip(CURVE, RATES ** (0.5 - 0.1 * seed + 0.2 * (arm == "gnn")), strict=True))
    rows += [
        where | {"arm": arm, "slice": "all", "metric": metric, "value": float(value), "n": 16}
        for arm, metrics in level.items()
        for metric, value in metrics.items()
    ]
    if "ridge" in shares:
        ceiling = where | {"arm": "noise_ceiling", "slice": "all", "n": 16}
        rows += [ceiling | {"metric": name, "value": 0.5} for name in ("noise_floor_mse", "program_mse_gain")]
    return rows


def write_sweep(
    root, arms=ARMS, splits=SPLITS, fails=lambda trial: False, origin=ORIGIN, skips=lambda trial: False, without=()
):
    """Two seeds of every arm; returns the trials. `without`: columns that records lack."""
    trials = SweepSpec("test", ExperimentConfig(), tuple(arms), (0, 1), splits).trials("data", "code")
    store, provenance = Store(root / "results"), {f"provenance.{name}": value for name, value in origin.items()}
    for number, trial in enumerate(trials):
        if skips(trial):
            continue
        if fails(trial):
            store.write(trial, {"status": "failed", "error": ERROR, **provenance})
            continue
        nexus, seed, split = trial.config.nexus, trial.config.seed, trial.config.split.kind
        row = {"status": "done", "seconds": 1.0} | provenance
        shares = {"zero": 20.0, "ridge": 0.9}
        if trial.kind == "nexus":
            shares = {"memory_off": 1.0, "memory_shuffled": 1.25, "memory_on": share_left(trial.config)}
            row |= {"write_density": 0.6 - 0.1 * nexus.regret_gamma, "occupancy": 0.5, "load": nexus.load or 0.05}
            row |= {"collisions": 3.0 + seed, "evictions": 1.0, "records_per_second": 1000.0 + number}
        columns = {name: column for name, column in records(shares, seed).items() if name not in without}
        store.write(trial, row, scores(shares, split, seed), columns)
    (root / "sweep.json").write_text(json.dumps({"trials": [trial.id for trial in trials], "timing": None}))
    return trials


@pytest.fixture(scope="session")
def sweep(tmp_path_factory):
    """The folder of a sweep of geometry, gamma and load in which one trial failed."""
    root = tmp_path_factory.mktemp("made")

    def fails(trial):
        nexus = trial.config.nexus
        return (trial.kind, trial.config.seed, nexus.buckets, nexus.load) == ("nexus", 1, 4096, 4.0)

    write_sweep(root, fails=fails)
    return root


@pytest.fixture(scope="session")
def findings(sweep):
    """What the report of that sweep tells of."""
    return read_findings(str(sweep))


@pytest.fixture(scope="session")
def report(findings):
    """The report of that sweep."""
    return make_report(findings)


@pytest.fixture(scope="session")
def write():
    """Writes another sweep's folder: see `write_sweep`."""
    return write_sweep
