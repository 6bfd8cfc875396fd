import json

import pytest

from mantra_ray.commands import merge as command
from mantra_ray.config import ExperimentConfig
from mantra_ray.errors import InputError
from mantra_ray.fields import replace
from mantra_ray.files import atomic, place
from mantra_ray.sweep import compact
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.sweep.store import Store


def trial(seed):
    return TrialSpec("nexus", replace(ExperimentConfig(), seed=seed), "data", "code")


def sweep(folder, rows, described=None):
    """A sweep's folder with trials by seed: their status and the value of their one curve."""
    root = place(folder)
    store = Store(root / "results")
    for seed, (status, value) in rows.items():
        store.write(trial(seed), {"status": status}, curves=[{"epoch": 0, "metric": "loss", "value": value}])
    ids = [trial(seed).id for seed in (described or rows)]
    with atomic(root / "sweep.json") as partial:
        partial.write_text(json.dumps({"trials": ids, "timing": None}))
    return str(root)


@pytest.mark.parametrize("remote", [False, True])
def test_each_trial_once_the_finished_one_first(tmp_path, remote, capsys):
    one = sweep(tmp_path / "one", {0: ("done", 1.0), 1: ("failed", 1.0), 2: ("pruned", 1.0), 3: ("done", 1.0)})
    others = {1: ("done", 2.0), 2: ("failed", 2.0), 3: ("done", 2.0), 4: ("done", 2.0)}
    two = sweep(f"memory://{tmp_path.name}/two", others, described=[1, 2, 3, 5])
    compact.compact(Store(place(one) / "results"))
    out = f"memory://{tmp_path.name}/both" if remote else str(tmp_path / "both")
    assert command.main([one, two, "--out", out]) == 0
    store = Store(place(out) / "results")
    values = {row["seed"]: row["value"] for row in store.read("curves").to_pylist()}
    assert values == {0: 1.0, 1: 2.0, 2: 1.0, 3: 1.0}  # 4 belongs to none of the last commands
    assert store.read("trials").num_rows == store.read("curves").num_rows == 4
    assert store.ended()[trial(2).id] == "pruned" and store.finished() == {trial(s).id for s in (0, 1, 3)}
    trials = json.loads((place(out) / "sweep.json").read_text())["trials"]
    assert trials == [trial(seed).id for seed in (0, 1, 2, 3, 5)]
    assert "4 of 5 trials" in capsys.readouterr().out


def test_bad_input_leaves_nothing(tmp_path, monkeypatch):
    one, two = (sweep(tmp_path / name, {0: ("done", 1.0)}) for name in ("one", "two"))
    out = tmp_path / "both"
    for arguments, told in (
        ([one], "at least two"),
        ([one, two, "--out", one], "exists already"),
        ([one, str(tmp_path / "none")], r"sweep\.json"),
        ([one, "nope://x"], "Protocol"),
    ):
        with pytest.raises(InputError, match=told):
            command.main(arguments if "--out" in arguments else [*arguments, "--out", str(out)])
    monkeypatch.setattr(compact.seal, "seal", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command.main([one, two, "--out", str(out)])
    assert not out.exists()
