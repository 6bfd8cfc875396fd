import io
import os
import resource
import time
from dataclasses import replace

import pytest
import ray
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mantra_ray.errors import InputError
from mantra_ray.sweep import cluster, runner
from mantra_ray.sweep.description import Timing
from mantra_ray.sweep.options import SMOKE, Options
from mantra_ray.sweep.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]
ARMS = [{"nexus.regret_gamma": gamma} for gamma in (0.0, 1.0)]
OPTIONS = {"seeds": 2, "splits": ("seen",)}
ALONE = {"cpus_per_trial": 2.0}  # one trial after another, where it does not matter: a second actor takes long to start


@pytest.fixture
def sweep(tmp_path, monkeypatch, screen, make_folds, records):
    """Runs a sweep of two arms and two seeds whose trials do `act(spec)` first."""
    monkeypatch.setattr(runner, "load_screen", lambda config: screen)
    monkeypatch.setattr(runner, "make_folds", make_folds)
    monkeypatch.setattr(runner, "code_version", lambda *parts: "code")
    columns = records({"memory_on": 0.5})

    def go(act=lambda spec: None, **changes):
        def run(spec, fold, bench, on_epoch, keeper):
            from mantra_ray.sweep.trial import TrialOutcome

            act(spec)
            assert ray.get(fold.reference).programs == 6
            on_epoch(0, {"loss": 1.0})
            return TrialOutcome({"write_density": 0.5}, [], columns, [{"epoch": 0, "metric": "loss", "value": 1.0}])

        output = io.StringIO()
        options = Options(out=str(tmp_path), **OPTIONS | changes)
        code = runner.run_sweep(options.sweep("test", ARMS), options, Console(file=output, width=120), run)
        return code, output.getvalue()

    return go


def test_sweep_runs_and_finished_trials_are_skipped(sweep, tmp_path):
    code, text = sweep()
    store = Store(tmp_path / "test" / "results")
    trials = store.read("trials").to_pylist()
    assert code == 0 and "6 trials finished, 0 failed" in text and "no traits given" in text
    assert sorted(row["kind"] for row in trials) == ["baselines"] * 2 + ["nexus"] * 4
    assert all(row["status"] == "done" and row["seconds"] > 0 and row["max_rss_bytes"] > 1e6 for row in trials)
    assert {row["provenance.data_sha256"] for row in trials} == {"data"}
    assert store.read("records").num_rows == 36 and store.read("curves").num_rows == 6
    kinds = [r["kind"] if r["kind"] == "baselines" else f"gamma={r['nexus.regret_gamma']:g}" for r in trials]
    runs = {f"seen_s{row['seed']}_{kind}_{row['trial']}" for row, kind in zip(trials, kinds, strict=True)}
    assert {path.name for path in (tmp_path / "test" / "tensorboard").iterdir()} == runs | {"columns"}
    assert not list((tmp_path / "test" / ".tune").iterdir())

    def never(spec):
        raise AssertionError("ran again")

    code, text = sweep(never)
    assert code == 0 and "6 of them finished before" in text
    assert store.read("trials").to_pylist() == trials
    bucket = f"memory://{tmp_path.name}"
    code, text = sweep(never, copy_to=bucket)
    assert code == 0 and "24 files of rows copied to memory" in text  # 6 trials of 4 tables
    assert Store(f"{bucket}/test/results").read("records").equals(store.read("records"))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--copy-to"):
        sweep(never, copy_to=str(tmp_path / "file"))


def test_failed_trials_have_rows_and_are_retried(sweep, tmp_path):
    def fail(spec):
        if spec.config.nexus.regret_gamma == 1.0:
            raise ValueError("no gate today")
        if spec.kind == "baselines" and spec.config.seed == 1:
            os._exit(3)  # the process dies, as when memory runs out

    code, text = sweep(fail, **ALONE)
    store = Store(tmp_path / "test" / "results")
    rows = store.read("trials").to_pylist()
    failed = [row for row in rows if row["status"] == "failed"]
    assert code == 1 and "3 trials finished, 3 failed" in text and "no gate today" in text
    assert [row["kind"] for row in rows if row["status"] == "done"].count("nexus") == 2
    assert sum("ValueError: no gate today" in row["error"] for row in failed) == 2
    assert [row["kind"] for row in failed if "outside the trial" in row["error"]] == ["baselines"]
    code, text = sweep(**ALONE)
    assert code == 0 and "3 of them finished before" in text and len(store.finished()) == 6


def test_states_of_trials_that_failed_stay_and_those_of_others_go(sweep, tmp_path):
    states = tmp_path / "test" / "states"
    states.mkdir(parents=True)

    def act(spec):
        (states / f"{spec.id}.pt").touch()
        if spec.config.nexus.regret_gamma == 1.0:
            raise ValueError("no gate today")

    for name, age in (("0" * 16, 0), ("1" * 16, 8 * 86_400)):  # of other settings: a week is waited
        (states / f"{name}.pt").touch()
        os.utime(states / f"{name}.pt", (0, time.time() - age))
    assert sweep(act, **ALONE)[0] == 1
    rows = Store(tmp_path / "test" / "results").read("trials").to_pylist()
    failed = {row["trial"] for row in rows if row["status"] == "failed"}
    assert len(failed) == 2 and {path.stem for path in states.iterdir()} == failed | {"0" * 16}
    done = next(row["trial"] for row in rows if row["status"] == "done")
    (states / f"{done}.pt").touch()  # its process was killed when its row was just written
    assert sweep(**ALONE)[0] == 0 and [path.stem for path in states.iterdir()] == ["0" * 16]


