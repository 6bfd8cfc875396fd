"""The scripts, run as a user runs them, on a tiny budget."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[1]
TABLES = ("trials", "scores", "records", "curves")
GEOMETRIES = {(512, 32), (2048, 8), (4096, 4)}


def command(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "160"},
        capture_output=True,
        text=True,
    )


def sweep(out: Path) -> subprocess.CompletedProcess:
    return command("sweeps/cam_geometry.py", "--smoke", "--out", out)


@pytest.fixture(scope="session")
def swept(tmp_path_factory):
    """The folder of one smoke run of the main job, and what it printed."""
    out = tmp_path_factory.mktemp("runs")
    done = sweep(out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "cam_geometry", done.stdout


@pytest.fixture(scope="session")
def tables(swept) -> dict[str, pd.DataFrame]:
    return {name: pd.read_parquet(swept[0] / "results" / name) for name in TABLES}


def test_help_explains_every_option():
    told = command("sweeps/cam_geometry.py", "--help")
    assert told.returncode == 0
    for option in ("data", "data-dir", "seeds", "out", "address", "cpus-per-trial", "gpus-per-trial", "smoke"):
        assert f"--{option} " in told.stdout
    for option in ("workers-per-trial", "search", "num-trials", "nexus.regret-gamma", "grn.epochs"):
        assert f"--{option} " in told.stdout


def test_bad_input_ends_with_a_message_and_code_2(tmp_path):
    told = command("sweeps/cam_geometry.py", "--smoke", "--data", tmp_path / "nosuch.npz", "--out", tmp_path)
    assert told.returncode == 2
    assert "nosuch.npz" in told.stderr and "Traceback" not in told.stderr


def test_every_trial_has_one_row_and_finished(tables):
    trials = tables["trials"]
    assert trials["trial"].is_unique and (trials["status"] == "done").all() and trials["error"].isna().all()
    assert set(trials["split.kind"]) == {"seen", "unseen"} and set(trials["seed"]) == {0, 1}
    nexus = trials[trials["kind"] == "nexus"]
    for _, cell in nexus.groupby(["split.kind", "seed"]):
        for _, loads in cell.groupby(cell["nexus.load"] > 0):
            assert set(zip(loads["nexus.buckets"], loads["nexus.slots"], strict=True)) == GEOMETRIES
    assert (trials["kind"] == "baselines").sum() == 4
    assert trials["trial"].str.fullmatch("[0-9a-f]{16}").all()
    assert (trials["seconds"] > 0).all() and (trials["max_rss_bytes"] > 0).all()
    assert {"provenance.code", "provenance.data_sha256"} <= set(trials.columns)


def test_diagnostics_are_those_of_each_memory(tables):
    nexus = tables["trials"].query("kind == 'nexus'")
    loaded = nexus[nexus["nexus.load"] > 0]
    assert (nexus["slots"] == nexus["nexus.slots"]).all()
    assert (loaded["load"] / loaded["nexus.load"]).between(0.5, 2).all() and len(loaded)
    full = nexus[nexus["nexus.load"] == 0]
    assert (full["buckets"] == full["nexus.buckets"]).all() and (full["collisions"] == 0).all()
    assert nexus["write_density"].between(0, 1).all() and (nexus["records_per_second"] > 0).all()


def test_tables_speak_of_the_same_trials(tables):
    trials = set(tables["trials"]["trial"])
    nexus = set(tables["trials"].query("kind == 'nexus'")["trial"])
    assert set(tables["scores"]["trial"]) == set(tables["records"]["trial"]) == trials
    assert set(tables["curves"]["trial"]) == nexus


def test_arms_are_judged_and_memory_off_is_the_base(tables):
    scores, records = tables["scores"], tables["records"]
    gains = scores.query("metric == 'program_mse_gain' and slice == 'all' and part == 'test'")
    assert {"gnn", "zero", "ridge", "lookup", "memory_off", "memory_shuffled", "memory_on"} <= set(gains["arm"])
    assert (gains[gains["arm"].isin(["gnn", "memory_off"])]["value"] == 0).all()
    off = records[records["arm"] == "memory_off"]
    assert (off["squared_error"] == off["reference_error"]).all() and len(off)
    on = records[(records["arm"] == "memory_on") & (records["part"] == "test")]
    mean = on.groupby("trial")[["squared_error", "reference_error"]].sum()
    expected = 1 - mean["squared_error"] / mean["reference_error"]
    told = gains[gains["arm"] == "memory_on"].set_index("trial")["value"]
    pd.testing.assert_series_equal(told.sort_index(), expected.sort_index(), check_names=False)


def test_trials_are_paired(tables):
    """All arms of a split and seed are judged on the same records against the same base."""
    test = tables["records"].query("part == 'test'")
    for _, cell in test.groupby(["split", "seed"], observed=True):
        assert (cell.groupby("record")["reference_error"].nunique() == 1).all()
        assert cell.groupby(["trial", "arm"], observed=True)["record"].agg(frozenset).nunique() == 1


def test_curves_run_to_the_last_epoch(tables):
    epochs = tables["trials"].query("kind == 'nexus'").set_index("trial")["nexus.epochs"]
    gain = tables["curves"].query("metric == 'validation_gain'").groupby("trial")["epoch"].agg(list)
    assert all(sorted(gain[trial]) == list(range(last + 1)) for trial, last in epochs.items())
    assert {"loss", "validation_gain", "write_density", "occupancy"} <= set(tables["curves"]["metric"])


def test_tensorboard_holds_every_trials_scalars(swept, tables):
    folder = swept[0] / "tensorboard"
    nexus = set(tables["trials"].query("kind == 'nexus'")["trial"])
    runs = {path.name.rpartition("_")[2]: path for path in folder.iterdir()}
    assert nexus <= runs.keys()
    metrics = ("loss", "validation_gain", "write_density", "gate_mean", "read_entropy", "occupancy", "evictions")
    for trial in nexus:
        events = EventAccumulator(str(runs[trial])).Reload()
        tags = set(events.Tags()["scalars"])
        assert {"final/test_gain", "epoch/records_per_second", *(f"epoch/{name}" for name in metrics)} <= tags
        assert events.Tags()["histograms"] and events.Tags()["images"] == ["memory/regulator_slots"]
        curve = tables["curves"].query("trial == @trial and metric == 'validation_gain'").sort_values("epoch")
        assert [event.value for event in events.Scalars("epoch/validation_gain")] == pytest.approx(list(curve["value"]))


def test_the_summary_says_where_everything_lies(swept):
    root, text = swept
    words = text.replace(",", " ").split()
    assert {"seen", "unseen", "memory_on", "memory_shuffled", "gnn", "ridge"} <= set(words)
    assert all(f"{buckets}x{slots}" in text for buckets, slots in GEOMETRIES)
    flat = text.replace("\n", "")
    assert str(root / "results") in flat and str(root / "tensorboard") in flat


def test_results_prints_the_tables_again(swept):
    told = command("-c", "import sys; from mantra_ray.cli import main; sys.exit(main())", "results", swept[0])
    assert told.returncode == 0, told.stderr
    rows = [line for line in told.stdout.splitlines() if line.startswith(("memory_on", "gnn", "ridge"))]
    assert len(rows) > 2 and all(line in swept[1] for line in rows)


def test_run_again_everything_is_skipped_and_nothing_changes(swept):
    root, text = swept
    files = sorted(root.glob("results/*/*.parquet"))
    before = [(path, path.stat().st_mtime_ns, path.read_bytes()) for path in files]
    again = sweep(root.parent)
    assert again.returncode == 0, again.stdout + again.stderr
    count = len(list((root / "results" / "trials").glob("*.parquet")))
    assert f"{count} of them finished before" in again.stdout
    assert [
        (path, path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(root.glob("results/*/*.parquet"))
    ] == before
    assert not list(root.glob("**/*.partial"))
    for line in text.splitlines():
        if line.startswith(("memory_on", "gnn", "ridge")):
            assert line in again.stdout


@pytest.mark.parametrize(
    ("recipe", "more", "said"),
    [("joint", ["--confirm", "1"], "chosen on validation, run again on 1 fresh seed"), ("ablation", [], "fifo")],
    ids=("joint", "ablation"),
)
def test_other_recipes_run_to_their_end(swept, tmp_path, recipe, more, said):
    shutil.copytree(swept[0] / "artifacts", tmp_path / recipe / "artifacts")  # networks that they have in common
    smoke = ["--smoke", "--seeds", "1", "--splits", "seen", *more, "--out", tmp_path]
    done = command(f"sweeps/{recipe}.py", *smoke)
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: so small a sweep may ring the alarm of its control
    trials = pd.read_parquet(tmp_path / recipe / "results" / "trials")
    assert (trials["status"] == "done").all() and len(trials) > 5
    assert said in done.stdout and "Traceback" not in done.stderr
