"""Small stand-ins for the parts that a sweep drives."""

from types import SimpleNamespace

import numpy as np
import pytest

from mantra_ray.forward import Fold
from mantra_ray.training.stages import stage_key


@pytest.fixture
def fold():
    """A fold of 12 records, 5 genes, 2 programs and 1 trait."""
    rows, genes, programs = 12, 5, 2
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return Fold(
        regulator=np.arange(rows) % 4,
        dose=np.full(rows, 0.5, np.float32),
        state=np.arange(rows) % 2,
        strategy=np.zeros(rows, np.int64),
        group=np.arange(rows),
        train=np.arange(6),
        validation=np.arange(6, 8),
        test=np.arange(8, rows),
        cross_fit=np.zeros(rows, np.int64),
        regulator_class=np.full(4, -1),
        delta_program=draw(rows, programs),
        program_noise=np.zeros((rows, programs), np.float32),
        base_program=draw(rows, programs),
        lift=np.eye(programs, dtype=np.float32),
        trait_weights=draw(programs, 1),
        delta_trait=draw(rows, 1),
        delta_expression=draw(rows, genes),
        base_expression=draw(rows, genes),
        lift_expression=draw(programs, genes),
        loadings=draw(genes, programs),
        names={"regulator": list("abcd")},
        meta={"kind": "seen"},
    )


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
    return SimpleNamespace(sha256="data", splits=("seen", "unseen"), notes=("no traits given",))


@pytest.fixture
def make_folds(fold):
    """Stands in for training: one and the same fold for every experiment."""

    def make(screen, experiments, artifacts, workers, use_gpu, on_progress):
        paths = {}
        for experiment in experiments:
            key = stage_key(experiment, screen.sha256)
            paths[key] = artifacts / f"{key}.npz"
            fold.save(paths[key])
        on_progress(1, 1, "folds")
        return paths

    return make
