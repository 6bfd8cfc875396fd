"""Small stand-ins for the parts that a sweep drives."""

from types import SimpleNamespace

import numpy as np
import pytest

from mantra_ray.data.records import PerturbationData
from mantra_ray.training.stages import stage_key


@pytest.fixture
def records():
    """Makes the columns of `records`: errors of each arm are `share` of the reference's, on 2 + 4 records."""

    def make(shares, seed=0):
        reference = 1 + np.random.default_rng(seed).random(6)
        count, rows = len(shares), np.arange(6, 12)
        return {
            "arm": np.repeat(list(shares), 6),
            "part": np.tile(np.where(rows < 8, "validation", "test"), count),
            "record": np.tile(rows, count),
            "regulator": np.tile(rows % 4, count),
            "dose": np.full(6 * count, 0.5, np.float32),
            "state": np.tile(rows % 2, count),
            "squared_error": np.concatenate([share * reference for share in shares.values()]),
            "reference_error": np.tile(reference, count),
        }

    return make


@pytest.fixture
def screen():
    """What the runner needs to know of the data."""
    rows = np.arange(12)
    data = PerturbationData(regulator=rows % 4, dose=np.full(12, 0.5, np.float32))
    return SimpleNamespace(
        data=data, sha256="data", splits=("seen", "unseen"), notes=("no traits given",), class_names=()
    )


@pytest.fixture
def make_folds(planted):
    """Stands in for training: one and the same fold for every experiment."""
    fold = planted()

    def make(screen, experiments, artifacts, workers, gpus, on_progress):
        paths = {}
        for experiment in experiments:
            key = stage_key(experiment, screen.sha256)
            paths[key] = artifacts / f"{key}.npz"
            fold.save(paths[key])
        on_progress(1, 1, "folds")
        return paths

    return make
