"""A tiny synthetic screen in the real data classes."""

import numpy as np
import pytest

from mantra_ray.config import DataConfig, ExperimentConfig, GrnConfig, ProgramsConfig
from mantra_ray.data.graph import from_edges
from mantra_ray.data.records import PerturbationData
from mantra_ray.data.screen import Screen
from mantra_ray.data.traits import TraitTable
from mantra_ray.training import residual

REGULATORS, GENES, DOSES, STATES = 12, 40, (0.3, 0.6, 0.9), 2


@pytest.fixture
def screen() -> Screen:
    """72 records; four latent programs, of which each regulator moves some; noise with known standard error."""
    rng = np.random.default_rng(0)
    grid = np.array([(r, d, s) for r in range(REGULATORS) for d in DOSES for s in range(STATES)])
    regulator, dose, state = grid[:, 0].astype(np.int64), grid[:, 1].astype(np.float32), grid[:, 2].astype(np.int64)
    effect = rng.standard_normal((REGULATORS, 4)) @ (rng.random((4, GENES)) * (rng.random((4, GENES)) < 0.3))
    changes = dose[:, None] * effect[regulator] + 0.05 * rng.standard_normal((len(grid), GENES))
    data = PerturbationData(
        regulator, dose, state, changes.astype(np.float32), np.full(changes.shape, 0.05, np.float32),
        gene_names=tuple(f"g{i}" for i in range(GENES)),
        regulator_names=(*(f"g{i}" for i in range(REGULATORS - 2)), "outside", "alone"),
        state_names=("a", "b"),
    )  # fmt: skip
    names = [data.regulator_names[i] for i in rng.integers(0, REGULATORS - 1, 80)]
    targets = [data.gene_names[i] for i in rng.integers(0, GENES, 80)]
    graph = from_edges(names, targets, rng.choice([-1.0, 1.0], 80))
    table = TraitTable(rng.standard_normal(GENES).astype(np.float32), np.full(GENES, 0.2, np.float32))
    return Screen(
        "tiny", data, graph, None, (), {"height": table}, np.full(REGULATORS, -1), (), "0" * 64,
        ("seen", "unseen"), ("a note",),
    )  # fmt: skip


@pytest.fixture
def experiment() -> ExperimentConfig:
    return ExperimentConfig(
        data=DataConfig(genes=30),
        programs=ProgramsConfig(k=4, restarts=2),
        grn=GrnConfig(hidden=8, epochs=3, batch=16, learning_rate=2e-2),
    )


@pytest.fixture
def last_epoch(monkeypatch):
    """Takes the weights of the last epoch, so that what acts in training alone shows."""
    monkeypatch.setattr(residual, "chosen_epoch", lambda errors, *_: len(errors) - 1)
