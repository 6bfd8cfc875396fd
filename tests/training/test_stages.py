import dataclasses
import json
import os
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.errors import InputError
from mantra_ray.fields import replace
from mantra_ray.forward import Fold, predict
from mantra_ray.training import assemble, stages, state
from mantra_ray.training.crossfit import calibration_slope, out_of_fold
from mantra_ray.training.distributed import save_unit, train_unit
from mantra_ray.training.networks import load_networks
from mantra_ray.training.stages import make_folds, stage_key, variable_genes


@pytest.fixture
def in_process(monkeypatch):
    """Units train in this process, without Ray; the list of those that did is returned."""
    trained = []

    def run(records, units, workers, gpus, storage, on_progress):
        for unit in units:
            trained.append(unit)
            save_unit(unit, train_unit(records, unit))

    monkeypatch.setattr(stages, "run_units", run)
    return trained


def make(screen, experiment, folder) -> Fold:
    paths = make_folds(screen, [experiment], folder, workers=1, gpus=0)
    return Fold.load(paths[stage_key(experiment, screen.sha256)])


def with_data(screen, **changes):
    return dataclasses.replace(screen, data=dataclasses.replace(screen.data, **changes))


@pytest.mark.parametrize("kind", ["seen", "unseen"])
def test_test_rows_do_not_influence_the_fold(screen, experiment, in_process, tmp_path, kind):
    experiment = replace(experiment, **{"split.kind": kind, "manifold.smooth": True})
    fold = make(screen, experiment, tmp_path / "a")
    wild = screen.data.delta_expression.copy()
    held_out = np.concatenate([fold.test, fold.validation])
    wild[held_out] = 4 * np.random.default_rng(1).standard_normal(wild[held_out].shape)
    other = make(with_data(screen, delta_expression=wild), experiment, tmp_path / "b")
    for name in ("loadings", "base_program", "base_expression", "lift", "lift_expression", "trait_weights"):
        np.testing.assert_array_equal(getattr(fold, name), getattr(other, name))
    assert fold.names["gene"] == other.names["gene"]
    assert fold.meta["calibration"] == other.meta["calibration"]
    np.testing.assert_array_equal(fold.delta_program[fold.train], other.delta_program[fold.train])
    assert np.abs(fold.delta_program[held_out] - other.delta_program[held_out]).max() > 1


@pytest.mark.filterwarnings("ignore:.*training starts anew")
def test_states_of_units_that_are_done_or_long_forgotten_go(screen, experiment, in_process, tmp_path):
    fold = make(screen, experiment, tmp_path / "a")
    (tmp_path / "b" / "units").mkdir(parents=True)
    left = [tmp_path / "b" / "units" / f"{unit.path.stem}.state" for unit in in_process]  # killed before it went
    for path in (*left, old := tmp_path / "b/units/old.state", energy := tmp_path / "b/energy_old.state"):
        path.touch()
    for path in (old, energy):
        os.utime(path, (0, time.time() - state.STALE - 1))
    (young := tmp_path / "b/units/young.state").touch()  # another command may go on from it
    again = make(screen, experiment, tmp_path / "b")
    np.testing.assert_array_equal(again.base_program, fold.base_program)
    assert list((tmp_path / "b").rglob("*.state")) == [young] and len(list((tmp_path / "b").iterdir())) == 3


def test_a_rows_residual_comes_from_models_that_did_not_see_it(screen, experiment, in_process, tmp_path):
    experiment = replace(experiment, **{"grn.calibrate": False, "grn.epochs": 15})
    fold = make(screen, experiment, tmp_path)
    for unit in in_process:
        result = train_unit(stages.records_of(screen), unit)["base"]
        unseen = np.setdiff1d(fold.train, unit.rows)
        np.testing.assert_allclose(fold.base_expression[unseen], result[unseen], atol=1e-6)
    in_sample = np.mean([train_unit(stages.records_of(screen), unit)["base"] for unit in in_process], axis=0)
    rows = fold.train
    own = np.square(fold.delta_program[rows] - (in_sample @ fold.loadings)[rows]).mean()
    assert own < np.square(fold.residual[rows]).mean()
    np.testing.assert_allclose(fold.base_expression[fold.test], in_sample[fold.test], atol=1e-5)


