"""The energy as a stage: what it sees, what it does to a fold and to a network, and what it leaves alone."""

import dataclasses

import numpy as np
import pytest
import torch

from mantra_ray.cascade.energy import Energy
from mantra_ray.data.controls import with_controls
from mantra_ray.data.screen import Controls
from mantra_ray.errors import InputError
from mantra_ray.fields import replace
from mantra_ray.forward import Fold, predict
from mantra_ray.training import stages
from mantra_ray.training.distributed import load_unit, save_unit
from mantra_ray.training.stages import make_folds

ENERGY = {"manifold.energy": True, "manifold.components": 4, "manifold.updates": 30, "manifold.hidden": 16}


@pytest.fixture
def known(screen):
    """The screen with 80 unperturbed cells, which vary along the directions of its effects."""
    rng = np.random.default_rng(1)
    axes = np.linalg.svd(screen.data.delta_expression, full_matrices=False)[2][:4]
    profiles = rng.normal(size=(80, 4)) @ axes + 0.2 * rng.normal(size=(80, 40)) + 2
    return dataclasses.replace(screen, controls=Controls(profiles.astype(np.float32), np.arange(80) % 2))


@pytest.fixture
def trained(monkeypatch):
    """Units are trained here, and listed."""
    units = []

    def run(records, wanted, *_):
        for unit in wanted:
            units.append(unit)
            save_unit(unit, unit.train(records))

    monkeypatch.setattr(stages, "run_units", run)
    return units


def make(screen, experiment, folder) -> Fold:
    (path,) = make_folds(screen, [experiment], folder, 1, 0).values()
    return Fold.load(path)


def arrays(fold):
    return {f.name: getattr(fold, f.name) for f in dataclasses.fields(fold) if f.name not in ("names", "meta")}


def same(a, b):
    a, b = arrays(a), arrays(b)
    for name in a:
        if name != "descent" and a[name] is not None:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_cells_change_nothing_where_no_energy_is_asked_for(screen, known, experiment, tmp_path, trained):
    without = make(screen, experiment, tmp_path / "a")
    same(without, make(known, experiment, tmp_path / "b"))
    assert without.descent is None and without.smooth_expression is None and without.free_program is None
    assert without.meta["realism"]["displacement"] == 0


def test_the_manifold_moves_predictions_and_corrections_down_the_energy(known, experiment, tmp_path, trained):
    plain = make(known, experiment, tmp_path)
    fold = make(known, replace(experiment, **ENERGY), tmp_path)
    np.testing.assert_array_equal(fold.smooth_expression, plain.base_expression)
    np.testing.assert_allclose(fold.base_program, fold.base_expression @ fold.loadings, atol=1e-6)
    np.testing.assert_allclose(fold.free_program, plain.base_program, atol=1e-5)
    energy = Energy.from_arrays(fold.descent)
    state = torch.tensor(fold.state)

    def level(change):
        return float(energy.relative(torch.tensor(change), state).mean())

    assert level(fold.base_expression) < level(fold.smooth_expression)
    assert fold.meta["realism"]["displacement"] > 0
    assert fold.meta["energy"]["energy_error"] <= fold.meta["energy"]["gaussian_error"]
    rows = np.arange(len(fold.state))
    correction = np.random.default_rng(0).normal(size=(len(rows), fold.programs)).astype(np.float32)
    correction[::3] = 0
    corrected = predict(fold, rows, correction)
    np.testing.assert_array_equal(corrected.expression[::3], fold.base_expression[::3])
    np.testing.assert_array_equal(corrected.program[::3], fold.base_program[::3])
    straight = fold.smooth_expression + correction @ fold.lift_expression
    assert level(corrected.expression) < level(straight)
    np.testing.assert_allclose(corrected.program, corrected.expression @ fold.loadings, atol=1e-5)
    by_genes = predict(fold, rows, expression=correction @ fold.lift_expression)
    np.testing.assert_allclose(by_genes.expression, corrected.expression, atol=1e-6)


def test_a_descent_without_steps_is_no_descent(known, experiment, tmp_path, trained):
    plain = make(known, experiment, tmp_path)
    fold = make(known, replace(experiment, **ENERGY, **{"manifold.steps": 0}), tmp_path)
    np.testing.assert_array_equal(fold.base_expression, plain.base_expression)
    correction = np.ones((len(fold.state), fold.programs), np.float32)
    rows = np.arange(len(fold.state))
    np.testing.assert_allclose(
        predict(fold, rows, correction).program, predict(plain, rows, correction).program, atol=1e-5
    )


