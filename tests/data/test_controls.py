"""Unperturbed cells: simulated around the steady states, or read and aligned by name."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from mantra_ray.config import DataConfig, ExperimentConfig, ManifoldConfig, SimulationConfig
from mantra_ray.data import controls
from mantra_ray.data import simulate as simulator
from mantra_ray.data.controls import control_cells, read_controls, with_controls
from mantra_ray.data.simulate import simulate
from mantra_ray.errors import InputError
from mantra_ray.fields import replace

SMALL = SimulationConfig(regulators=30, genes=120, programs=6, doses=(0.4, 0.9), states=2, seed=3)
GENES, STATES = ("a", "b", "c"), ("x", "y")


def test_simulated_cells_surround_the_state_that_changes_start_from():
    cells, state = control_cells(SMALL, 600)
    assert cells.shape == (600, 120) and cells.dtype == np.float32 and np.bincount(state).tolist() == [300, 300]
    assert np.array_equal(cells, control_cells(SMALL, 600)[0])
    screen, _ = simulate(SMALL)
    means = np.stack([cells[state == s].mean(0) for s in (0, 1)])
    assert np.abs(means[0] - means[1]).std() > 0.2  # the states differ
    assert 0.2 < cells[state == 0].std(0).mean() < 1.0
    # Regulators vary most, and their variation reaches other genes.
    genes = [screen.data.gene_names.index(name) for name in screen.data.regulator_names]
    spread = cells[state == 0].std(0)
    others = np.setdiff1d(np.arange(120), genes)
    assert spread[genes].min() > 0.5 and spread[others].mean() > 0.25


def test_cells_come_from_the_network_that_the_screen_is_made_of(monkeypatch):
    monkeypatch.setattr(controls, "CELL_REGULATORS", 0.0)
    monkeypatch.setattr(controls, "CELL_GENES", 0.0)
    cells, state = control_cells(SMALL, 4)
    np.testing.assert_array_equal(cells[0], cells[2])
    kept = {}

    def record(weights, drive, genes, regulator, held):
        settled = settle(weights, drive, genes, regulator, held)
        if (regulator < 0).all():
            kept[len(kept)] = settled[0].copy()
        return settled

    settle = simulator.settle
    monkeypatch.setattr(simulator, "settle", record)
    simulate(SMALL)
    for s in (0, 1):
        np.testing.assert_allclose(cells[s], kept[s], atol=1e-5)
    assert state.tolist() == [0, 1, 0, 1]


def test_a_table_is_aligned_by_name(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(9, 2)), columns=["c", "a"]).assign(state=list("xy" * 4 + "x"), batch="one")
    for name in ("cells.parquet", "cells.csv"):
        path = tmp_path / name
        getattr(table, f"to_{path.suffix[1:]}")(path, index=False)
        read, notes = read_controls(path, GENES, STATES)
        np.testing.assert_allclose(read.profiles[:, [0, 2]], table[["a", "c"]], atol=1e-6)
        assert read.measured.tolist() == [True, False, True] and read.state.tolist() == [0, 1] * 4 + [0]
        assert len(notes) == 1 and "b" in notes[0]


def test_a_matrix_has_the_datas_order_and_no_states(tmp_path):
    np.save(tmp_path / "cells.npy", np.arange(24.0).reshape(8, 3))
    read, notes = read_controls(tmp_path / "cells.npy", GENES, STATES)
    assert read.profiles[1].tolist() == [3, 4, 5] and (read.state == -1).all() and "mean of all" in notes[0]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.head(7), "at least 8"),
        (lambda t: t.rename(columns={"a": "q", "b": "r", "c": "s"}), "no gene of the data"),
        (lambda t: t.assign(state="z"), "not a state"),
        (lambda t: t.assign(a=[np.nan] + [1.0] * 8), "row 0 is empty"),
        (lambda t: t.assign(a=["many"] + ["1"] * 8), "not a number"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, change, problem):
    table = pd.DataFrame(np.ones((9, 3)), columns=list(GENES)).assign(state="x")
    change(table).to_csv(tmp_path / "cells.csv", index=False)
    with pytest.raises(InputError, match=problem):
        read_controls(tmp_path / "cells.csv", GENES, STATES)


@pytest.mark.parametrize("matrix", [np.ones((9, 4)), np.ones(9), np.full((9, 3), np.inf), np.ones((3, 3))])
def test_matrices_that_cannot_be_used(tmp_path, matrix):
    np.save(tmp_path / "cells.npy", matrix)
    with pytest.raises(InputError, match=r"cells.npy"):
        read_controls(tmp_path / "cells.npy", GENES, STATES)
    with pytest.raises(InputError, match="no such file"):
        read_controls(tmp_path / "none.npy", GENES, STATES)


def test_a_screens_cells_are_simulated_or_those_of_the_file_and_then_count_in_its_hash(tmp_path):
    screen, _ = simulate(SMALL)
    asked = ExperimentConfig(DataConfig(simulation=SMALL), manifold=ManifoldConfig(energy=True, cells=50))
    simulated = with_controls(screen, [ExperimentConfig(), asked])
    assert len(simulated.controls.profiles) == 50 and simulated.sha256 == screen.sha256
    hashes = set()
    for value in (0.0, 1.0):
        np.save(tmp_path / "cells.npy", np.full((9, 120), value))
        manifold = dataclasses.replace(asked.manifold, controls=str(tmp_path / "cells.npy"))
        given = with_controls(screen, [dataclasses.replace(asked, manifold=manifold)])
        assert given.controls.profiles[0, 0] == value
        hashes.add(given.sha256)
    assert len(hashes | {screen.sha256}) == 3


def test_arms_of_a_sweep_must_want_the_same_cells():
    screen, _ = simulate(SMALL)
    asked = ExperimentConfig(DataConfig(simulation=SMALL), manifold=ManifoldConfig(penalty=0.1, cells=50))
    graph = replace(asked, **{"manifold.penalty": 0.0, "grn.prior": "coexpression"})
    assert len(with_controls(screen, [graph]).controls.profiles) == 50
    with pytest.raises(InputError, match="the same in all arms"):
        with_controls(screen, [asked, replace(graph, **{"manifold.cells": 60})])
