import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mantra_ray
from mantra_ray import cli
from mantra_ray.errors import InputError
from mantra_ray.sweep import runner

RECIPE = Path(__file__).parents[1] / "sweeps" / "cam_geometry.py"


@pytest.fixture
def swept(monkeypatch):
    """The (spec, options) that a command would run."""
    seen = []
    monkeypatch.setattr(cli, "run_sweep", lambda spec, options, console: seen.append((spec, options)) or 0)
    return seen


def test_version_and_usage(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"mantra {mantra_ray.__version__}"
    assert cli.main(["--help"]) == 0
    assert cli.main([]) == 2
    assert cli.main(["swep"]) == 2


def test_usage_waits_for_neither_torch_nor_ray():
    code = "import sys; from mantra_ray.cli import main; main(['--help'])"
    code += "; sys.exit(sorted({'torch', 'ray'} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr


def test_sweep_gives_options_to_the_recipe(swept):
    assert cli.main(["sweep", str(RECIPE), "--seeds", "1", "--nexus.epochs", "7"]) == 0
    ((spec, options),) = swept
    assert options.seeds == 1 and spec.base.nexus.epochs == 7 and spec.name == "cam_geometry"


def test_recipe_sweeps_geometry_gate_fusion_and_load(swept):
    cli.main(["sweep", str(RECIPE)])
    arms = swept[0][0].arms
    loads = [arm for arm in arms if "nexus.load" in arm]
    full = [arm for arm in arms if "nexus.load" not in arm]
    geometries = {(512, 32), (2048, 8), (4096, 4)}
    for part in (loads, full):
        assert {(arm["nexus.buckets"], arm["nexus.slots"]) for arm in part} == geometries
    assert {arm["nexus.load"] for arm in loads} == {0.25, 1.0, 4.0} and len(loads) == 9
    assert all({"nexus.regret_gamma", "nexus.query_alpha"} <= arm.keys() for arm in full)
    assert len({tuple(arm.items()) for arm in full}) == len(full) > len(geometries)


def test_smoke_sweeps_one_gate_and_one_fusion(swept):
    cli.main(["sweep", str(RECIPE), "--smoke"])
    spec, options = swept[0]
    assert options.seeds == 2
    assert len([arm for arm in spec.arms if "nexus.load" not in arm]) == 3


@pytest.mark.parametrize("text", [None, "x = 1"])
def test_no_recipe(tmp_path, text, capsys):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    assert cli.main(["sweep", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_bad_input_is_a_message_not_a_traceback(monkeypatch, capsys):
    def refuse(*_):
        raise InputError("screen.npz", "dose", 7.0, "must lie in [0, 1]")

    monkeypatch.setattr(cli, "run_sweep", refuse)
    assert cli.main(["sweep", str(RECIPE)]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: screen.npz: dose: must lie in [0, 1] (found 7.0)\n"


def test_results_needs_a_sweep(tmp_path, capsys):
    assert cli.main(["results", str(tmp_path)]) == 2
    assert "sweep.json" in capsys.readouterr().err


@pytest.fixture
def screen(tmp_path):
    """A small file of a user's own: 6 regulators, 2 doses, 5 genes, one state."""
    rng = np.random.default_rng(0)
    arrays = {
        "reg_idx": np.repeat(np.arange(6), 2),
        "dose": np.tile([0.5, 1.0], 6),
        "deltaE": rng.normal(size=(12, 5)),
        "gene_names": np.array(list("abcde")),
    }
    np.savez(tmp_path / "screen.npz", **arrays)
    np.savez(tmp_path / "dose.npz", **arrays | {"dose": np.full(12, 7.0)})
    (tmp_path / "cut.npz").write_bytes((tmp_path / "screen.npz").read_bytes()[:300])
    (tmp_path / "edges.csv").write_text("source,weight\na,1\n")
    (tmp_path / "mch.csv").write_text("symbol,b\na,1\n")
    (tmp_path / "file").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ("--data {0}/missing.npz", ["missing.npz: file", "no such file"]),
        ("--data {0}/cut.npz", ["cut.npz: file", "cannot be read as NPZ"]),
        ("--data {0}/dose.npz", ["dose.npz: dose", "outside [0, 1]", "7.0"]),
        ("--data nosuch", ["--data", "nosuch", "sim, morphic"]),
        ("--data morphic", ["options: --data-dir", "morphic_ko.npz"]),
        ("--data morphic --data-dir {0}", ["morphic_ko.npz: file", "no such file"]),
        ("--data {0}/screen.npz --graph {0}/edges.csv", ["edges.csv: target", "source, weight"]),
        ("--data {0}/screen.npz --traits MCH={0}/mch.csv", ["mch.csv: se", "symbol, b"]),
        ("--data {0}/screen.npz --traits {0}/mch.csv", ["--traits", "NAME=FILE"]),
        ("--data {0}/screen.npz --splits context", ["split: kind", "context", "two states"]),
        ("--splits wrong", ["--splits", "wrong", "seen, strategy, context, unseen"]),
        ("--seeds 0", ["--seeds", "at least 1", "0"]),
        ("--num-trials 3", ["--num-trials", "--search sample", "3"]),
        ("--out {0}/file", ["--out", "{0}/file", "no folder"]),
        ("--nexus.tau 0", ["--nexus.tau", "at least 1e-06", "0.0"]),
        ("--nexus.tau nan", ["--nexus.tau", "nan"]),
        ("--nexus.regret-gamma nan", ["--nexus.regret-gamma", "nan"]),
        ("--nexus.query-alpha 1.5", ["--nexus.query-alpha", "from 0 to 1", "1.5"]),
        ("--nexus.d-model 33", ["--nexus.d-model", "multiple of the heads", "33"]),
        ("--data {0}/screen.npz --nexus.routing class", ["--nexus.routing", "--classes", "class"]),
        ("--grn.folds 1", ["--grn.folds", "at least 2", "1"]),
        ("--evaluation.bootstrap 0", ["--evaluation.bootstrap", "at least 1", "0"]),
        ("--test-fraction 1.5", ["test_fraction", "between 0 and 1", "1.5"]),
    ],
)
def test_unusable_input_is_one_line_and_nothing_is_made(screen, monkeypatch, capsys, args, told):
    monkeypatch.delenv("MANTRA_DATA_DIR", raising=False)
    monkeypatch.setattr(runner, "connected", lambda address: pytest.fail("Ray was started"))
    before = sorted(screen.rglob("*"))
    args = ["--out", str(screen / "runs"), *(part.format(screen) for part in args.split())]
    assert cli.main(["sweep", str(RECIPE), *args]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    for part in told:
        assert part.format(screen) in message
    assert sorted(screen.rglob("*")) == before
