"""A user's own files, from the options of the command line to the rows of a trial, in one process."""

import csv
import dataclasses

import numpy as np
import pytest

from mantra_ray.config import SimulationConfig
from mantra_ray.data.catalog import load_screen
from mantra_ray.data.simulate import simulate
from mantra_ray.data.storage import write_npz
from mantra_ray.fields import replace
from mantra_ray.forward import Fold
from mantra_ray.sweep.options import parse
from mantra_ray.sweep.spec import SweepSpec
from mantra_ray.sweep.trial import run_trial
from mantra_ray.training import stages
from mantra_ray.training.distributed import save_unit, train_unit


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files as users have them, of 16 simulated regulators and 40 genes."""
    folder = tmp_path_factory.mktemp("own")
    screen, _ = simulate(SimulationConfig(regulators=16, doses=(0.5, 0.95), genes=40, programs=4))
    data, graph = screen.data, screen.graph
    write_npz(dataclasses.replace(data, delta_trait=None, trait_names=()), folder / "screen.npz")
    who = {"reg_idx": data.regulator, "dose": data.dose, "state": data.state}
    np.savez(folder / "expression.npz", **who, deltaE=data.delta_expression)
    np.savez(folder / "programs.npz", **who, deltaP_obs=data.delta_expression @ screen.loadings)
    np.save(folder / "W.npy", screen.loadings)
    edges = zip(graph.source, graph.target, graph.weight, strict=True)
    effects = screen.traits["trait0"]
    tables = {
        "edges": [("source", "target", "weight"), *((graph.nodes[s], graph.nodes[t], w) for s, t, w in edges)],
        "mch": [("symbol", "b", "se"), *zip(data.gene_names, effects.b, effects.se, strict=True)],
        "families": [
            ("regulator", "class"),
            *((name, f"family{i % 3}") for i, name in enumerate(data.regulator_names)),
        ],
    }
    for name, rows in tables.items():
        with (folder / f"{name}.csv").open("w", newline="") as handle:
            csv.writer(handle).writerows(rows)
    return folder


OPTIONS = {
    "everything": "--data {0}/screen.npz --graph {0}/edges.csv --loadings {0}/W.npy --traits MCH={0}/mch.csv "
    "--classes {0}/families.csv",
    "expression": "--data {0}/expression.npz",
    "programs": "--data {0}/programs.npz",
}


@pytest.mark.parametrize("given", OPTIONS)
def test_runs_to_the_end(files, tmp_path, monkeypatch, given):
    def in_process(records, units, *_):
        for unit in units:
            save_unit(unit, train_unit(records, unit))

    monkeypatch.setattr(stages, "run_units", in_process)
    args = f"--smoke --seeds 1 --genes 30 --programs.k 3 --nexus.epochs 1 {OPTIONS[given]}".format(files)
    base = parse(args.split(), "").experiment(0)
    screen = load_screen(base.data)
    assert screen.splits == ("seen", "strategy", "context", "unseen")
    spec = SweepSpec("own", replace(base, **{"evaluation.bootstrap": 20}), ({},), (0,), screen.splits)
    trials = spec.trials(screen.sha256, "code")
    paths = stages.make_folds(screen, [trial.config for trial in trials], tmp_path, 1, False)
    assert len(trials) == 8 and len(paths) == 4
    for trial in trials:
        fold = Fold.load(paths[stages.stage_key(trial.config, screen.sha256)])
        everything, expression = given == "everything", given != "programs"
        assert fold.names["trait"] == (["MCH"] if everything else [])
        assert fold.meta["base"] == ("gnn" if expression else "ridge")
        assert fold.programs == (3 if given == "expression" else 4) and set(fold.regulator_class) == (
            {0, 1, 2} if everything else {-1}
        )
        rows = [
            row for row in run_trial(trial, fold, tmp_path).scores if row["slice"] == "all" and row["part"] == "test"
        ]
        errors = {row["arm"]: row["value"] for row in rows if row["metric"] == "program_mse"}
        assert np.isfinite(list(errors.values())).all()
        assert {"memory_off", "memory_shuffled", "memory_on"} <= errors.keys() or {"zero", "ridge"} <= errors.keys()
        metrics = {row["metric"] for row in rows}
        assert ("trait_sign_accuracy" in metrics) == everything
        assert ("expression_pearson" in metrics) == expression
        assert ("noise_floor_mse" in metrics) == everything  # the other files tell no standard errors
