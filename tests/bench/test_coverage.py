"""The benchmark of coverage: that its draws have the truth it claims, what it counts, and how it refuses."""

import json

import numpy as np
import pytest

from mantra_ray.bench import coverage
from mantra_ray.bench.coverage import SCENARIOS, STATISTICS, Options, draw, main, measure, plain_interval, truths
from mantra_ray.errors import InputError
from mantra_ray.evaluation.robust import interquartile_mean, pair_gains

NAMES = {scenario.name: scenario for scenario in SCENARIOS}


@pytest.mark.parametrize("name", ["regulators, skewed", "few regulators", "seeds", "other regulators each seed"])
def test_many_draws_have_the_truth(name):
    rng, case = np.random.default_rng(0), NAMES[name]
    truth = truths(case, rng)
    found = []
    for _ in range(300):
        error, reference, regulator, seed = draw(case, rng)
        gain, *_ = pair_gains(reference - error, reference, regulator, seed)
        middle = interquartile_mean(np.sort(gain), np.ones((1, len(gain))))[0]
        found.append(((reference - error).mean(), 1 - error.sum() / reference.sum(), middle, (gain > 0).mean()))
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(300)
    for i, statistic in enumerate(STATISTICS[:4]):
        bias = 0.01 if statistic == "iqm" else 0.0  # a pool of three seeds is narrower than all seeds together
        assert mean[i] == pytest.approx(truth[statistic], abs=4 * error[i] + bias)


def test_a_seed_tests_some_of_the_regulators():
    _, _, regulator, seed = draw(NAMES["other regulators each seed"], np.random.default_rng(0))
    assert [len(np.unique(regulator[seed == s])) for s in range(3)] == [20, 20, 20]
    assert len(np.unique(regulator)) > 25


def test_dominating_seeds_defeat_plain_percentiles_and_not_ours():
    case = NAMES["seeds alone"]
    row = measure(case, Options(runs=150, resamples=300))
    assert row["coverage"]["plain"] < 0.88 and row["coverage"]["difference"] > 0.89
    assert row["width"]["difference"] > row["width"]["plain"]


def test_a_wrong_interval_is_found_out(monkeypatch):
    monkeypatch.setattr(coverage, "nested_gain", lambda *args: plain_interval(args[0], args[2], args[3], 100))
    row = measure(NAMES["regulators alone"], Options(runs=20, resamples=100))
    assert row["coverage"]["gain"] == 0.0  # the mean error is 0.8, the gain 0.2


def test_a_run_prints_its_table_and_saves_its_rows(tmp_path, capsys):
    out = tmp_path / "deep" / "rows.json"
    args = ["--seeds", "3", "--regulators", "20", "--runs", "5", "--resamples", "100", "--out", str(out)]
    assert main([*args, "--scenarios", "seeds", "both"]) == 0
    rows = json.loads(out.read_text())
    assert [row["scenario"]["name"] for row in rows] == ["seeds", "both"]
    assert all(set(row["coverage"]) == set(STATISTICS) and row["runs"] == 5 for row in rows)
    printed = capsys.readouterr().out
    assert "both" in printed and "within 93% to 97%" in printed


@pytest.mark.parametrize(
    "args, field",
    [
        (["--seeds", "0"], "--seeds"),
        (["--regulators", "5"], "--regulators"),
        (["--scenarios", "none"], "--scenarios"),
        (["--out", "rows.txt"], "--out"),
        (["--seed", "-1"], "--seed"),
        (["--resamples", "3"], "--resamples"),
    ],
)
def test_bad_options_are_refused(args, field):
    with pytest.raises(InputError, match=field):
        main(args)
