import json

import numpy as np
import pytest

from mantra_ray import cli
from mantra_ray.config import ExperimentConfig
from mantra_ray.sweep.spec import SweepSpec
from mantra_ray.sweep.store import Store


@pytest.fixture
def root(tmp_path):
    """A sweep of one configuration, one seed and one split."""
    folder = tmp_path / "runs" / "tiny"
    trials = SweepSpec("tiny", ExperimentConfig(), ({},), (0,), ("seen",)).trials("data", "code")
    for trial in trials:
        arm = "memory_on" if trial.kind == "nexus" else "mean"
        records = {
            "arm": np.repeat(arm, 6),
            "part": np.array(["validation"] * 2 + ["test"] * 4),
            "record": np.arange(6),
            "regulator": np.arange(6),
            "dose": np.full(6, 0.5, np.float32),
            "state": np.zeros(6, np.int64),
            "squared_error": 0.5 * np.arange(1.0, 7.0),
            "reference_error": np.arange(1.0, 7.0),
        }
        Store(folder / "results").write(trial, {"status": "done", "write_density": 0.5}, [], records)
    (folder / "sweep.json").write_text(json.dumps({"trials": [trial.id for trial in trials], "timing": None}))
    return folder


def test_the_command_writes_beside_the_results_or_elsewhere(root, tmp_path, capsys):
    assert cli.main(["report", str(root)]) == 0
    assert f"{root / 'report.html'}: the report, with" in capsys.readouterr().out
    html = (root / "report.html").read_text(encoding="utf-8")
    assert "<title>Sweep tiny</title>" in html and "+50.0 %" in html
    assert (root / "figures" / "baselines.png").is_file() and (root / "figures" / "baselines.svg").is_file()
    assert cli.main(["report", str(root), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8") == html


def test_results_at_an_address_and_a_report_there(root):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.put(str(root), "/report_tiny", recursive=True)
    assert cli.main(["report", "memory://report_tiny"]) == 0
    assert "<title>Sweep report_tiny</title>" in memory.cat("/report_tiny/report.html").decode()
    assert memory.exists("/report_tiny/figures/baselines.png")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda root: (root / "sweep.json").unlink(), "is no folder of a sweep"),
        (lambda root: [path.unlink() for path in (root / "results").rglob("*.parquet")], "nothing to report"),
        (lambda root: next((root / "results" / "scores").iterdir()).write_bytes(b"PAR1"), "are damaged"),
    ],
)
def test_what_cannot_be_reported_is_one_line_and_leaves_nothing(root, tmp_path, capsys, make, told):
    make(root)
    assert cli.main(["report", str(root), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and told in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists() and not (root / "figures").exists()


def test_no_place_to_write(root, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out in (str(tmp_path / "file"), "nosuch://x"):
        assert cli.main(["report", str(root), "--out", out]) == 2
        assert "options: --out" in capsys.readouterr().err
