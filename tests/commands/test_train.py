"""`mantra train`: every mode leaves the same files, judged as a sweep judges, and nothing is left half-written."""

import contextlib
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mantra_ray.commands import train
from mantra_ray.commands.tokens import main as tokens
from mantra_ray.commands.train import main
from mantra_ray.errors import InputError
from mantra_ray.forward import Fold
from mantra_ray.nexus.tokens import Vocabulary
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.sweep.store import RECORDS, SCORES
from mantra_ray.sweep.trial import run_trial
from mantra_ray.training import stages
from mantra_ray.training.checkpoint import load
from mantra_ray.training.distributed import save_unit, train_unit
from mantra_ray.training.recursive import TrainedRecursion

DATA = (
    "--simulation.regulators 16 --simulation.genes 40 --simulation.programs 5 --genes 0 --split context --seed 3 "
    "--nexus.magnitude-bins 5"
)
SMALL = (
    DATA + " --grn.epochs 1 --grn.folds 2 --grn.hidden 8 --grn.layers 1 --nexus.epochs 2 --nexus.d-model 16 "
    "--nexus.heads 2 --nexus.buckets 16 --nexus.slots 8 --evaluation.bootstrap 50"
)
CASES = {
    "residual": "",
    "language": "--mode language --nexus.language-epochs 1 --nexus.mode residual",
    "genes": "--correct genes",
    "recursive": "--correction recursive",
    "levels": "--nexus.routing levels",
}
FILES = {"model.pt", "vocab.json", "diagnostics.parquet", "scores.parquet", "records.parquet"}


@contextlib.contextmanager
def no_ray(address):
    yield {"CPU": 1.0, "GPU": 0.0}


def units_here(records, units, *_):
    for unit in units:
        save_unit(unit, train_unit(records, unit))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of each case's run, all from the artifacts of the first."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "connected", no_ray)
        patch.setattr(stages, "run_units", units_here)
        for case, options in CASES.items():
            if case != "residual":
                shutil.copytree(root / "residual" / "artifacts", root / case / "artifacts")
                patch.setattr(train, "connected", None)  # what is made is not made again, and Ray not started
            assert main(f"{SMALL} {options} --out {root / case}".split()) == 0
    return root


def read(folder, name):
    return pq.read_table(folder / f"{name}.parquet").to_pandas()


def fold_of(folder) -> Fold:
    return Fold.load(next((folder / "artifacts").glob("fold_*.npz")))


@pytest.mark.parametrize("case", CASES)
def test_files_and_settings_of_every_case(runs, case):
    folder = runs / case
    assert {path.name for path in folder.iterdir()} == FILES | {"artifacts"}
    checkpoint = load(folder / "model.pt")
    nexus = checkpoint.config.nexus
    expected = {"language": ("mode", "language"), "genes": ("correct", "genes"), "recursive": ("correction", case)}
    name, value = expected.get(case, ("mode", "residual"))
    assert getattr(nexus, name) == value
    assert (checkpoint.config.split.kind, checkpoint.config.seed) == ("context", 3)
    assert Vocabulary.load(folder / "vocab.json") == checkpoint.model.vocabulary
    trained = checkpoint.trained(fold_of(folder), folder / "artifacts")
    assert isinstance(trained, TrainedRecursion) == (case == "recursive")
    for table, schema in (("scores", SCORES), ("records", RECORDS)):
        assert pq.read_schema(folder / f"{table}.parquet").remove_metadata() == schema.remove_metadata()


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_a_sweeps_trials(runs, case):
    folder = runs / case
    fold, checkpoint = fold_of(folder), load(folder / "model.pt")
    scores = read(folder, "scores")
    keys = ["arm", "part", "slice", "metric"]
    assert not scores.duplicated(keys).any()
    found = scores.set_index(keys)
    for kind in ("baselines", "nexus"):
        spec = TrialSpec(kind, checkpoint.config, checkpoint.data_sha256, "code")
        outcome = run_trial(spec, fold, folder / "artifacts")
        arms = {row["arm"] for row in outcome.scores}
        assert arms > ({"gnn", "zero"} if kind == "baselines" else {"memory_off", "memory_shuffled", "memory_on"})
        for row in outcome.scores:
            mine = found.loc[tuple(row[key] for key in keys)]
            for name in ("value", "lower", "upper", "n"):
                np.testing.assert_allclose(mine[name], row[name], rtol=1e-9)
    assert set(scores["part"]) == {"validation", "test"}


@pytest.mark.parametrize("case", CASES)
def test_the_checkpoint_predicts_what_was_judged(runs, case):
    folder = runs / case
    fold = fold_of(folder)
    program = load(folder / "model.pt").trained(fold, folder / "artifacts").predict(fold).program
    records = read(folder, "records")
    mine = records[records["arm"] == "memory_on"]
    rows = mine["record"].to_numpy()
    assert sorted(rows) == sorted([*fold.validation, *fold.test])
    error = np.square(program - fold.delta_program, dtype=np.float64).mean(1)
    np.testing.assert_allclose(mine["squared_error"], error[rows], rtol=1e-12)
    assert (np.abs(mine["squared_error"] - mine["reference_error"]) > 0).any()