def test_arrays_agree_with_each_other(screen, experiment, in_process, tmp_path):
    fold = make(screen, replace(experiment, **{"manifold.smooth": True}), tmp_path)
    n, g, k = 72, 30, 4
    assert fold.delta_expression.shape == fold.base_expression.shape == (n, g)
    assert fold.loadings.shape == (g, k) and fold.trait_weights.shape == (k, 1)
    np.testing.assert_allclose(fold.delta_program, fold.delta_expression @ fold.loadings, atol=1e-4)
    np.testing.assert_allclose(fold.base_program, fold.base_expression @ fold.loadings, atol=1e-4)
    np.testing.assert_allclose(fold.lift, fold.lift_expression @ fold.loadings, atol=1e-4)
    np.testing.assert_allclose(
        fold.program_noise, 0.05**2 * np.square(fold.loadings).sum(0)[None].repeat(n, 0), rtol=1e-3
    )
    np.testing.assert_allclose(fold.delta_trait, fold.delta_program @ fold.trait_weights, atol=1e-4)
    assert 0 <= fold.meta["calibration"] <= 1 and fold.meta["base"] == "gnn" and fold.meta["notes"] == ["a note"]
    assert fold.meta["edges"] > 0 and fold.meta["regulators_in_graph"] >= 8
    np.testing.assert_array_equal(np.sort(np.concatenate([fold.train, fold.validation, fold.test])), np.arange(n))
    assert (fold.cross_fit[fold.train] >= 0).all() and (np.delete(fold.cross_fit, fold.train) == -1).all()
    correction = np.ones((n, k), np.float32)
    moved = predict(fold, np.arange(n), correction)
    np.testing.assert_allclose(moved.program, moved.expression @ fold.loadings, atol=1e-3)


def test_without_smoothing_a_correction_arrives_whole(screen, experiment, in_process, tmp_path):
    fold = make(screen, experiment, tmp_path)
    np.testing.assert_allclose(fold.lift, np.eye(4), atol=1e-4)


def test_finished_work_is_reused(screen, experiment, in_process, tmp_path):
    make(screen, experiment, tmp_path)
    assert len(in_process) == 3 and not list((tmp_path / "units").iterdir())
    make(screen, replace(experiment, **{"nexus.tau": 0.5, "evaluation.bootstrap": 7}), tmp_path)
    assert len(in_process) == 3
    make_folds(screen, [replace(experiment, seed=s) for s in (1, 1, 2)], tmp_path, 1, False)
    assert len(in_process) == 9


def test_an_interrupted_run_goes_on_where_it_stopped(screen, experiment, in_process, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(assemble, "assemble", lambda *_: 1 / 0)
        make(screen, experiment, tmp_path)
    files = sorted((tmp_path / "units").iterdir())
    assert len(files) == 3
    files[1].write_bytes(files[1].read_bytes()[:-100])  # damaged: this one alone is trained again
    fold = make(screen, experiment, tmp_path)
    assert [unit.path for unit in in_process[3:]] == [files[1]]
    np.testing.assert_array_equal(fold.base_program, make(screen, experiment, tmp_path / "whole").base_program)


def test_networks_stay_beside_the_fold_and_predict_what_it_holds(screen, experiment, in_process, tmp_path):
    experiment = replace(experiment, **{"manifold.smooth": True})
    fold = make(screen, experiment, tmp_path)
    networks = load_networks(tmp_path / fold.meta["networks"])
    rows = fold.regulator, fold.dose, fold.state
    predictions = []
    for model, scale in zip(networks.models, networks.scales, strict=True):
        with torch.no_grad():
            predictions.append(model(*map(torch.from_numpy, rows)).numpy() * scale)
    base = networks.smooth(out_of_fold(predictions, fold.cross_fit)) * fold.meta["calibration"]
    np.testing.assert_allclose(base, fold.base_expression, atol=1e-5)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"text")])
