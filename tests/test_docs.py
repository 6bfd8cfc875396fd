"""What docs/results.md shows runs on a small sweep, and names every column there is."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mantra_ray.config import ExperimentConfig
from mantra_ray.fields import flatten
from mantra_ray.provenance import provenance
from mantra_ray.sweep.compact import compact
from mantra_ray.sweep.schema import SCHEMAS
from mantra_ray.sweep.spec import SweepSpec
from mantra_ray.sweep.store import Store

TEXT = (Path(__file__).parent.parent / "docs" / "results.md").read_text()
GAMMAS = (-2.0, 1.0)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module", params=["loose", "compact"])
def sweep(request, tmp_path_factory):
    """The folder above `runs`: two thresholds on two seeds and splits; gamma 1 gains most, on `seen`; one failed."""
    folder = tmp_path_factory.mktemp(request.param)
    root = folder / "runs" / "cam_geometry"
    store = Store(root / "results")
    arms = tuple({"nexus.regret_gamma": gamma} for gamma in GAMMAS)
    trials = SweepSpec("cam_geometry", ExperimentConfig(), arms, (0, 1), ("seen", "unseen")).trials("data", "code")
    for trial in trials:
        gamma, split, seed = trial.config.nexus.regret_gamma, trial.config.split.kind, trial.config.seed
        if trial.kind == "baselines" and (split, seed) == ("unseen", 1):
            store.write(trial, {"status": "failed", "error": "Traceback\nValueError: slot [3] is empty\n"})
            continue
        gain = 0.3 if (gamma, split) == (1.0, "seen") else 0.1
        scores = [
            {"arm": arm, "split": split, "part": part, "slice": "all", "metric": "program_mse_gain"}
            | {"value": (gain + 0.01 * seed) * (arm == "memory_on"), "lower": 0.0, "upper": 1.0, "n": 2}
            for arm in ("memory_off", "memory_on")
            for part in ("validation", "test")
        ]
        records = {
            "arm": np.repeat(["memory_off", "memory_on"], 2),
            "part": np.repeat("test", 4),
            "record": np.tile([4, 5], 2),
            "regulator": np.tile([0, 1], 2),
            "dose": np.full(4, 0.5, np.float32),
            "state": np.zeros(4, np.int64),
            "squared_error": np.array([1.0, 1.0, 1.0 - gain, 1.0]),
            "reference_error": np.ones(4),
        }
        curves = [{"epoch": epoch, "metric": "loss", "value": 1.0 / (1 + epoch + seed)} for epoch in range(2)]
        row = {"status": "done", "seconds": 1.0, "write_density": 0.5}
        if trial.kind == "nexus":
            store.write(trial, row | {"training_seconds": 1.0}, scores, records, curves)
        else:
            store.write(trial, row)
    other = SweepSpec("old", ExperimentConfig(), ({"nexus.regret_gamma": 5.0},), (0,), ("seen",)).trials("data", "old")
    store.write(other[-1], {"status": "done"})  # of an earlier code version
    (root / "sweep.json").write_text(json.dumps({"trials": [trial.id for trial in trials], "timing": None}))
    if request.param == "compact":
        compact(store)
    return folder


def test_sql_answers_what_it_says(sweep, monkeypatch):
    duckdb = pytest.importorskip("duckdb")
    monkeypatch.chdir(sweep)
    views, best, by_gamma, failed, curves, helped = blocks("sql")
    with duckdb.connect() as connection:
        connection.execute(views)

        def rows(query):
            found = connection.execute(query)
            names = [column[0] for column in found.description]
            return [dict(zip(names, values, strict=True)) for values in found.fetchall()]

        chosen = {row["split"]: row for row in rows(best)}
        assert chosen["seen"]["gamma"] == 1.0 and chosen["seen"]["seeds"] == 2
        assert chosen["seen"]["test_gain"] == pytest.approx(0.305)
        gains = {(row["split"], row["gamma"]): row for row in rows(by_gamma)}
        assert set(gains) == {(split, gamma) for split in ("seen", "unseen") for gamma in GAMMAS}  # not gamma 5
        assert gains["seen", -2.0]["gain"] == pytest.approx(0.105) and gains["seen", -2.0]["trials"] == 2
        assert gains["seen", -2.0]["spread"] == pytest.approx(0.01 / 2**0.5)
        (row,) = rows(failed)
        assert (row["error"], row["split"], row["seed"]) == ("ValueError: slot [3] is empty", "unseen", 1)
        assert [(row["epoch"], row["mean"]) for row in rows(curves)] == [
            (0, pytest.approx((1 + 1 / 2) / 2)),
            (1, pytest.approx((1 / 2 + 1 / 3) / 2)),
        ]
        top = rows(helped)[0]
        assert (top["regulator"], top["gamma"]) == (0, 1.0) and top["error_saved"] == pytest.approx((0.3 + 0.1) / 2)


def test_python_runs(sweep, monkeypatch, capsys):
    monkeypatch.chdir(sweep)
    pandas, arrow, store = blocks("python")
    exec(pandas, {})
    assert "0.305" in capsys.readouterr().out
    exec(arrow, {})
    assert capsys.readouterr().out.split() == ["16"]
    exec(store, {})
    assert "failed" in capsys.readouterr().out


def test_every_column_is_explained():
    named = set(re.findall(r"`([\w.]+)`", TEXT))
    columns = {name for schema in SCHEMAS.values() for name in schema.names} - flatten(ExperimentConfig()).keys()
    assert not (columns | {f"provenance.{name}" for name in provenance()}) - named
    sections = {name.partition(".")[0] for name in flatten(ExperimentConfig()) if "." in name}
    assert all(f"`{section}.*`" in TEXT for section in sections)
