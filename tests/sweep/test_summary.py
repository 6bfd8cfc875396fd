import io
import json

import numpy as np
import pytest
from rich.console import Console

from mantra_ray.config import ExperimentConfig
from mantra_ray.errors import InputError
from mantra_ray.evaluation.statistics import nested_gain
from mantra_ray.sweep.spec import SweepSpec
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.summary import configurations, noise_ceiling, print_summary, read_arms

GAINS = {0.0: 0.1, 1.0: 0.3}  # of the memory, by regret gamma


@pytest.fixture
def sweep(tmp_path, records):
    """A finished sweep of two gammas, two seeds and one split, in which gamma 1 is better."""
    arms = tuple({"nexus.regret_gamma": gamma} for gamma in GAINS)
    trials = SweepSpec("test", ExperimentConfig(), arms, (0, 1), ("seen",)).trials("data", "code")
    store = Store(tmp_path / "results")
    for trial in trials:
        seed, scores = trial.config.seed, []
        if trial.kind == "baselines":
            shares = {"zero": 2.0, "ridge": 0.8}
            where = {"arm": "noise_ceiling", "part": "test", "slice": "all", "n": 4}
            scores = [where | {"metric": "noise_floor_mse", "value": 0.1 + 0.2 * seed}]
            scores += [where | {"metric": "program_mse_gain", "value": 0.9}]
        else:
            shares = {"memory_off": 1.0, "memory_on": 1 - GAINS[trial.config.nexus.regret_gamma]}
        row = {"status": "done", "write_density": 0.2 + 0.2 * seed, "load": 0.5, "occupancy": 0.1}
        store.write(trial, row, scores, records(shares, seed))
    described = {"trials": [trial.id for trial in trials], "timing": None}
    (tmp_path / "sweep.json").write_text(json.dumps(described))
    return tmp_path, store, store.read("trials").to_pylist()


def test_configurations_pool_seeds(sweep, records):
    _, store, trials = sweep
    found = configurations(store, trials)
    assert {item.knobs["nexus.regret_gamma"]: round(item.test.value, 6) for item in found} == GAINS
    assert {round(item.validation, 6) for item in found} == set(GAINS.values())
    for item in found:
        assert item.knobs.keys() == {"nexus.regret_gamma"}
        assert len(item.trials) == 2 and item.test.n == 8
        assert item.mean("write_density") == pytest.approx(0.3)
        assert np.isnan(item.mean("gate_mean"))


def test_intervals_are_those_of_the_pooled_records(tmp_path, records):
    rng, store = np.random.default_rng(1), Store(tmp_path)
    trials = SweepSpec("test", ExperimentConfig(), ({},), (0, 1), ("seen",)).trials("data", "code")
    pooled = {"squared_error": [], "reference_error": [], "regulator": [], "seed": []}
    for trial in (trial for trial in trials if trial.kind == "nexus"):
        columns = records({"memory_on": 1.0}, trial.config.seed)
        columns["squared_error"] = columns["squared_error"] * rng.random(6)
        store.write(trial, {"status": "done"}, records=columns)
        test = columns["part"] == "test"
        for name in ("squared_error", "reference_error", "regulator"):
            pooled[name].append(columns[name][test])
        pooled["seed"].append(np.full(test.sum(), trial.config.seed))
    expected = nested_gain(*(np.concatenate(values) for values in pooled.values()), 1000, 0.95, 0)
    (item,) = configurations(store, store.read("trials").to_pylist())
    found = item.test
    assert (found.value, found.lower, found.upper) == pytest.approx((expected.value, expected.lower, expected.upper))


def test_arms_have_the_gnn_and_the_ceiling(sweep):
    _, store, trials = sweep
    baselines = [row for row in trials if row["kind"] == "baselines"]
    arms = read_arms(store, baselines, "test")
    assert arms.keys() == {"zero", "ridge", "gnn"}
    assert arms["zero"].error == pytest.approx(2 * arms["gnn"].error)
    assert arms["ridge"].gain.value == pytest.approx(0.2)
    assert noise_ceiling(store, baselines)["noise_ceiling"].error == pytest.approx(0.2)


def test_printed_tables(sweep):
    root, _, _ = sweep
    output = io.StringIO()
    print_summary(root, Console(file=output, width=120))
    text = output.getvalue()
    assert "+30.0%*" in text and "+10.0%*" not in text
    for word in ("ridge", "noise_ceiling", "memory_on", "regret_gamma", str(root / "results"), "tensorboard --logdir"):
        assert word in text
    assert "6 trials finished, 0 failed" in text


def test_failures_are_shown(sweep):
    root, store, _ = sweep
    trial = SweepSpec("t", ExperimentConfig(), ({"nexus.regret_gamma": 0.0},), (0,), ("seen",)).trials("data", "code")[
        1
    ]
    store.write(trial, {"status": "failed", "error": "Traceback\nValueError: slot [3] is empty\n"})
    output = io.StringIO()
    print_summary(root, Console(file=output, width=120))
    assert f"Failed {trial.id}: ValueError: slot [3] is empty" in output.getvalue()
    assert "5 trials finished, 1 failed" in output.getvalue()


def test_no_sweep_here(tmp_path):
    with pytest.raises(InputError, match=r"sweep\.json"):
        print_summary(tmp_path, Console())