def test_networks_that_are_missing_or_damaged_are_trained_again(screen, experiment, in_process, tmp_path, damage):
    fold = make(screen, experiment, tmp_path)
    path = tmp_path / fold.meta["networks"]
    whole = load_networks(path)
    damage(path)
    again = make(screen, experiment, tmp_path)
    assert len(in_process) == 6 and not list((tmp_path / "units").iterdir())
    for model, other in zip(whole.models, load_networks(path).models, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    np.testing.assert_array_equal(again.base_program, fold.base_program)


def test_runs_that_share_a_folder_do_not_harm_each_other(screen, experiment, in_process, tmp_path, monkeypatch):
    other = replace(experiment, **{"programs.k": 3})  # shares the networks
    foreign = tmp_path / "units" / "foreign_0.npz"
    train = stages.run_units

    def beside_another(*arguments):
        """While this run trains, another finishes one of its two folds, and deletes the networks."""
        monkeypatch.setattr(stages, "run_units", train)
        make(screen, other, tmp_path)
        foreign.write_bytes(b"of a third run")
        assert not list(tmp_path.glob("units/[!f]*"))

    monkeypatch.setattr(stages, "run_units", beside_another)
    paths = make_folds(screen, [experiment, other], tmp_path, 1, False)
    assert len(paths) == 2 and all(Fold.load(path).programs in (3, 4) for path in paths.values())
    assert list((tmp_path / "units").iterdir()) == [foreign]
    assert not list(tmp_path.glob("ray_*"))


def test_networks_that_do_not_arrive_are_an_error(screen, experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "run_units", lambda *_: None)
    with pytest.raises(InputError, match="share the folder"):
        make(screen, experiment, tmp_path)


def test_folds_that_differ_in_programs_share_their_networks(screen, experiment, in_process, tmp_path):
    other = replace(experiment, **{"programs.k": 3, "manifold.smooth": True})
    paths = make_folds(screen, [experiment, other], tmp_path, 1, False)
    assert len(paths) == 2 and len(in_process) == 3


def test_stage_key_depends_on_the_stages_alone(experiment):
    key = stage_key(experiment, "data")
    assert key == stage_key(replace(experiment, **{"nexus.buckets": 7, "evaluation.bootstrap": 9}), "data")
    there = {
        "data.data_dir": "there",
        "data.graph": "there/edges.csv",
        "data.loadings": "W.npy",
        "data.classes": "c.csv",
    }
    there |= {"data.data": "there/screen.npz"}
    assert key == stage_key(replace(experiment, **there), "data")
    changes = {
        "seed": 1,
        "data.genes": 7,
        "data.traits": ("a=1.csv",),
        "split.kind": "unseen",
        "programs.k": 5,
        "grn.epochs": 1,
        "manifold.smooth": True,
    }
    others = {stage_key(replace(experiment, **{name: value}), "data") for name, value in changes.items()}
    assert len(others | {key, stage_key(experiment, "other data")}) == len(changes) + 2
    traits = [("a=1.csv", "b=2.csv"), ("a=there/1.csv", "b=2.csv"), ("b=2.csv", "a=1.csv")]
    first, moved, swapped = (stage_key(replace(experiment, **{"data.traits": names}), "data") for names in traits)
    assert first == moved != swapped


def test_given_loadings_are_restricted_to_the_kept_genes(screen, experiment, in_process, tmp_path):
    loadings = np.random.default_rng(0).random((40, 3)).astype(np.float32)
    given = dataclasses.replace(screen, loadings=loadings, program_names=("x", "y", "z"))
    fold = make(given, experiment, tmp_path)
    kept = [screen.data.gene_names.index(name) for name in fold.names["gene"]]
    np.testing.assert_array_equal(fold.loadings, loadings[kept])
    assert fold.names["program"] == ["x", "y", "z"]
    loadings[kept, 1] = loadings[kept, 0]
    with pytest.raises(InputError, match="dependent"):
        make(dataclasses.replace(given, loadings=loadings, sha256="1" * 64), experiment, tmp_path)


def test_programs_alone_get_a_cross_fitted_ridge(screen, experiment, in_process, tmp_path):
    rng = np.random.default_rng(0)
    data = screen.data
    effect = rng.standard_normal((12, 3))
    program = (data.dose[:, None] * effect[data.regulator] + 0.05 * rng.standard_normal((72, 3))).astype(np.float32)
    trait = (program @ [[1.0], [-2.0], [0.5]]).astype(np.float32)
    alone = dataclasses.replace(
        with_data(
            screen, delta_expression=None, delta_expression_se=None, delta_program=program, delta_trait=trait,
            gene_names=(), trait_names=("t",), program_names=("p", "q", "r"),
        ),
        graph=None, traits={}, program_names=("p", "q", "r"),
    )  # fmt: skip
    fold = make(alone, experiment, tmp_path)
    assert fold.meta["base"] == "ridge" and "networks" not in fold.meta and not in_process
    assert len(list(tmp_path.iterdir())) == 1
    assert fold.delta_expression is fold.base_expression is fold.lift_expression is fold.loadings is None
    np.testing.assert_array_equal(fold.lift, np.eye(3))
    assert np.square(fold.residual[fold.test]).mean() < 0.3 * np.square(program[fold.test]).mean()
    np.testing.assert_allclose(fold.trait_weights[:, 0], [1, -2, 0.5], atol=0.05)
    np.testing.assert_array_equal(fold.delta_trait, trait)
    assert fold.names["gene"] == [] and fold.names["trait"] == ["t"]
    json.dumps(fold.meta)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(-2, 3))
