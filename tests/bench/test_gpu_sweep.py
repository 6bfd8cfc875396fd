"""The benchmark of a sweep on several GPUs: what it counts, and a tiny sweep on as many cores."""

import math
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mantra_ray.bench import gpu_sweep
from mantra_ray.bench.gpu_sweep import QUICK_SEEDS, QUICK_TRIALS, pace, seeing, sweep_folder, sweep_scaling, swept
from mantra_ray.bench.throughput import sweep_of
from mantra_ray.data.catalog import load_screen
from mantra_ray.sweep.options import SMOKE
from mantra_ray.training import stages
from mantra_ray.training.distributed import save_unit, train_unit

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def trials(starts, length):
    """Trials of processes that are given by the seconds at which their trials start."""
    lines = [(name, start) for name, own in starts.items() for start in own]
    return [(name, NOON + timedelta(seconds=s), NOON + timedelta(seconds=s + length)) for name, s in lines]


def test_the_pace_is_that_of_processes_past_their_first_trial():
    slow = [("a", NOON, NOON + timedelta(seconds=10)), ("b", NOON, NOON + timedelta(seconds=12))]
    found = pace(slow + trials({"a": [10, 12, 14, 16, 18], "b": [12, 14, 16]}, 2.0))
    assert (found["processes"], found["first_seconds"], found["later_seconds"]) == (2, 11.0, 2.0)
    # from second 12 on, when b is warm, to 18, when it is out of trials: a and b end three each
    assert found["counted"] == 6 and found["trials_per_hour"] == pytest.approx(3600 * 6 / 6)


@given(st.integers(1, 8), st.integers(2, 30), st.floats(0.5, 5.0), st.floats(0.0, 40.0))
def test_even_trials_have_the_pace_of_their_length(processes, each, length, first):
    rows = [(str(i), NOON, NOON + timedelta(seconds=first)) for i in range(processes)]
    rows += trials({str(i): [first + length * k for k in range(each)] for i in range(processes)}, length)
    found = pace(rows)
    assert found["counted"] == processes * each
    assert found["trials_per_hour"] == pytest.approx(3600 * processes / length, rel=1e-3)


def test_without_a_time_when_all_are_at_work_there_is_no_pace():
    found = pace(trials({"a": [0, 2], "b": [3]}, 2.0))
    assert found["counted"] == 0 and math.isnan(found["trials_per_hour"])


@pytest.mark.slow
def test_the_sweep_runs_on_as_many_cores_as_there_are(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_sweep.torch.cuda, "device_count", lambda: 0)
    for name, value in seeing(1, False).items():
        monkeypatch.setenv(name, value)
    # in this process: Ray Train takes ten times as long to start its workers
    monkeypatch.setattr(stages, "run_units", lambda records, units, *_: [
        save_unit(unit, train_unit(records, unit)) for unit in units
    ])  # fmt: skip
    row = swept(tmp_path, quick=True)
    assert (row["slots"], row["failed"], row["processes"]) == (1, 0, 1) and row["trials"] == QUICK_TRIALS
    assert row["counted"] == QUICK_TRIALS - 2 and row["trials_per_hour"] > 0
    assert 0 < row["slots_busy"] <= 1


def test_the_second_sweep_finds_the_networks_of_the_first(monkeypatch):
    class Process(nullcontext):
        """In the place of a process."""

        def __init__(self, workers, context, begin, arguments):
            super().__init__(self)
            (self.environment,) = arguments

        def submit(self, work, folder, quick):
            network, self.count = sweep_folder(folder, quick) / "artifacts" / "fold.npz", int(folder.name)
            assert network.exists() == (self.count == 2) and f'"CPU": {self.count}' in str(self.environment)
            assert self.environment["TRITON_CACHE_DIR"].endswith(f"{self.count}.triton")
            network.parent.mkdir(parents=True, exist_ok=True)
            network.touch()
            return self

        def result(self):
            return {"trials_per_hour": 100.0 * self.count, "whole_trials_per_hour": 100.0 * self.count**0.5}

    monkeypatch.setattr(gpu_sweep.torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(gpu_sweep, "ProcessPoolExecutor", Process)
    one, two = sweep_scaling(2, quick=True)
    assert (one["speed_up"], one["whole_speed_up"]) == (1.0, 1.0)
    assert [(row["device"], row["devices"]) for row in (one, two)] == [("cpu", 1), ("cpu", 2)]
    assert (two["speed_up"], two["whole_speed_up"]) == (2.0, pytest.approx(2**0.5))


def test_processes_see_no_more_gpus_than_they_may(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [seeing(count, True)["CUDA_VISIBLE_DEVICES"] for count in (1, 2)] == ["3", "3,5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [seeing(count, True)["CUDA_VISIBLE_DEVICES"] for count in (1, 2)] == ["0", "0,1"]
    assert seeing(2, False)["CUDA_VISIBLE_DEVICES"] == ""


def test_the_quick_sweep_is_of_one_network(tmp_path):
    spec, _ = sweep_of(QUICK_TRIALS, QUICK_SEEDS, SMOKE, tmp_path, "quick")
    screen = load_screen(spec.base.data)
    planned = spec.trials(screen.sha256, "")
    assert len(planned) == QUICK_TRIALS and len({stages.stage_key(t.config, t.data_sha256) for t in planned}) == 1
