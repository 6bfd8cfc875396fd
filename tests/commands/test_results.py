import json

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from mantra_ray.commands import results as command
from mantra_ray.config import ExperimentConfig
from mantra_ray.errors import InputError
from mantra_ray.sweep.frames import frame
from mantra_ray.sweep.spec import SweepSpec
from mantra_ray.sweep.store import Store

GAMMAS = (-2.0, 1.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two thresholds, two seeds and splits; the one of gamma 1 on seed 1 of `unseen` failed; one trial of old code."""
    folder = tmp_path_factory.mktemp("sweep")
    store = Store(folder / "results")
    arms = tuple({"nexus.regret_gamma": gamma} for gamma in GAMMAS)
    spec = SweepSpec("test", ExperimentConfig(), arms, (0, 1), ("seen", "unseen"))
    trials = spec.trials("data", "code")
    for trial in [*trials, spec.trials("data", "old")[1]]:
        gamma, split, seed = trial.config.nexus.regret_gamma, trial.config.split.kind, trial.config.seed
        if trial.kind == "nexus" and (gamma, split, seed) == (1.0, "unseen", 1):
            store.write(trial, {"status": "failed", "error": "Traceback\n  here\nValueError: slot [3] is empty\n"})
            continue
        share = 0.5 + 0.1 * seed if gamma == 1.0 else 0.9
        reference = np.arange(1.0, 7.0)
        records = {
            "arm": np.repeat("memory_on" if trial.kind == "nexus" else "mean", 6),
            "part": np.array(["validation"] * 2 + ["test"] * 4),
            "record": np.arange(6),
            "regulator": np.arange(6),
            "dose": np.full(6, 0.5, np.float32),
            "state": np.zeros(6, np.int64),
            "squared_error": share * reference,
            "reference_error": reference,
        }
        score = {"arm": "memory_on", "split": split, "part": "test", "slice": "all", "metric": "program_mse"}
        score |= {"value": share, "lower": 0.0, "upper": 1.0, "n": 4}
        curves = [{"epoch": epoch, "metric": "loss", "value": share / (1 + epoch)} for epoch in range(3)]
        store.write(trial, {"status": "done", "write_density": share}, [score], records, curves)
    (folder / "sweep.json").write_text(json.dumps({"trials": [trial.id for trial in trials], "timing": None}))
    return folder


def test_the_folder_alone_prints_the_tables_of_the_sweep(root, capsys):
    assert command.main([str(root)]) == 0
    out = capsys.readouterr().out
    assert "Gain over the GNN" in out and "11 trials finished, 1 failed." in out


def test_rows_as_csv_and_parquet(root, tmp_path, capsys):
    csv, parquet = tmp_path / "rows.csv", tmp_path / "rows.parquet"
    arguments = [
        str(root),
        "--table",
        "records",
        "--where",
        "split=seen",
        "kind=nexus",
        "record>=4",
        "nexus.regret_gamma=1",
    ]
    assert command.main([*arguments, "--csv", str(csv), "--parquet", str(parquet)]) == 0
    assert "4 rows written to" in " ".join(capsys.readouterr().out.split())
    rows = pq.read_table(parquet)
    assert sorted(zip(rows["seed"].to_pylist(), rows["record"].to_pylist(), strict=True)) == [
        (0, 4),
        (0, 5),
        (1, 4),
        (1, 5),
    ]
    assert set(rows["split"].to_pylist()) == {"seen"}
    text = pyarrow.csv.read_csv(csv)
    assert (
        text.column_names == rows.column_names
        and text["squared_error"].to_pylist() == rows["squared_error"].to_pylist()
    )


def test_curves_with_settings_in_one_frame(root):
    store = Store(root / "results")
    trials = json.loads((root / "sweep.json").read_text())["trials"]
    rows = frame(store, "curves", trials, ["kind=nexus"], beside=["nexus.regret_gamma", "split.kind"]).to_pylist()
    assert len(rows) == 7 * 3
    for row in rows:
        share = 0.5 + 0.1 * row["seed"] if row["nexus.regret_gamma"] == 1.0 else 0.9
        assert row["value"] == pytest.approx(share / (1 + row["epoch"])) and row["split.kind"] in ("seen", "unseen")
    chosen = frame(store, "curves", trials, ["kind=nexus", "epoch=2", "split!=seen"], ["value", "seed"])
    assert chosen.column_names == ["value", "seed"] and chosen.num_rows == 3


def test_trials_of_earlier_commands_only_when_asked(root):
    store = Store(root / "results")
    trials = json.loads((root / "sweep.json").read_text())["trials"]
    assert [frame(store, "trials", which).num_rows for which in (trials, None)] == [12, 13]


def test_configurations_pool_seeds(root):
    store = Store(root / "results")
    trials = json.loads((root / "sweep.json").read_text())["trials"]
    rows = {(r["split"], r["nexus.regret_gamma"]): r for r in frame(store, "configurations", trials).to_pylist()}
    assert set(rows) == {(split, gamma) for split in ("seen", "unseen") for gamma in GAMMAS}
    best = rows["seen", 1.0]
    assert best["seeds"] == 2 and best["records"] == 8 and best["test_gain"] == pytest.approx(0.45)
    assert best["write_density"] == pytest.approx(0.55) and rows["unseen", 1.0]["seeds"] == 1
    only = frame(store, "configurations", trials, ["split=seen", "nexus.regret_gamma=1"]).to_pylist()
    assert [(row["split"], row["test_gain"]) for row in only] == [("seen", best["test_gain"])]
    assert frame(store, "configurations", trials, ["seed=5"]).num_rows == 0


def test_tables_are_printed_whole(root, capsys):
    assert command.main([str(root), "--table", "trials", "--where", "status=done", "--limit", "2"]) == 0
    out = capsys.readouterr().out
    assert "2 of 11 rows" in out and "nexus.regret_gamma" in out.splitlines()[0] and "…" not in out
    assert command.main([str(root), "--where", "split=seen"]) == 0
    assert "test_gain" in capsys.readouterr().out


def test_errors_of_failed_trials(root, capsys):
    assert command.main([str(root), "--failed"]) == 0
    out = capsys.readouterr().out
    assert "1 failed: ValueError: slot [3] is empty" in out and "Traceback" in out
    assert "seed 1, split.kind unseen" in out and "nexus.regret_gamma 1.0" in out
    assert command.main([str(root), "--failed", "--where", "split=seen"]) == 0
    assert "No trial failed." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--where", "nexus.buckts=512"], "did you mean nexus.buckets"),
        (["--table", "scores", "--where", "nothing=1"], "no such column"),
        (["--table", "scores", "--columns", "vale"], "did you mean value"),
        (["--table", "curves", "--with", "regret_gamma"], "did you mean nexus.regret_gamma"),
        (["--table", "trials", "--with", "seed"], "has its trials' columns"),
        (["--table", "scores", "--where", "value=high"], "is no value of the column value"),
        (["--table", "scores", "--where", "value"], "must be NAME=VALUE"),
        (["--limit", "0"], "must be at least 1"),
        (["--csv", "FOLDER/sweep.json/rows.csv"], "is no folder"),
    ],
)
def test_bad_input(root, arguments, told):
    with pytest.raises(InputError, match=told):
        command.main([str(root), *(text.replace("FOLDER", str(root)) for text in arguments)])


def test_no_sweep(tmp_path):
    for address in (str(tmp_path), "memory://nowhere/at/all"):
        with pytest.raises(InputError, match=r"sweep\.json"):
            command.main([address])
    (tmp_path / "sweep.json").write_text("[]")
    with pytest.raises(InputError, match="does not list the trials"):
        command.main([str(tmp_path)])
