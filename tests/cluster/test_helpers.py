"""The helpers that wait for nodes and copy rows."""

import contextlib

import fsspec
import pytest

from mantra_ray.config import ExperimentConfig
from mantra_ray.files import place
from mantra_ray.sweep.folder import sweep_folder
from mantra_ray.sweep.schema import SCHEMAS
from mantra_ray.sweep.spec import SweepSpec
from mantra_ray.sweep.store import Store

ARMS = tuple({"nexus.regret_gamma": gamma} for gamma in (0.0, 1.0))


@pytest.fixture
def bucket():
    """An address of fsspec that lies in memory."""
    yield "memory://bucket/runs/test"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


@pytest.fixture
def sweep(tmp_path):
    """Writes the rows of some trials of a sweep; gives its folder and its trials."""
    trials = SweepSpec("test", ExperimentConfig(), ARMS, (0,), ("seen",)).trials("data", "code")
    root = tmp_path / "runs" / "test"

    def write(count, **row):
        for trial in trials[:count]:
            Store(root / "results").write(trial, {"status": "done", "seconds": 1.0} | row)
        names = ", ".join(f'"{trial.id}"' for trial in trials[:count])
        (root / "sweep.json").write_text(f'{{"trials": [{names}], "timing": null}}')
        return root, trials

    return write


def test_rows_in_a_bucket_are_those_of_the_folder(script, sweep, bucket):
    upload = script("upload.py")
    root, trials = sweep(1)
    (root / "results" / "trials" / ".x.partial").write_bytes(b"half")
    assert upload.main([str(root), bucket]) == 0
    _, there, described = sweep_folder(bucket)
    assert described == [trials[0].id] and there.finished() == {trials[0].id}
    root, trials = sweep(len(trials))
    assert upload.upload(root, place(bucket)) == 4 * (len(trials) - 1)  # what was there is not copied again
    _, there, described = sweep_folder(bucket)
    for table in SCHEMAS:
        assert there.read(table).equals(Store(root / "results").read(table))
    assert set(described) == {trial.id for trial in trials} == there.finished()
    assert not [name for name in fsspec.filesystem("memory").find("/bucket") if "partial" in name]


def test_a_row_that_was_written_again_is_copied_again(script, sweep, bucket):
    upload = script("upload.py")
    root, trials = sweep(1, status="failed", error="no gate today")
    upload.upload(root, place(bucket))
    sweep(1)
    assert upload.upload(root, place(bucket)) == 1
    assert Store(bucket + "/results").ended() == {trials[0].id: "done"}


def test_what_is_no_sweep_and_no_address_is_refused(script, sweep, tmp_path, capsys):
    upload = script("upload.py")
    root, _ = sweep(1)
    for words, told in (([str(tmp_path), "memory://x"], "no sweep's folder"), ([str(root), "nosuch://x"], "nosuch")):
        with pytest.raises(SystemExit) as ended:
            upload.main(words)
        assert ended.value.code == 2 and told in capsys.readouterr().err


class Cluster:
    """Stands for Ray: grows by one GPU a look, up to a size; notes what was asked for."""

    def __init__(self, most):
        self.most, self.gpus, self.asked = most, 0, []

    def cluster_resources(self):
        self.gpus = min(self.most, self.gpus + 1)
        return {"CPU": 1.0, "GPU": float(self.gpus)}

    def nodes(self):
        return [{"Alive": True}] * (1 + self.gpus) + [{"Alive": False}]

    @contextlib.contextmanager
    def connected(self, address):
        self.address = address
        yield {}


@pytest.fixture
def waiting(script, monkeypatch):
    """The script that waits, on a stand-in for Ray that grows to `most` GPUs."""

    def make(most):
        module, cluster = script("with_nodes.py"), Cluster(most)
        monkeypatch.setattr(module, "ray", cluster)
        monkeypatch.setattr(module, "connected", cluster.connected)
        monkeypatch.setattr(module, "request_resources", lambda bundles: cluster.asked.append(bundles))
        monkeypatch.setattr(module, "POLL", 0.0)
        return module, cluster

    return make


def test_where_no_cluster_answers_nothing_runs(script, tmp_path, capsys):
    module = script("with_nodes.py")
    with pytest.raises(SystemExit) as ended:
        module.main(["--address", "127.0.0.1:1", "--", "touch", str(tmp_path / "ran")])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and "no Ray cluster answers" in told and "127.0.0.1:1" in told
    assert not (tmp_path / "ran").exists()


def test_the_command_runs_when_the_nodes_are_there_and_they_are_let_go(waiting, tmp_path, capfd):
    module, cluster = waiting(3)
    code = module.main(["--gpus", "3", "--nodes", "4", "--", "sh", "-c", f"echo here >{tmp_path}/ran; exit 7"])
    assert code == 7 and (tmp_path / "ran").exists() and cluster.address == "auto"
    assert cluster.asked == [[{"GPU": 1}] * 3, []]
    assert "1 of 3 GPUs" in capfd.readouterr().err


def test_nodes_that_do_not_come_are_not_paid_for(waiting, tmp_path, capfd):
    module, cluster = waiting(1)
    assert module.main(["--gpus", "3", "--wait", "0", "--", "touch", f"{tmp_path}/ran"]) == 3
    assert not (tmp_path / "ran").exists() and cluster.asked[-1] == []
    assert module.main(["--release"]) == 0 and cluster.asked[-1] == []
    with pytest.raises(SystemExit):
        module.main(["--gpus", "3"])
