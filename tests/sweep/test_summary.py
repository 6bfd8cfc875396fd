import numpy as np
import pytest

from mantra_ray.config import ExperimentConfig
from mantra_ray.errors import InputError
from mantra_ray.evaluation.statistics import Interval, nested_gain
from mantra_ray.sweep.spec import SweepSpec
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.summary import (
    Configuration,
    Result,
    arms_by_split,
    best_on_validation,
    chosen_on_validation,
    configurations,
    noise_ceiling,
    read_arms,
    read_description,
)

GAINS = {0.0: 0.1, 1.0: 0.3}  # of the memory, by regret gamma


DEFAULT = ExperimentConfig().nexus.regret_gamma


@pytest.fixture
def sweep(tmp_path, records):
    """The store and the trials of two gammas, two seeds and two splits; gamma 1 is better on `seen`, 0 on `unseen`."""
    arms = tuple({"nexus.regret_gamma": gamma} for gamma in GAINS)
    trials = SweepSpec("test", ExperimentConfig(), arms, (0, 1), ("seen", "unseen")).trials("data", "code")
    store = Store(tmp_path)
    for trial in trials:
        seed, scores = trial.config.seed, []
        if trial.kind == "baselines":
            shares = {"zero": 2.0, "ridge": 0.8}
            where = {"arm": "noise_ceiling", "part": "test", "slice": "all", "n": 4}
            scores = [where | {"metric": "noise_floor_mse", "value": 0.1 + 0.2 * seed}]
            scores += [where | {"metric": "program_mse_gain", "value": 0.9}]
        else:
            gamma = trial.config.nexus.regret_gamma
            gain = GAINS[gamma if trial.config.split.kind == "seen" else 1 - gamma]
            shares = {"memory_off": 1.0, "memory_on": 1 - gain}
        row = {"status": "done", "write_density": 0.2 + 0.2 * seed}
        store.write(trial, row, scores, records(shares, seed))
    return store, store.read("trials").to_pylist()


def test_configurations_pool_seeds_and_keep_splits_apart(sweep):
    found = configurations(*sweep)
    assert {item.knobs["nexus.regret_gamma"] for item in found} == set(GAINS)
    for item in found:
        gamma = item.knobs["nexus.regret_gamma"]
        assert item.knobs.keys() == {"nexus.regret_gamma"} and item.values["nexus.slots"] == 32
        for split, gain in (("seen", GAINS[gamma]), ("unseen", GAINS[1 - gamma])):
            result = item.results[split]
            assert (result.validation, result.test.value) == pytest.approx((gain, gain))
            assert len(result.trials) == 2 and result.test.n == 8
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
    found = item.results["seen"].test
    assert (found.value, found.lower, found.upper) == pytest.approx((expected.value, expected.lower, expected.upper))


def test_arms_have_the_gnn_and_the_ceiling(sweep):
    store, trials = sweep
    baselines = [row for row in trials if row["kind"] == "baselines"]
    arms = read_arms(store, baselines, "test")
    assert arms.keys() == {"zero", "ridge", "gnn"}
    assert arms["zero"].error == pytest.approx(2 * arms["gnn"].error)
    assert arms["ridge"].gain.value == pytest.approx(0.2)
    assert noise_ceiling(store, baselines)["noise_ceiling"].error == pytest.approx(0.2)


def test_the_memory_of_each_split_is_the_one_that_validation_chooses(sweep):
    found = configurations(*sweep)
    arms = arms_by_split(*sweep, {split: chosen_on_validation(sweep[0], found, split) for split in ("seen", "unseen")})
    assert sorted(arms) == ["seen", "unseen"]
    for of_split in arms.values():
        assert of_split.keys() == {"zero", "ridge", "gnn", "noise_ceiling", "memory_off", "memory_on"}
        assert of_split["memory_on"].gain.value == pytest.approx(0.3)


def chances(*values):
    """Configurations by their gain on validation, which are worth nothing on test."""
    none = Interval(0.0, 0.0, 0.0, 4)
    return [Configuration({}, {"seen": Result([], value, none)}, {}) for value in values]


@pytest.mark.parametrize(
    ("values", "best"),
    [((0.1, 0.3, 0.2), [1]), ((0.3, 0.1, 0.3 + 1e-9), [0, 2]), ((float("nan"), -0.1), [1]), ((float("nan"),), [])],
)
def test_best_on_validation_with_ties(values, best):
    found = chances(*values)
    assert best_on_validation(found, "seen") == [found[i] for i in best]
    assert best_on_validation(found, "unseen") == []


@pytest.mark.parametrize(("gain", "noise", "gamma"), [(0.05, 0.0, 1.0), (0.05, 2.0, DEFAULT), (-0.05, 0.0, DEFAULT)])
def test_the_default_is_judged_unless_another_is_better_by_more_than_chance(tmp_path, gain, noise, gamma):
    rng, store, count = np.random.default_rng(0), Store(tmp_path), 40
    arms = tuple({"nexus.regret_gamma": value} for value in (DEFAULT, 1.0))
    trials = SweepSpec("test", ExperimentConfig(), arms, (0, 1), ("seen",)).trials("data", "code")
    for trial in (trial for trial in trials if trial.kind == "nexus"):
        other = trial.config.nexus.regret_gamma == 1.0
        spread = noise * rng.normal(size=count)
        error = 1 - other * (gain + spread - spread.mean())
        columns = {"squared_error": error, "reference_error": np.ones(count), "regulator": np.arange(count)}
        columns |= {"record": np.arange(count), "dose": np.ones(count), "state": np.zeros(count, int)}
        columns |= {"arm": np.full(count, "memory_on"), "part": np.full(count, "validation")}
        both = {name: np.tile(values, 2) for name, values in columns.items()}
        both["part"][count:] = "test"
        store.write(trial, {"status": "done"}, [], both)
    found = configurations(store, store.read("trials").to_pylist())
    assert chosen_on_validation(store, found, "seen").knobs["nexus.regret_gamma"] == gamma
    assert chosen_on_validation(store, found, "context") is None


def test_a_memory_that_changes_nothing_is_the_gnn():
    assert [item.results["seen"].is_gnn for item in chances(0.0, 1e-9, 1e-3, float("nan"))] == [True, True, False, True]


def test_no_sweep_here(tmp_path):
    with pytest.raises(InputError, match=r"sweep\.json"):
        read_description(tmp_path)
