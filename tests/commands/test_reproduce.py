import json
import math
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.commands import reproduce as command
from mantra_ray.config import ExperimentConfig
from mantra_ray.errors import InputError
from mantra_ray.fields import flatten, replace
from mantra_ray.provenance import provenance
from mantra_ray.sweep.restore import compare, config_of
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.trial import run_trial
from mantra_ray.training.stages import files, stage_key

TINY = {"nexus.d_model": 16, "nexus.layers": 1, "nexus.heads": 2, "nexus.epochs": 1, "evaluation.bootstrap": 20}


@pytest.fixture
def sweep(tmp_path, planted, monkeypatch):
    """A sweep of one trial that really ran here, and its id; data and fold stand in for those of a screen."""
    code = command.code_version(*command.CODE)
    config = replace(ExperimentConfig(seed=3), **TINY)
    spec = TrialSpec("nexus", config, "data", code)
    path = files(tmp_path / "artifacts", stage_key(config, "data"))[0]
    fold = planted()
    fold.save(path)
    outcome = run_trial(spec, fold, path.parent)
    origin = provenance() | {"code": code, "data_sha256": "data"}
    row = {"status": "done", "seconds": 1.0} | {f"provenance.{name}": value for name, value in origin.items()}
    Store(tmp_path / "results").write(spec, row, outcome.scores, outcome.records, outcome.curves)
    (tmp_path / "sweep.json").write_text(json.dumps({"trials": [spec.id], "timing": None}))
    screen = SimpleNamespace(sha256="data", data=SimpleNamespace(delta_expression=None))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the command sets it: put back afterwards
    monkeypatch.setattr(command, "load_screen", lambda config: screen)
    monkeypatch.setattr(command, "with_controls", lambda screen, configs: screen)
    return SimpleNamespace(root=tmp_path, spec=spec, row=row, outcome=outcome, screen=screen)


def test_the_same_bits(sweep, capsys):
    assert command.main([str(sweep.root), sweep.spec.id[:6], "--tolerance", "0"]) == 0
    out = capsys.readouterr().out
    assert out.count("equal bit for bit") == 2 and "Reproduced." in out and "Note" not in out


def test_another_number_is_found(sweep, capsys):
    records = dict(sweep.outcome.records)
    records["squared_error"] = records["squared_error"].copy()
    records["squared_error"][5] *= 1 + 1e-3
    Store(sweep.root / "results").write(sweep.spec, sweep.row, sweep.outcome.scores, records)
    assert command.main([str(sweep.root), sweep.spec.id]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "records: 1 of" in out and "as a share 0.000999" in out and "Not reproduced within 1e-06." in out
    assert command.main([str(sweep.root), sweep.spec.id, "--tolerance", "0.01"]) == 0


def test_another_origin_is_told(sweep, capsys, planted):
    other = TrialSpec("nexus", sweep.spec.config, "other data", "other code")
    row = sweep.row | {f"provenance.{name}": "other" for name in ("torch", "device", "commit", "data_sha256", "code")}
    row |= {"provenance.data_sha256": "other data", "provenance.code": "other code"}
    Store(sweep.root / "results").write(other, row, sweep.outcome.scores, sweep.outcome.records)
    assert command.main([str(sweep.root), other.id]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for told in ("the data are others now", "the code is another now", "torch is", "device is", "(other"):
        assert told in out


def test_trials_that_cannot_be_compared(sweep):
    failed = TrialSpec("nexus", replace(sweep.spec.config, seed=9), "data", "code")
    Store(sweep.root / "results").write(failed, {"status": "failed", "error": "no"})
    for trial, told in ((failed.id, "is failed"), ("zz", "begins so"), ("", "must be the beginning")):
        with pytest.raises(InputError, match=told):
            command.main([str(sweep.root), trial])


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(allow_nan=False),
    st.sampled_from(["pss", "fifo"]),
    st.booleans(),
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4),
    st.text(max_size=10),
)
def test_a_configuration_comes_whole_out_of_its_row(tmp_path_factory, seed, gamma, eviction, calibrate, doses, name):
    config = replace(
        ExperimentConfig(seed=seed),
        **{"nexus.regret_gamma": gamma, "nexus.eviction": eviction, "grn.calibrate": calibrate},
        **{"data.simulation.doses": tuple(doses), "data.traits": (f"{name}=x.csv",), "data.data": name},
    )
    store, spec = Store(tmp_path_factory.mktemp("row")), TrialSpec("nexus", config, "data", "code")
    store.write(spec, {"status": "done"})
    (row,) = store.read("trials").to_pylist()
    assert flatten(config_of(row)) == flatten(config)
    assert TrialSpec("nexus", config_of(row), "data", "code").id == row["trial"]


def test_differences():
    def table(keys, values):
        return pa.table({"key": keys, "value": pa.array(values, pa.float64())})

    found = compare(
        table(["a", "b", "c"], [1.0, None, 2.0]), table(["c", "a", "b"], [2.2, 1.0, math.nan]), ["key"], ["value"]
    )
    assert (found.compared, found.different, found.where) == (3, 1, "c value")
    assert found.absolute == pytest.approx(0.2) and found.relative == pytest.approx(0.1)
    assert found.within(0.11) and not found.within(0.09) and not found.equal
    found = compare(table(["a", "b"], [1.0, 2.0]), table(["a"], [1.0]), ["key"], ["value"])
    assert found.missing == 1 and not found.within(np.inf) and not found.equal
    found = compare(table(["a"], [1.0]), table(["a"], [None]), ["key"], ["value"])
    assert not found.within(1e9)
    found = compare(table(["a"], [0.0]), table(["a"], [-0.0]), ["key"], ["value"])
    assert found.different == 1 and found.within(0.0)
