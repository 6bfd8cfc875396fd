"""Configurations against the default on the same records: what is compared, and what the numbers are."""

import io

import numpy as np
import pytest
from rich.console import Console

from mantra_ray.config import ExperimentConfig
from mantra_ray.evaluation.statistics import holm, ratio_bootstrap
from mantra_ray.sweep import tables
from mantra_ray.sweep.paired import RESAMPLES, against_default, compare, default_configuration
from mantra_ray.sweep.spec import SweepSpec
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.summary import configurations
from mantra_ray.sweep.tables import compared_table, span

DEFAULT = ExperimentConfig().nexus.regret_gamma
REGULATORS = 30


def columns(error, part="test"):
    """Columns of `records`: two records a regulator, whose GNN errors are 1 and 3."""
    rows = np.arange(2 * REGULATORS)
    return {
        "arm": np.full(len(rows), "memory_on"),
        "part": np.full(len(rows), part),
        "record": rows,
        "regulator": rows // 2,
        "dose": np.ones(len(rows)),
        "state": rows % 2,
        "squared_error": error,
        "reference_error": 1.0 + 2 * (rows % 2),
    }


@pytest.fixture
def sweep(tmp_path):
    """Makes a store and its trials: the default has the GNN's error, each gamma's errors come from its function."""

    def make(gammas, seeds=(0, 1, 2), lacking=()):
        arms = tuple({"nexus.regret_gamma": gamma} for gamma in (DEFAULT, *gammas))
        trials = SweepSpec("test", ExperimentConfig(), arms, seeds, ("seen",)).trials("data", "code")
        store, reference = Store(tmp_path), columns(0.0)["reference_error"]
        for trial in (trial for trial in trials if trial.kind == "nexus"):
            gamma, seed = trial.config.nexus.regret_gamma, trial.config.seed
            gained = gammas[gamma](np.random.default_rng(seed)) if gamma in gammas else 0.0
            failed = (gamma, seed) in lacking
            row = {"status": "failed" if failed else "done", "error": ""}
            store.write(trial, row, [], None if failed else columns(reference - gained))
        return store, configurations(store, store.read("trials").to_pylist())

    return make


def test_gains_are_those_of_the_same_records(sweep):
    store, found = sweep({1.0: lambda rng: 0.1 * (1 + np.arange(2 * REGULATORS) % 2), 2.0: lambda rng: -0.2})
    compared = against_default(store, found, "memory_on")
    default = default_configuration(found)
    assert {key for key in compared} == {(i, "seen") for i, item in enumerate(found) if item is not default}
    better, worse = (
        next(compared[i, "seen"] for i, item in enumerate(found) if item.knobs["nexus.regret_gamma"] == gamma)
        for gamma in (1.0, 2.0)
    )
    assert better.difference.value == pytest.approx(0.3 / 4) and better.middle.value == pytest.approx(0.3 / 4)
    assert better.improved.value == 1.0 and better.improved.lower < 1
    assert worse.difference.value == pytest.approx(-0.1) and worse.improved.value == 0.0
    assert better.seeds == 3 and better.difference.n == 6 * REGULATORS and better.middle.n == 3 * REGULATORS
    assert max(better.p_value, worse.p_value) == pytest.approx(2 * 2 / (RESAMPLES + 1))  # Holm over two


def test_what_equals_the_default_is_no_test(sweep):
    noisy = {1.0: lambda rng: 0.05 + 0.3 * rng.normal(size=2 * REGULATORS)}
    (alone,) = against_default(*sweep(noisy), "memory_on").values()
    store, found = sweep(noisy | {2.0: lambda rng: 0.0, 3.0: lambda rng: 0.0})
    compared = against_default(store, found, "memory_on")
    assert sorted(pair.same for pair in compared.values()) == [False, True, True]
    (different,) = (pair for pair in compared.values() if not pair.same)
    assert different.p_value == alone.p_value  # Holm over one comparison
    assert all(pair.p_value == 1.0 for pair in compared.values() if pair.same)
    table = compared_table(found, compared, ["seen"])
    first, last = ([str(column._cells[i]) for column in table.columns] for i in (0, 1))
    assert table.row_count == 2 and first[:2] == ["gamma 1", span(different.difference)]
    assert last == ["2 others", "equal", "-", "-", "-"]


def test_an_outlier_shows_in_the_difference_alone(sweep):
    def one(rng):
        return np.where(np.arange(2 * REGULATORS) == 0, -50.0, 0.1)

    (paired,) = against_default(*sweep({1.0: one}), "memory_on").values()
    assert paired.difference.value < 0 < paired.middle.lower and paired.improved.lower > 0.5
    assert paired.p_value > 0.05


def test_p_values_are_holms_and_agree_with_the_intervals(sweep):
    means = {float(i): 0.02 * i for i in range(6)}
    noisy = {gamma: lambda rng, mean=mean: mean + 0.3 * rng.normal(size=60) for gamma, mean in means.items()}
    store, found = sweep(noisy)
    compared = against_default(store, found, "memory_on")
    raw = []
    for i, _ in compared:
        rngs = [np.random.default_rng(seed) for seed in range(3)]
        gained = np.concatenate([noisy[found[i].knobs["nexus.regret_gamma"]](rng) for rng in rngs])
        reference = np.tile(columns(0.0)["reference_error"], 3)
        who = np.tile(columns(0.0)["regulator"], 3), np.repeat(np.arange(3), 60)
        raw.append(ratio_bootstrap(gained[:, None], reference[:, None], *who, RESAMPLES, 0).p_value())
    found_p = [item.p_value for item in compared.values()]
    assert found_p == pytest.approx(holm(np.array(raw)), rel=1e-6)
    for p, item in zip(raw, compared.values(), strict=True):
        assert (p < 0.05) == (not item.difference.lower <= 0 <= item.difference.upper)


def test_only_seeds_that_both_finished_count(sweep):
    store, found = sweep({1.0: lambda rng: 0.1}, lacking=((1.0, 2),))
    (paired,) = against_default(store, found, "memory_on").values()
    assert paired.seeds == 2 and paired.difference.n == 4 * REGULATORS


def test_without_the_default_nothing_is_compared(sweep):
    store, found = sweep({1.0: lambda rng: 0.1})
    assert against_default(store, [item for item in found if item.knobs["nexus.regret_gamma"] == 1.0], "x") == {}


def test_one_regulator_has_a_value_alone():
    mine = {"squared_error": np.array([1.0, 2.0]), "regulator": np.zeros(2), "seed": np.arange(2)}
    theirs = mine | {"squared_error": np.array([2.0, 2.0]), "reference_error": np.array([2.0, 2.0])}
    *intervals, p_value = compare(mine, theirs, 100, 0.95)
    assert [interval.value for interval in intervals] == [0.25, 0.25, 0.75] and p_value == 1.0
    assert all(np.isnan([interval.lower, interval.upper]).all() for interval in intervals)


def test_long_names_give_way_to_numbers(sweep, monkeypatch):
    monkeypatch.setattr(tables, "changes", lambda item, names: "a long name, " * 8)
    store, found = sweep({1.0: lambda rng: 0.05 + 0.3 * rng.normal(size=2 * REGULATORS)})
    pairs = against_default(store, found, "memory_on")
    (paired,) = pairs.values()
    console = Console(file=io.StringIO(), width=100)
    console.print(compared_table(found, pairs, ["seen"]))
    assert span(paired.improved, "") in console.file.getvalue() and "…" not in console.file.getvalue()
