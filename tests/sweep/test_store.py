import os

import numpy as np
import pyarrow.parquet as pq
import pytest

from mantra_ray import files
from mantra_ray.config import ExperimentConfig
from mantra_ray.fields import flatten, replace
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.sweep.store import Store

SCORE = {"arm": "memory_on", "split": "seen", "part": "test", "slice": "all", "metric": "program_mse"}
SCORE |= {"value": 0.5, "lower": 0.4, "upper": 0.6, "n": 4}
CURVE = {"epoch": 1, "metric": "loss", "value": 0.25}


def trial(seed=0):
    return TrialSpec("nexus", replace(ExperimentConfig(), seed=seed), "data", "code")


def test_rows_come_back(tmp_path, records):
    store, columns = Store(tmp_path), records({"memory_off": 1.0, "memory_on": 0.5})
    row = {"status": "done", "seconds": 1.5, "write_density": 0.3, "new_diagnostic": 2.0, "provenance.git_dirty": True}
    store.write(trial(), row, [SCORE], columns, [CURVE])
    (read,) = store.read("trials").to_pylist()
    assert read["trial"] == trial().id and read["seed"] == 0 and read["error"] is None
    assert {name: read[name] for name in row} == row
    for name, value in flatten(ExperimentConfig()).items():
        assert name in read and (isinstance(value, list) or read[name] == value)
    assert read["data.simulation.doses"] == "[0.3, 0.6, 0.95]"
    pairing = {"trial": trial().id, "kind": "nexus", "seed": 0}
    assert store.read("scores").to_pylist() == [pairing | SCORE]
    assert store.read("curves").to_pylist() == [pairing | CURVE]
    stored = store.read("records")
    assert set(stored["split"].to_pylist()) == {"seen"}
    for name, values in columns.items():
        np.testing.assert_array_equal(np.asarray(stored[name].to_pylist()), values.tolist())


def test_failed_trials_are_kept_but_not_finished(tmp_path):
    store = Store(tmp_path)
    store.write(trial(0), {"status": "failed", "error": "ValueError: no"})
    store.write(trial(1), {"status": "done"})
    assert store.finished() == {trial(1).id}
    store.write(trial(0), {"status": "done"})
    assert store.finished() == {trial(0).id, trial(1).id}
    assert store.read("trials").num_rows == 2


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
def test_trial_counts_only_when_all_tables_are_there(tmp_path, monkeypatch, fails_at):
    calls = []

    def replace_until(source, target):
        calls.append(target)
        if len(calls) == fails_at:
            raise OSError("disk full")
        os.rename(source, target)

    monkeypatch.setattr(files.os, "replace", replace_until)
    store = Store(tmp_path)
    with pytest.raises(OSError, match="disk full"):
        store.write(trial(), {"status": "done"}, [SCORE])
    assert store.finished() == set()
    assert store.read("trials").num_rows == 0


def test_files_of_a_table_share_one_schema(tmp_path, records):
    store = Store(tmp_path)
    store.write(trial(0), {"status": "failed", "error": "no"})
    store.write(trial(1), {"status": "done", "load": 0.5}, [SCORE], records({"memory_on": 1.0}), [CURVE])
    for table in ("trials", "scores", "records", "curves"):
        first, second = (pq.read_schema(path) for path in sorted((tmp_path / table).glob("*.parquet")))
        assert first.equals(second)


def test_empty_store(tmp_path):
    store = Store(tmp_path / "nothing")
    assert store.finished() == set()
    assert store.read("scores", columns=["arm", "value"]).to_pylist() == []
