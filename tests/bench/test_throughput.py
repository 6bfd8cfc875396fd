"""The benchmark of the sweep's throughput: that all ways run the same trials, what it counts, and how it refuses."""

import io
import json

import pytest
from rich.console import Console

from mantra_ray.bench import throughput
from mantra_ray.bench.throughput import SEEDS, agree, by_sweep, by_tune, canned, gains, main, measure, show, sweep_of
from mantra_ray.errors import InputError
from mantra_ray.sweep import runner
from mantra_ray.sweep.options import SMOKE, Options
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.sweep.store import Store
from mantra_ray.training.stages import stage_key

READINGS = {f"read_{name}": 0.5 for name in ("finished", "trials", "records", "summary")}


def row(way, found, **changes):
    numbers = {"count": 6, "slots": 2, "wall": 20.0, "compute": 30.0, "share": 0.75, "overhead": 10 / 6}
    numbers |= {"overhead_running": None, "driver_bytes": 2**28, "bytes": 2**30, "failed": 0, "gains": found}
    return {"way": way} | numbers | READINGS | changes


@pytest.fixture
def folds(monkeypatch, planted):
    """One and the same fold in the place of those that are trained."""
    fold = planted()

    def make(screen, experiments, artifacts, *_):
        paths = {key: artifacts / f"{key}.npz" for key in {stage_key(e, screen.sha256) for e in experiments}}
        for path in paths.values():
            fold.save(path)
        return paths

    monkeypatch.setattr(runner, "make_folds", make)
    monkeypatch.setattr(throughput, "make_folds", make)
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # put back after what a way sets


@pytest.mark.slow
def test_a_sweep_and_tune_alone_run_the_same_trials(ray_session, folds, tmp_path):
    rows = [{"way": "sweep"} | by_sweep(6, SEEDS, SMOKE, tmp_path)]
    rows.append({"way": "tune-reused"} | by_tune(6, SEEDS, SMOKE, tmp_path, reuse=True))
    for found in rows:
        assert found["count"] == 6 and found["slots"] == 2 and found["failed"] == 0
        assert 0 < found["compute"] < 2 * found["wall"] and found["driver_bytes"] > 2**26
        assert len(found["gains"]) == 3  # those of the baselines have none
    assert agree(rows) and len(set(rows[0]["gains"])) > 1


@pytest.mark.slow
def test_canned_trials_leave_results_that_can_be_read(ray_session, folds, tmp_path):
    found = measure("canned", 12, True, tmp_path)
    store = Store(tmp_path / "sweep12" / "results")
    assert found["count"] == 12 == len(store.finished()) and found["failed"] == 0
    assert store.read("records").num_rows == 11 * 240 + 160
    assert all(found[name] > 0 for name in READINGS)
    overhead = (found["wall"] * found["slots"] - found["compute"]) / 12
    assert found["overhead"] == pytest.approx(overhead) and 0 <= found["overhead_running"] < overhead
    assert found["share"] == pytest.approx(found["compute"] / found["wall"] / found["slots"])


@pytest.mark.parametrize(("count", "seeds"), [(300, 3), (10, 1), (7, 3)])
def test_a_sweep_has_as_many_trials_as_asked_for(tmp_path, count, seeds):
    spec, options = sweep_of(count, seeds, Options(), tmp_path, "s")
    trials = spec.trials("data", "code")
    assert abs(len(trials) - count) < seeds and options.splits == ("seen",)
    assert len({trial.config.nexus.query_alpha for trial in trials if trial.kind == "nexus"}) == len(spec.arms)


def test_gains_are_those_of_the_memory_on_test(tmp_path):
    spec, _ = sweep_of(4, 1, SMOKE, tmp_path, "s")
    for trial in spec.trials("data", "code"):
        outcome = canned(TrialSpec.from_json(trial.to_json()), None)
        found = gains(outcome.scores)
        assert len(found) == (trial.kind == "nexus") and gains(canned(trial).scores) == found
        assert {len(column) for column in outcome.records.values()} == {240 if found else 160}


def test_ways_that_differ_are_told():
    same = [row("sweep", [0.1, 0.2]), row("tune", [0.1, 0.2]), row("canned", [0.7], starting=2.0)]
    assert agree(same) and agree([]) and not agree([same[0], row("tune", [0.1, 0.3])])
    assert not agree([same[0], row("tune", [0.1])])
    for rows, told in ((same, "same gains"), ([same[0], row("tune", [0.1])], "DIFFER")):
        output = io.StringIO()
        show(rows, Console(file=output, width=120))
        assert told in " ".join(output.getvalue().split())


def test_a_run_prints_tables_and_saves_its_rows(monkeypatch, tmp_path, capsys):
    rows = [row("sweep", [0.1], overhead_running=0.125), row("canned", [0.5], count=1000, starting=2.0)]
    monkeypatch.setattr(throughput, "run", lambda options, progress: iter(rows))
    out = tmp_path / "deep" / "rows.json"
    assert main(["--out", str(out)]) == 0 and json.loads(out.read_text()) == rows
    printed = capsys.readouterr().out
    assert "0.125" in printed and "75.0%" in printed and "1,000" in printed and "18.0" in printed
    rows[0]["failed"] = 1
    assert main([]) == 1


@pytest.mark.parametrize(
    ("args", "field"),
    [
        (["--real", "5"], "--real"),
        (["--real", "-1"], "--real"),
        (["--real", "0"], "--trials"),
        (["--trials", "1"], "--trials"),
        (["--folder", "/nowhere/at/all"], "--folder"),
        (["--out", "rows.csv"], "--out"),
    ],
)
def test_options_that_cannot_be_are_refused(args, field):
    with pytest.raises(InputError) as raised:
        main(args)
    assert raised.value.field == field
