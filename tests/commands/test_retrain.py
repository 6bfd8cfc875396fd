"""The checkpoints of a sweep's winner: the commands that make them say all of its configuration."""

import json
import shlex

import numpy as np
import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray import cli
from mantra_ray.commands.retrain import _winner, is_sweep, train_command
from mantra_ray.commands.train import TrainOptions
from mantra_ray.config import ExperimentConfig
from mantra_ray.errors import InputError
from mantra_ray.fields import replace
from mantra_ray.sweep.spec import SweepSpec
from mantra_ray.sweep.store import Store

CHANGES = {
    "nexus.regret_gamma": st.sampled_from([-2.0, float("inf"), float("-inf"), -0.5]),
    "nexus.routing": st.sampled_from(["regulator", "levels"]),
    "grn.calibrate": st.booleans(),
    "manifold.smooth": st.booleans(),
    "data.trait.ridge": st.booleans(),
    "data.data": st.sampled_from(["sim", "my screen.npz"]),
    "data.traits": st.sampled_from([(), ("MCH=a b.csv:loss", "x=y.csv")]),
    "data.genes": st.integers(0, 50),
    "data.simulation.doses": st.sampled_from([(0.3, 0.6, 0.95), (0.5,)]),
    "split.kind": st.sampled_from(["seen", "unseen"]),
    "split.test_fraction": st.floats(0.1, 0.5),
    "evaluation.confidence": st.floats(0.5, 0.99),
    "seed": st.integers(0, 9),
}
ONE = ["--regulator", "G", "--dose", "0.5", "--state", "s"]


@settings(max_examples=20, deadline=None)
@given(st.fixed_dictionaries(CHANGES))
def test_the_command_of_a_configuration_says_all_of_it(changes):
    config = replace(ExperimentConfig(), **changes)
    words = shlex.split(train_command(config, "out/there"))
    assert words[:2] == ["mantra", "train"]
    options = tyro.cli(TrainOptions, args=words[2:])
    assert replace(options.experiment(options.seed), **{"split.kind": options.split}) == config
    assert options.out == "out/there"


@pytest.fixture
def sweep(tmp_path):
    """A sweep of two thresholds on two seeds and two splits, and its trials; validation prefers gamma 1."""
    root = tmp_path / "sweep"
    arms = tuple({"nexus.regret_gamma": gamma} for gamma in (-1.0, 1.0))
    trials = SweepSpec("sweep", ExperimentConfig(), arms, (3, 4), ("seen", "unseen")).trials("data", "code")
    store, count = Store(root / "results"), 12
    for trial in trials:
        records = {
            "arm": np.repeat("memory_on", 2 * count),
            "part": np.repeat(["validation", "test"], count),
            "record": np.arange(2 * count),
            "regulator": np.tile(np.arange(count), 2),
            "dose": np.full(2 * count, 0.5, np.float32),
            "state": np.zeros(2 * count, np.int64),
            "squared_error": np.full(2 * count, 0.5 if trial.config.nexus.regret_gamma == 1.0 else 0.9),
            "reference_error": np.ones(2 * count),
        }
        store.write(trial, {"status": "done"}, (), records)
    (root / "sweep.json").write_text(json.dumps({"trials": [trial.id for trial in trials], "timing": None}))
    return root, [trial for trial in trials if trial.kind == "nexus" and trial.config.nexus.regret_gamma == 1.0]


@pytest.mark.parametrize("split", ("seen", "unseen"))
def test_a_sweep_says_how_its_winners_checkpoints_are_made_and_then_takes_them(sweep, capsys, split):
    root, won = sweep
    won = [trial for trial in won if trial.config.split.kind == split]
    args = ["predict", str(root), *ONE, *(["--split", split] if split == "unseen" else [])]
    assert is_sweep(root) and cli.main(args) == 2
    commands = [line.strip() for line in capsys.readouterr().out.splitlines() if "mantra train" in line]
    assert commands == [train_command(trial.config, root / "checkpoints" / trial.id) for trial in won] and len(won) == 2
    for trial in won:
        folder = root / "checkpoints" / trial.id
        folder.mkdir(parents=True)
        (folder / "model.pt").write_text("to be read")
    assert cli.main(args) == 2
    told = capsys.readouterr()
    assert f"{root / 'checkpoints' / won[0].id / 'model.pt'}: checkpoint: cannot be read" in told.err and not told.out


def test_what_a_sweep_does_not_have_is_refused(sweep, capsys):
    root, _ = sweep
    assert cli.main(["predict", str(root), *ONE, "--split", "context"]) == 2
    assert ": --split: the finished trials have seen, unseen" in capsys.readouterr().err
    assert cli.main(["predict", str(root), str(root), *ONE]) == 2
    assert "a sweep predicts alone" in capsys.readouterr().err
    with pytest.raises(InputError, match="is no trial's id"):
        _winner(root, "seen", {"trial": "../../elsewhere"})