def test_no_perturbed_record_reaches_the_energy_and_no_test_row_the_fold(known, experiment, tmp_path, trained):
    experiment = replace(experiment, **ENERGY, **{"manifold.penalty": 0.1})
    fold = make(known, experiment, tmp_path / "a")
    wild = known.data.delta_expression.copy()
    wild[fold.test] += np.random.default_rng(0).normal(size=wild[fold.test].shape).astype(np.float32)
    again = make(
        dataclasses.replace(known, data=dataclasses.replace(known.data, delta_expression=wild)),
        experiment,
        tmp_path / "b",
    )
    for name, array in fold.descent.items():
        np.testing.assert_array_equal(array, again.descent[name], err_msg=name)
    np.testing.assert_array_equal(fold.base_expression, again.base_expression)
    unit = next(unit for unit in trained if not hasattr(unit, "rows"))
    records = dataclasses.replace(stages.records_of(known), delta_expression=None, regulator=None, dose=None)
    np.testing.assert_array_equal(unit.train(records)["net.0.weight"], fold.descent["net.0.weight"])


def test_the_energy_is_made_once_and_stays(known, experiment, tmp_path, trained):
    experiment = replace(experiment, **ENERGY)
    make(known, experiment, tmp_path)
    kinds = [type(unit).__name__ for unit in trained]
    assert kinds.count("EnergyUnit") == 1 and kinds.count("Unit") == experiment.grn.folds
    trained.clear()
    make(known, replace(experiment, **{"manifold.reach": 0.2, "manifold.smooth": True}), tmp_path)
    assert "EnergyUnit" not in [type(unit).__name__ for unit in trained]
    (path,) = tmp_path.glob("energy_*.npz")
    path.write_bytes(path.read_bytes()[:100])
    make(known, replace(experiment, **{"manifold.reach": 0.3}), tmp_path)
    assert load_unit(path) is not None  # a damaged one is learned again


def test_the_penalty_lowers_the_relative_energy_of_predictions(known, experiment, tmp_path, trained):
    asked = replace(experiment, **ENERGY | {"manifold.penalty": 0.3, "manifold.energy": False})
    fold = make(known, asked, tmp_path)
    assert fold.descent is None and "energy" in fold.meta  # it is learned for the loss alone
    assert [type(unit).__name__ for unit in trained] == ["EnergyUnit", "Unit", "Unit", "Unit"]
    unit, records = trained[-1], stages.records_of(known)
    energy, state = Energy.from_arrays(load_unit(unit.energy)), torch.tensor(records.state[unit.rows])
    levels = []
    for penalty in (0.0, 0.3, 3.0):
        base = dataclasses.replace(unit, penalty=penalty).train(records)["base"]
        levels.append(float(energy.relative(torch.tensor(base[unit.rows]), state).mean()))
    assert levels[0] > levels[1] > levels[2]
    plain = dataclasses.replace(unit, penalty=0.0, energy=None).train(records)["base"]
    np.testing.assert_array_equal(plain, dataclasses.replace(unit, penalty=0.0).train(records)["base"])
    with pytest.raises(FileNotFoundError):
        dataclasses.replace(unit, energy=tmp_path / "none.npz").train(records)


def test_without_cells_the_energy_is_off_and_says_so(screen, experiment, tmp_path, trained):
    experiment = replace(experiment, **{"data.data": "screen.npz"})
    asked = replace(experiment, **ENERGY, **{"manifold.penalty": 0.1})
    noted = with_controls(screen, [experiment, asked])
    assert "no effect" in noted.notes[-1] and noted.sha256 == screen.sha256
    assert with_controls(screen, [experiment]) is screen
    fold = make(noted, asked, tmp_path)
    assert any("no effect" in note for note in fold.meta["notes"]) and fold.descent is None
    same(fold, make(screen, experiment, tmp_path))


def test_genes_that_no_control_measures(known, experiment, tmp_path, trained):
    profiles = known.controls.profiles.copy()
    profiles[:, :5] = np.nan
    part = dataclasses.replace(known, controls=Controls(profiles, known.controls.state))
    fold = make(part, replace(experiment, **ENERGY), tmp_path)
    genes = [fold.names["gene"].index(f"g{i}") for i in range(5) if f"g{i}" in fold.names["gene"]]
    np.testing.assert_array_equal(fold.base_expression[:, genes], fold.smooth_expression[:, genes])
    nothing = dataclasses.replace(known, controls=Controls(profiles * np.nan, known.controls.state))
    with pytest.raises(InputError, match="none of the kept genes"):
        make(nothing, replace(experiment, **ENERGY), tmp_path / "none")
