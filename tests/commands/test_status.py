import json
import os
import time
from datetime import UTC, datetime, timedelta

import pytest

from mantra_ray.commands import status as command
from mantra_ray.config import ExperimentConfig
from mantra_ray.fields import replace
from mantra_ray.sweep.rowfiles import DamagedFile
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.sweep.store import Store

BEGIN = datetime(2030, 1, 1, tzinfo=UTC)


def trial(seed):
    return TrialSpec("nexus", replace(ExperimentConfig(), seed=seed), "data", "code")


@pytest.fixture
def sweep(tmp_path):
    """Ten trials: four done (two side by side, 10 s each), two failed, one pruned, one begun, two not."""
    store = Store(tmp_path / "results")
    for seed in range(4):
        started = BEGIN + timedelta(seconds=10 * (seed // 2))
        ended = started + timedelta(seconds=10)
        store.write(trial(seed), {"status": "done", "seconds": 10.0, "started": started, "ended": ended})
    first, last = (BEGIN + timedelta(seconds=s) for s in (5, 9))
    store.write(trial(4), {"status": "failed", "error": "Trace\nOSError: late", "started": first, "ended": last})
    store.write(trial(5), {"status": "failed", "error": "outside the trial: it died"})
    store.write(trial(6), {"status": "pruned"})
    board = tmp_path / "tensorboard" / trial(7).id
    board.mkdir(parents=True)
    (board / "events.out.tfevents.1").write_text("")
    os.utime(board / "events.out.tfevents.1", (time.time() - 90, time.time() - 90))
    ids = [trial(seed).id for seed in range(10)]
    (tmp_path / "sweep.json").write_text(json.dumps({"trials": ids, "timing": None}))
    return tmp_path


def test_counts_pace_and_last_error(sweep, capsys):
    assert command.main([str(sweep)]) == 0
    out = capsys.readouterr().out
    assert "4 done, 2 failed, 1 pruned, 3 missing of 10" in " ".join(out.split())
    assert "1 begun" in out and f"last error, of {trial(4).id}: OSError: late" in out
    # five trials ended in 20 s: 4 s each, and three wait
    assert "about 0:12 left" in out


def test_damaged_files_are_counted_apart(sweep, capsys):
    path = sweep / "results" / "records" / f"{trial(0).id}.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(DamagedFile):
        assert command.main([str(sweep)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "3 done" in out and "1 damaged" in out and "about 0:16 left" in out


def test_a_sweep_that_ended(tmp_path, capsys):
    Store(tmp_path / "results").write(trial(0), {"status": "done", "started": BEGIN, "ended": BEGIN})
    (tmp_path / "sweep.json").write_text(json.dumps({"trials": [trial(0).id], "timing": None}))
    assert command.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "1 done" in out and "left" not in out and "error" not in out and "begun" not in out


def test_before_the_first_row(tmp_path, capsys):
    (tmp_path / "sweep.json").write_text(json.dumps({"trials": [trial(0).id], "timing": None}))
    assert command.main([str(tmp_path)]) == 0
    assert "1 missing of 1" in " ".join(capsys.readouterr().out.split())
