import json
import os
import subprocess
import sys

import pytest

from mantra_ray.commands import compact as command
from mantra_ray.config import ExperimentConfig
from mantra_ray.errors import InputError
from mantra_ray.fields import replace
from mantra_ray.files import listing
from mantra_ray.sweep.compact import compact
from mantra_ray.sweep.rowfiles import DamagedFile
from mantra_ray.sweep.schema import SCHEMAS
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.sweep.store import Store

CURVE = {"epoch": 1, "metric": "loss"}
# Compacts a store in a process of its own, which dies at the n-th removal of an old file.
DIES = """
import os, sys
from mantra_ray import files
from mantra_ray.sweep import compact
from mantra_ray.sweep.store import Store

left = [int(sys.argv[2])]
step = os.replace if sys.argv[3] == "replace" else os.unlink

def dying(*args, **kwargs):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), 9)
    return step(*args, **kwargs)

if sys.argv[3] == "replace":
    files.os.replace = dying
else:
    type(files.Path()).unlink = lambda self, missing_ok=False: dying(self) if self.exists() else None
compact.compact(Store(sys.argv[1]))
"""


def trial(seed=0):
    return TrialSpec("nexus", replace(ExperimentConfig(), seed=seed), "data", "code")


def write(store, seed, value=0.5, **row):
    store.write(trial(seed), {"status": "done"} | row, curves=[CURVE | {"value": value}] * 2)


def content(store):
    return {table: store.read(table).to_pylist() for table in SCHEMAS}


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    found = Store(tmp_path / "results" if request.param == "local" else f"memory://{tmp_path.name}/results")
    for seed in range(5):
        write(found, seed, seed, **{f"extra{seed}": 1.0})
    return found


def test_the_rows_stay_the_same(store):
    before = content(store)
    done = compact(store)
    assert (done.trials, done.before, done.after) == (5, 20, 4)
    for look in (store, Store(store.folder)):
        assert content(look) == before and len(look.finished()) == 5
        assert look.read("curves", [trial(3).id], ["value"])["value"].to_pylist() == [3.0, 3.0]
        assert look.read("curves", ["0" * 16]).num_rows == 0
    assert compact(store).after == 4 and content(store) == before  # nothing left to do


def test_a_newer_file_goes_before_the_compact_one(store):
    compact(store)
    write(store, 2, 9.0)
    write(store, 7, 7.0)
    for times in range(2):
        values = {row["seed"]: row["value"] for row in store.read("curves").to_pylist()}
        assert values == {0: 0, 1: 1, 2: 9, 3: 3, 4: 4, 7: 7} and store.read("curves").num_rows == 12
        assert store.read("trials").num_rows == len(store.finished()) == 6
        assert [r["trial"] for r in store.read("trials").to_pylist()] == sorted(store.finished())
        assert compact(store).after == 4, times
    write(store, 2, 9.0, status="failed")
    assert store.ended()[trial(2).id] == "failed" and trial(2).id not in store.finished()


@pytest.mark.parametrize(
    ("at", "where"), [(1, "replace"), (3, "replace"), (1, "unlink"), (4, "unlink"), (11, "unlink")]
)
def test_killed_in_between_nothing_is_lost_or_doubled(tmp_path, at, where):
    store = Store(tmp_path)
    for seed in range(4):
        write(store, seed, seed)
    before = content(store)
    arguments = [sys.executable, "-c", DIES, str(tmp_path), str(at), where]
    done = subprocess.run(arguments, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == -9, done.stderr
    assert content(Store(tmp_path)) == before and len(Store(tmp_path).finished()) == 4
    write(store, 1, 8.0)
    assert compact(store).after == 4
    assert [row["value"] for row in content(store)["curves"] if row["seed"] == 1] == [8.0, 8.0]
    assert [row for row in content(store)["curves"] if row["seed"] != 1] == [
        row for row in before["curves"] if row["seed"] != 1
    ]


def test_what_is_damaged_or_unfinished_stays(tmp_path):
    store = Store(tmp_path)
    for seed in range(3):
        write(store, seed)
    broken, half = (tmp_path / "curves" / f"{trial(seed).id}.parquet" for seed in (0, 5))
    broken.write_bytes(broken.read_bytes()[:-9])
    write(store, 5)
    (tmp_path / "trials" / half.name).unlink()  # as if its trial still ran
    with pytest.warns(DamagedFile, match=broken.name):
        assert compact(store).trials == 2
    assert broken.exists() and half.exists()
    with pytest.warns(DamagedFile):
        assert Store(tmp_path).finished() == {trial(1).id, trial(2).id}


@pytest.mark.parametrize("table", SCHEMAS)
def test_a_damaged_compact_file_lets_its_trials_run_again(tmp_path, table):
    store = Store(tmp_path)
    for seed in range(3):
        write(store, seed)
    compact(store)
    (name,) = listing(tmp_path / table)
    data = bytearray((tmp_path / table / name).read_bytes())
    data[len(data) // 3] ^= 16
    (tmp_path / table / name).write_bytes(data)
    with pytest.warns(DamagedFile, match=name):
        assert Store(tmp_path).finished() == store.finished() == set()
    write(store, 1)
    with pytest.warns(DamagedFile):
        assert Store(tmp_path).finished() == {trial(1).id}


def test_the_command(tmp_path, capsys):
    store = Store(tmp_path / "results")
    write(store, 0)
    write(store, 1)
    with pytest.raises(InputError, match=r"sweep\.json"):
        command.main([str(tmp_path)])
    (tmp_path / "sweep.json").write_text(json.dumps({"trials": [trial(0).id, trial(1).id], "timing": None}))
    assert command.main([str(tmp_path)]) == 0
    assert "2 trials: 8 files are now 4." in capsys.readouterr().out