def test_slope_is_recovered_within_its_bounds(seed, slope):
    predicted = np.random.default_rng(seed).standard_normal((30, 4))
    found = calibration_slope(slope * predicted, predicted, np.arange(30) // 3)
    np.testing.assert_allclose(found, np.clip(slope, 0, 1), atol=1e-9)


def test_slope_shrinks_with_its_uncertainty():
    rng = np.random.default_rng(0)
    predicted = rng.standard_normal((400, 4))
    observed = 0.5 * predicted + rng.standard_normal(predicted.shape)
    many = calibration_slope(observed, predicted, np.arange(400))
    few = calibration_slope(observed[:20], predicted[:20], np.arange(20))
    assert 0.4 < many < 0.5 + 1e-2
    assert few < many
    lone = np.zeros_like(predicted)
    lone[0] = predicted[0]  # one regulator alone is as predicted, all the others do nothing
    assert calibration_slope(lone * 10, predicted, np.arange(400)) < 0.01


def test_slope_of_no_prediction_is_zero():
    assert calibration_slope(np.ones((3, 2)), np.zeros((3, 2)), np.arange(3)) == 0


def test_out_of_fold_takes_own_model_else_the_mean():
    per_fold = [np.full((4, 1), value, np.float32) for value in (1.0, 2.0, 6.0)]
    np.testing.assert_array_equal(out_of_fold(per_fold, np.array([2, -1, 0, 1]))[:, 0], [6, 3, 1, 2])


def test_most_variable_genes():
    changes = np.random.default_rng(0).standard_normal((50, 4)) * [1, 3, 0.1, 2]
    np.testing.assert_array_equal(variable_genes(changes, 2), [1, 3])
    np.testing.assert_array_equal(variable_genes(changes, 0), range(4))


@pytest.mark.slow
def test_end_to_end_on_ray(ray_session, screen, experiment, in_process, tmp_path, monkeypatch):
    here = make(screen, experiment, tmp_path / "here")
    monkeypatch.undo()  # from here on the networks train on a TorchTrainer
    told = []
    paths = make_folds(screen, [experiment], tmp_path / "ray", 2, False, lambda *heard: told.append(heard))
    fold = Fold.load(paths[stage_key(experiment, screen.sha256)])
    np.testing.assert_allclose(fold.base_program, here.base_program, atol=1e-5)
    assert (3, 3, "GRN-GNN cross-fitting") in told
    key = stage_key(experiment, screen.sha256)
    files = {path.name for path in (tmp_path / "ray").iterdir() if path.is_file()}
    assert files == {f"fold_{key}.npz", f"grn_{key}.pt"}
