import pytest

from mantra_ray.config import LAPTOP, ExperimentConfig, NexusConfig
from mantra_ray.errors import InputError
from mantra_ray.fields import flatten, replace
from mantra_ray.sweep.options import RANGES, SMOKE, parse

SET_BY_SWEEP = {"seed", "split.kind"}


def test_defaults_are_those_of_the_configuration():
    assert parse([], "").experiment(0) == replace(ExperimentConfig(), nexus=NexusConfig(**LAPTOP))


def test_every_field_can_be_reached(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"], "What it does.")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "What it does." in shown
    for name in set(flatten(ExperimentConfig())) - SET_BY_SWEEP:
        option = name.removeprefix("data.").removeprefix("split.")
        assert "--" + option.replace("_", "-") + " " in shown.replace(",", " "), name


def test_options_reach_base_and_sweep():
    args = "--data x.npz --traits A=a.csv B=b.csv --seeds 2 --first-seed 5 --splits unseen --nexus.tau 0.3 --name mine"
    options = parse(args.split(), "")
    spec = options.sweep("recipe", [{}])
    assert (spec.name, spec.seeds, spec.splits) == ("mine", (5, 6), ("unseen",))
    assert spec.base.data.data == "x.npz" and spec.base.data.traits == ("A=a.csv", "B=b.csv")
    assert spec.base.nexus.tau == 0.3


def test_given_option_fixes_a_swept_knob_even_at_its_default():
    arms = [{"nexus.regret_gamma": 0.0}, {"nexus.regret_gamma": 1.0}]
    assert len(parse([], "").sweep("r", arms).arms) == 2
    assert parse(["--nexus.regret-gamma=0.0"], "").sweep("r", arms).arms == ({},)


def test_smoke_is_a_default_under_what_is_given():
    options = parse(["--seeds", "4", "--smoke"], "")
    assert options.seeds == 4 and options.smoke
    assert options.simulation == SMOKE.simulation != ExperimentConfig().data.simulation


def test_sample_keeps_that_many_configurations():
    options = parse(["--search", "sample", "--num-trials", "3"], "")
    assert len(options.sweep("r", [{"nexus.tau": 0.1 * i} for i in range(1, 9)]).arms) == 3


def test_help_says_defaults_in_words(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"], "")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--splits KIND ..." in shown and "(default: all that make sense for the data)" in shown
    assert "--no-smoke" not in shown and "(default: ''" not in shown and "(default: )" not in shown
    assert shown.count("(default: made by co-expression)") == 1


@pytest.mark.parametrize(
    "args",
    [
        *("--seeds 0", "--cpus-per-trial 0", "--gpus-per-trial -1", "--num-trials 0", "--workers-per-trial 0"),
        *(
            "--confirm -1",
            "--splits wrong",
            "--name a/b",
            "--name ..",
            "--out /dev/null",
            "--out /dev/null/below",
            "--out s3://bucket/runs",
            "--copy-to nosuch://x",
        ),
    ],
)
def test_impossible_values_name_the_option(args):
    option, value = args.split()
    with pytest.raises(InputError, match=f"{option}.*{value}"):
        parse([option, value], "")


def test_out_is_checked_and_not_made(tmp_path, monkeypatch):
    folder = tmp_path / "new" / "runs"
    parse(["--out", str(folder)], "")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"--out: cannot be written to .found .*runs"):
        parse(["--out", str(folder)], "")


def test_every_number_of_the_model_has_a_range():
    numbers = {
        name
        for name, value in flatten(ExperimentConfig()).items()
        if name.startswith(("nexus.", "grn.", "programs.", "manifold.", "evaluation.", "data.trait."))
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
    }
    assert numbers == {name for names in RANGES for name in names.split()} | {
        "nexus.regret_gamma",
        "nexus.pathway_gamma",
    }