@pytest.mark.parametrize("case", CASES)
def test_diagnostics_by_epoch_pass_manifold_and_bucket(runs, case):
    folder = runs / case
    told = read(folder, "diagnostics")
    final = told[told["scope"] == "final"].set_index("metric")["value"]
    assert set(final.index) >= {
        *("write_density", "primed_density", "gated_density", "occupancy", "evictions", "collisions"),
        *("hard_hit_rate", "gate_mean", "read_entropy", "records_per_second", "memory_bytes"),
    }
    epochs = told[told["scope"] == "epoch"]
    count = {"language": 1 + 3, "recursive": 3 + 3}.get(case, 3)
    assert sorted(set(epochs["epoch"])) == list(range(count)) and {"loss", "validation_gain"} <= set(epochs["metric"])
    buckets = told[told["scope"] == "bucket"]
    routes = load(folder / "model.pt").model.routes
    assert set(buckets["manifold"]) == {route.name for route in routes}
    for route in routes:
        mine = buckets[buckets["manifold"] == route.name]
        assert set(mine["bucket"]) == set(range(route.buckets))
    total = buckets.groupby("metric")["value"].sum()
    for name in ("stored", "evictions", "collisions"):
        assert total[name] == final[name]
    assert total["stored"] > 0 and total["offered"] == len(routes) * len(fold_of(folder).train)
    own = told[(told["scope"] == "manifold") & (told["metric"] == "occupancy")]
    assert np.isclose(own["value"].mean(), final["occupancy"])


def test_the_table_and_the_way_on_are_printed(runs, tmp_path, capsys, monkeypatch):
    shutil.copytree(runs / "residual" / "artifacts", tmp_path / "artifacts")
    again = SMALL.replace("--evaluation.bootstrap 50", "--evaluation.bootstrap 20")
    assert main(f"{again} --out {tmp_path}".split()) == 0
    printed = capsys.readouterr().out
    for arm in ("memory_on", "memory_shuffled", "memory_off", "gnn", "zero", "residual_memory", "noise_ceiling"):
        assert f"\n{arm} " in printed
    assert "epochs 3/3: validation gain" in printed and "loss" in printed and f"mantra explain {tmp_path}" in printed
    first, second = (torch.load(folder / "model.pt", weights_only=True) for folder in (runs / "residual", tmp_path))
    assert all(torch.equal(weight, second["weights"][name]) for name, weight in first["weights"].items())


BAD = {
    "--split": "--split elsewhere",
    "--seed": "--seed -1",
    "--gpus": "--gpus nan",
    "--nexus.tau": "--nexus.tau 0",
    "--correction": "--data {0}/programs.npz --correction recursive",
    "--nexus.correct": "--data {0}/programs.npz --correct genes",
    "file": "--data {0}/none.npz",
}


@pytest.mark.parametrize("field", BAD)
def test_bad_input_is_named_and_leaves_no_result(tmp_path, monkeypatch, field):
    monkeypatch.setattr(train, "connected", no_ray)
    rng = np.random.default_rng(0)
    who = {"reg_idx": np.arange(40) % 10, "dose": np.full(40, 0.5), "state": np.arange(40) // 20}
    np.savez(tmp_path / "programs.npz", **who, deltaP_obs=rng.normal(size=(40, 4)))
    with pytest.raises(InputError) as caught:
        main([*BAD[field].format(tmp_path).split(), "--out", str(tmp_path / "out")])
    assert caught.value.field == field
    assert not FILES & {path.name for path in (tmp_path / "out").glob("*")}


def test_gpus_that_the_cluster_lacks_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "connected", no_ray)
    with pytest.raises(InputError, match="the cluster has 0"):
        main(f"{SMALL} --gpus 1 --out {tmp_path}".split())


def test_ctrl_c_ends_with_130_and_leaves_the_artifacts_alone(runs, tmp_path, monkeypatch):
    shutil.copytree(runs / "residual" / "artifacts", tmp_path / "artifacts")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_memory", stop)
    assert main(f"{SMALL} --out {tmp_path}".split()) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["artifacts"]


def test_a_failed_write_leaves_the_earlier_run(runs, tmp_path, monkeypatch):
    shutil.copytree(runs / "language", tmp_path, dirs_exist_ok=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(train, "save", full)
    with pytest.raises(OSError, match="disk full"):
        main(f"{SMALL} --out {tmp_path}".split())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"artifacts"}


def test_tokens_of_the_same_vocabulary_share_the_folder_and_others_refuse(runs, tmp_path):
    shutil.copytree(runs / "residual" / "artifacts", tmp_path / "artifacts")
    assert tokens(["build", *f"{DATA} --out {tmp_path}".split()]) == 0
    index = (tmp_path / "example_index.parquet").read_bytes()
    assert main(f"{SMALL} --out {tmp_path}".split()) == 0
    (tmp_path / "model.pt").unlink()
    with pytest.raises(InputError, match="belongs to the tokens"):
        main(f"{SMALL} --nexus.dose-bins 2 --out {tmp_path}".split())
    assert (tmp_path / "example_index.parquet").read_bytes() == index and not (tmp_path / "model.pt").exists()