def test_a_trial_whose_process_died_once_runs_again(sweep, tmp_path):
    def die_once(spec):
        if spec.config.nexus.regret_gamma == 1.0 and not (tmp_path / f"{spec.id}.died").exists():
            (tmp_path / f"{spec.id}.died").touch()
            os.kill(os.getpid(), 9)

    code, text = sweep(die_once, **ALONE)
    assert len(list(tmp_path.glob("*.died"))) == 2
    assert code == 0 and "6 trials finished, 0 failed" in text
    assert Store(tmp_path / "test" / "results").read("curves").num_rows == 6


def test_a_trial_that_hangs_is_ended_and_says_where(sweep, tmp_path):
    def hang(spec):
        while spec.config.nexus.regret_gamma == 1.0 and spec.config.seed == 1:
            time.sleep(60)

    code, text = sweep(hang, trial_timeout=5.0, **ALONE)
    rows = Store(tmp_path / "test" / "results").read("trials").to_pylist()
    (failed,) = (row for row in rows if row["status"] == "failed")
    assert code == 1 and "5 trials finished, 1 failed" in text
    assert "longer than 5 s (--trial-timeout)" in failed["error"] and "in hang" in failed["error"]


def test_retry_failed_runs_the_failed_trials_alone(sweep, tmp_path):
    def fail(spec):
        if spec.config.nexus.regret_gamma == 1.0:
            raise ValueError("no gate today")

    sweep(fail, **ALONE)
    store = Store(tmp_path / "test" / "results")
    (done,) = (row["trial"] for row in store.read("trials").to_pylist() if row["kind"] == "baselines" if row["seed"])
    for table in ("trials", "scores", "records", "curves"):
        (tmp_path / "test" / "results" / table / f"{done}.parquet").unlink()
    code, _ = sweep(retry_failed=True, **ALONE)
    assert code == 1 and len(store.finished()) == 5 and done not in store.finished()
    assert sweep(**ALONE)[0] == 0 and len(store.finished()) == 6


def test_rows_that_cannot_be_written_end_the_sweep_with_a_word(sweep, tmp_path):
    def fill(spec):  # as a disk does that is full: nothing can be written any more
        if spec.config.nexus.regret_gamma == 1.0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))

    with pytest.raises(InputError, match="rows could not be written"):
        sweep(fill, **ALONE)
    assert not list(tmp_path.rglob("*.partial"))
    assert sweep(**ALONE)[0] == 0


def test_splits_that_the_data_cannot_give_are_refused_before_anything_is_made(sweep, tmp_path):
    for changes, told in (({"splits": ("context",)}, "two states"), ({"test_fraction": 2.0}, "test_fraction")):
        with pytest.raises(InputError, match=told):
            sweep(**changes)
    assert not list(tmp_path.iterdir())


def test_stopped_sweep_says_how_to_go_on(sweep, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "tune_trials", stop)
    code, text = sweep()
    assert code == 130 and "same command again" in text


def test_a_trial_that_cannot_fit_is_refused(sweep):
    with pytest.raises(InputError, match=r"--cpus-per-trial.*needs 6 CPUs"):
        sweep(workers_per_trial=2, cpus_per_trial=3.0)
    with pytest.raises(InputError, match="--gpus-per-trial"):
        sweep(gpus_per_trial=1000.0)


def test_two_workers_on_a_trial_find_what_one_finds(tmp_path, monkeypatch, screen, make_folds):
    monkeypatch.setattr(runner, "load_screen", lambda config: screen)
    monkeypatch.setattr(runner, "make_folds", make_folds)
    nexus = replace(SMOKE.nexus, batch=25, buckets=4, slots=8)
    options = replace(SMOKE, seeds=1, splits=("seen",), nexus=nexus)
    tables = []
    for workers in (1, 2):
        here = replace(options, out=str(tmp_path / str(workers)), workers_per_trial=workers)
        output = io.StringIO()
        assert runner.run_sweep(here.sweep("test", [{}]), here, Console(file=output)) == 0, output.getvalue()
        store = Store(tmp_path / str(workers) / "test" / "results")
        keys = {"scores": ("trial", "arm", "part", "slice", "metric"), "curves": ("trial", "epoch", "metric")}
        tables.append({})
        for name, key in keys.items():
            tables[-1] |= {tuple(row[k] for k in key): row["value"] for row in store.read(name).to_pylist()}
    one, two = tables
    assert one.keys() == two.keys() and any("loss" in key for key in one) and any("memory_on" in key for key in one)
    assert [two[key] for key in one] == pytest.approx(list(one.values()), abs=1e-4, nan_ok=True)
    events = [EventAccumulator(str(path)).Reload() for path in (tmp_path / "2").rglob("events*")]
    assert any("epoch/loss" in event.Tags()["scalars"] for event in events)


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "expected"), [(1, 1.0, 0.0, 8), (3, 1.0, 0.0, 2), (1, 0.1, 0.25, 4), (2, 0.5, 0.5, 1)]
)
def test_slots_count_all_workers(workers, cpus, gpus, expected):
    options = Options(workers_per_trial=workers, cpus_per_trial=cpus, gpus_per_trial=gpus)
    assert cluster.slots(options, {"CPU": 8.0, "GPU": 1.0}) == expected


def test_overhead_is_what_slots_did_beside_computing():
    timing = Timing(total=30, stages=5, trials=20, starting=4, compute=30, count=5, slots=2)
    assert timing.overhead(starting=True) == (40 - 30) / 5
    assert timing.overhead(starting=False) == (32 - 30) / 5
