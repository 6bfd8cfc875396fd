"""Each alarm, provoked by the fault that it is for; and silence where there is none."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.config import LAPTOP, EvaluationConfig, ExperimentConfig, NexusConfig, SplitConfig
from mantra_ray.data.records import PerturbationData
from mantra_ray.data.splits import NEEDS, cross_fit_folds, make_split
from mantra_ray.evaluation.statistics import Interval
from mantra_ray.fields import flatten
from mantra_ray.nexus.reader import Reader
from mantra_ray.sweep import alarms as module
from mantra_ray.sweep import trial
from mantra_ray.sweep.alarms import CONDITIONS, alarms, dead_knobs, leaks, shuffled_gains
from mantra_ray.sweep.spec import SweepSpec
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.trial import run_trial
from mantra_ray.training.nexus import Trained

SIZE = LAPTOP | {"d_model": 16, "heads": 2, "top_programs": 3, "batch": 32}
BASE = ExperimentConfig(nexus=NexusConfig(**SIZE, buckets=32, epochs=2), evaluation=EvaluationConfig(bootstrap=200))
LOADED = {"nexus.load": 2.0, "nexus.slots": 4}
ARMS = (
    *({"nexus.query_alpha": alpha, "nexus.tau": tau} for alpha in (0.0, 1.0) for tau in (0.1, 0.3)),
    *(LOADED | {"nexus.eviction": eviction} for eviction in ("pss", "fifo")),
)


def run(folder: Path, fold, arms=ARMS, seeds=(0, 1)):
    """A store with the trials of a sweep that ran in this process, and their rows."""
    store = Store(folder)
    for spec in SweepSpec("test", BASE, arms, seeds, ("seen",)).trials("data", "code"):
        if spec.kind == "nexus":
            found = run_trial(spec, fold, folder)
            store.write(spec, {"status": "done"} | found.diagnostics, found.scores, found.records, found.curves)
    return store, store.read("trials").to_pylist()


def test_a_sound_sweep_raises_none(tmp_path, planted):
    assert alarms(*run(tmp_path, planted(unseen=0))) == []


def test_a_knob_that_is_not_wired_is_dead(tmp_path, planted, monkeypatch):
    query = Reader.query

    def deaf(self, hidden, bucket):
        self.config = dataclasses.replace(self.config, query_alpha=0.5)
        return query(self, hidden, bucket)

    monkeypatch.setattr(Reader, "query", deaf)
    store, rows = run(tmp_path, planted(), ARMS[:4])
    (alarm,) = alarms(store, rows)
    assert alarm.loud and alarm.kind == "dead knob" and set(alarm.trials) == {row["trial"] for row in rows}
    assert "nexus.query_alpha 0.0, 1.0:" in str(alarm) and rows[0]["trial"] in str(alarm) and "tau" not in alarm.text


def test_an_evaluation_that_writes_is_found(tmp_path, planted, monkeypatch):
    predict = Trained.predict

    def writing(self, fold, memories=None):
        if memories is None and self.model.config.tau == 0.3:
            self.memories[0].value[0, 0, 0] += 1
        return predict(self, fold, memories)

    monkeypatch.setattr(Trained, "predict", writing)
    store, rows = run(tmp_path, planted(), ARMS[:2], (0,))
    (alarm,) = alarms(store, rows)
    (expected,) = (row["trial"] for row in rows if row["nexus.tau"] == 0.3)
    assert alarm.loud and alarm.kind == "evaluation wrote" and alarm.trials == (expected,)


def test_contents_that_were_not_shuffled_gain(tmp_path, planted, monkeypatch):
    generator = np.random.default_rng

    class Still:
        """A generator whose permutations leave everything in place."""

        def __init__(self, seed):
            self.real = generator(seed)

        def permutation(self, count):
            return np.arange(count)

        def __getattr__(self, name):
            return getattr(self.real, name)

    monkeypatch.setattr(trial.np.random, "default_rng", Still)
    store, rows = run(tmp_path, planted(unseen=0), ARMS[2:4], (0,))
    found = alarms(store, rows)
    assert [alarm.kind for alarm in found] == ["shuffled gain"] * 2 and all(alarm.loud for alarm in found)
    for tau, alarm in zip((0.1, 0.3), sorted(found, key=lambda alarm: alarm.text.rpartition("tau")[2]), strict=True):
        assert f"on seen with nexus.tau {tau}" in alarm.text and len(alarm.trials) == 1


# The rule on rows of its own: what proves a knob dead, and what does not.
DEFAULTS = {name: str(one) if isinstance(one, list) else one for name, one in flatten(BASE).items()}
DEFAULTS |= {"kind": "nexus", "status": "done", "split.kind": "seen", "base_sha256": "base"}
DEFAULTS |= {"epoch": 1.0, "evictions": 1.0, "read_entropy": 1.0, "transport": 0.4}


def row(digest: str, seed: int = 0, **fields) -> dict:
    changed = {name.replace("__", "."): one for name, one in fields.items()}
    return DEFAULTS | {"trial": f"{digest}-{seed}-{changed}", "seed": seed, "prediction_sha256": digest} | changed


def test_one_pairing_that_differs_is_life_enough():
    alphas = [row("same", nexus__query_alpha=0.0), row("same", nexus__query_alpha=1.0)]
    other = [row("a", 1, nexus__query_alpha=0.0), row("b", 1, nexus__query_alpha=1.0)]
    assert [alarm.loud for alarm in dead_knobs(alphas)] == [True]
    assert dead_knobs(alphas + other) == []
    assert dead_knobs(alphas + other[:1])[0].loud  # a seed that only one of them finished compares nothing


def test_a_silent_memory_proves_nothing():
    assert dead_knobs([row("base", nexus__query_alpha=alpha) for alpha in (0.0, 1.0)]) == []
    differs = [row("base", 0, nexus__query_alpha=0.0), row("x", 0, nexus__query_alpha=1.0)]
    assert dead_knobs(differs) == []


def test_numbers_may_saturate_and_names_may_not():
    gammas = [row(digest, nexus__regret_gamma=gamma) for gamma, digest in ((-1.0, "a"), (2.0, "b"), (math.inf, "b"))]
    (note,) = dead_knobs(gammas)
    assert not note.loud and "nexus.regret_gamma 2.0, inf: identical" in note.text
    names = [row(digest, nexus__eviction=name) for name, digest in (("pss", "a"), ("fifo", "b"), ("random", "b"))]
    (alarm,) = dead_knobs(names)
    assert alarm.loud and "nexus.eviction fifo, random:" in alarm.text


def test_a_gate_that_admits_all_whatever_gamma_is_dead():
    gammas = [row("same", nexus__regret_gamma=gamma, write_density=1.0) for gamma in (-2.0, 0.0, math.inf)]
    (alarm,) = dead_knobs(gammas)
    assert alarm.loud and "nexus.regret_gamma -2.0, 0.0, inf:" in alarm.text


def test_knobs_that_vary_together_are_one():
    shapes = [row("same", nexus__buckets=buckets, nexus__slots=slots) for buckets, slots in ((512, 32), (2048, 8))]
    (alarm,) = dead_knobs(shapes)
    assert alarm.loud and "nexus.buckets and nexus.slots 2048 x 8, 512 x 32:" in alarm.text
    taus = [row("other", nexus__tau=0.3, nexus__buckets=512, nexus__slots=32)]
    assert "nexus.tau" not in "".join(alarm.text for alarm in dead_knobs(shapes + taus))


CASES = {
    "nexus.hide_state": ((0.0, 0.5), {"epoch": 0.0}),
    "nexus.tau": ((0.1, 0.3), {"nexus.query_alpha": 0.0}),
    "nexus.transport": (("learned", "none"), {"transport": 0.0}),
    "nexus.query_alpha": ((0.5, 1.0), {"read_entropy": 0.0}),
    "nexus.eviction": (("pss", "fifo"), {"evictions": 0.0}),
    "nexus.rarity_weight": ((0.0, 1.0), {"nexus.eviction": "fifo"}),
    "nexus.gate_signal": (("entropy", "residual"), {"nexus.regret_gamma": math.inf}),
    "nexus.regret_gamma": ((-math.inf, -2.0), {"write_density": 1.0}),
    "nexus.priming": ((0, 2), {"nexus.regret_gamma": -math.inf}),
    "nexus.buckets": ((9, 5), {"nexus.load": 1.0}),
    "nexus.hash_heads": ((2, 3), {"nexus.routing": "class"}),
    "nexus.pathway_gamma": ((-4.0, 0.0), {"nexus.routing": "hash"}),
    "nexus.window": ((10, 20), {"nexus.mode": "residual"}),
    "manifold.energy": ((False, True), {"energy_error": None}),
}
ABLE = {
    "nexus.regret_gamma": {"write_density": 0.99},
    "manifold.energy": {"energy_error": 0.5},
    "nexus.hash_heads": {"nexus.routing": "hash"},
}
ABLE |= {"nexus.pathway_gamma": {"nexus.routing": "levels"}, "nexus.window": {"nexus.mode": "language"}}


def test_every_condition_is_tried():
    assert {why for why, (names, _) in CONDITIONS.items() if set(CASES) & set(names.split())} == set(CONDITIONS)
    assert {name for names, _ in CONDITIONS.values() for name in names.split()} <= set(flatten(BASE))


@pytest.mark.parametrize("knob", CASES)
def test_where_a_knob_cannot_act_there_is_a_note_and_where_it_can_an_alarm(knob):
    values, unable = CASES[knob]

    def found(where):
        return dead_knobs([row("same") | where | {knob: value, "trial": str(value)} for value in values])

    (note,), (alarm,) = found(unable), found(ABLE.get(knob, {}))
    assert not note.loud and note.text.endswith(
        next(w for w, (names, _) in CONDITIONS.items() if knob in names.split())
    )
    assert alarm.loud and alarm.text.startswith(knob)


def test_failed_trials_and_older_ones_without_digests_are_left_out(tmp_path):
    rows = [row("same", nexus__query_alpha=alpha) for alpha in (0.0, 1.0)]
    without = [{name: one for name, one in rows[1].items() if name != "prediction_sha256"}]
    assert dead_knobs(rows[:1] + without) == []
    assert alarms(Store(tmp_path), [rows[0], rows[1] | {"status": "failed"}]) == []


def gains(monkeypatch, intervals):
    """Alarms of configurations whose shuffled memories gain so much."""
    rows = [row(str(i), nexus__tau=0.1 + i) for i in range(len(intervals))]

    monkeypatch.setattr(module, "_control_errors", lambda store, trials: {one: trials.index(one) for one in trials})
    monkeypatch.setattr(module, "_gain", lambda places, row: Interval(*intervals[places[0]], 10))
    return shuffled_gains(None, rows)


def test_a_control_may_gain_by_chance_once_among_many_and_not_by_much(monkeypatch):
    chance, null, much = (0.02, 0.001, 0.04), (-0.1, -0.2, 0.0), (0.2, 0.1, 0.3)
    assert len(gains(monkeypatch, [chance])) == 1
    assert gains(monkeypatch, [chance] + [null] * 20) == []
    (alarm,) = gains(monkeypatch, [null] * 20 + [much])
    assert "gain 20.0% [10.0%, 30.0%] on seen with nexus.tau 20.1" in alarm.text
    assert gains(monkeypatch, [(0.0, 0.0, 0.0), (0.5, math.nan, math.nan)]) == []  # silent; a single regulator


@settings(max_examples=50, deadline=None)
@given(st.floats(-1, 1), st.floats(1e-3, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_one_test_alone_is_the_interval(value, width, confidence):
    level = (1 - confidence) / 2
    if abs(value - width) > 1e-6:
        assert (module._above_zero(Interval(value, value - width, value + width, 9), level) < level) == (value > width)


@pytest.fixture
def split_fold(planted):
    """Makes a fold that is split as a kind demands, from the planted one."""

    def make(kind, seed=0):
        fold = planted()
        data = PerturbationData(fold.regulator, fold.dose, fold.state, strategy=fold.strategy)
        split = make_split(data, SplitConfig(kind), seed)
        cross_fit = np.full(len(data), -1)
        cross_fit[split.train] = cross_fit_folds(data, split.train, kind, 3, seed)
        parts = {"train": split.train, "validation": split.validation, "test": split.test, "cross_fit": cross_fit}
        return dataclasses.replace(fold, **parts, meta={"kind": kind, "seed": seed})

    return make


@pytest.mark.parametrize("kind", NEEDS)
def test_a_split_as_it_should_be_leaks_nothing(split_fold, kind):
    assert [alarm for seed in range(5) for alarm in leaks(split_fold(kind, seed))] == []


@pytest.mark.parametrize("kind", NEEDS)
def test_a_record_in_training_and_test_is_a_leak(split_fold, kind):
    fold = split_fold(kind)
    both = dataclasses.replace(fold, train=np.sort(np.append(fold.train, fold.test[3])))
    found = leaks(both)
    assert all(alarm.loud and alarm.kind == "leak" for alarm in found)
    name = fold.names["regulator"][fold.regulator[fold.test[3]]]
    shared = f"{kind}, seed 0: train and test share the record of 1 rows: row {fold.test[3]} ({name}, dose"
    assert any(alarm.text.startswith(shared) for alarm in found)


@pytest.mark.parametrize(("kind", "unit"), [("context", "the (regulator, state) pair"), ("unseen", "the regulator")])
def test_a_unit_of_the_split_in_two_parts_is_a_leak(split_fold, kind, unit):
    fold = split_fold(kind)
    for part in ("validation", "test"):
        rows = getattr(fold, part)
        torn = dataclasses.replace(fold, train=np.sort(np.append(fold.train, rows[0])), **{part: rows[1:]})
        (alarm,) = leaks(torn)
        assert f"train and {part} share {unit} of" in alarm.text
    cross_fit = fold.cross_fit.copy()
    cross_fit[fold.train[0]] = (cross_fit[fold.train[0]] + 1) % 3
    (alarm,) = leaks(dataclasses.replace(fold, cross_fit=cross_fit))
    assert f"two cross-fitting folds share {unit}" in alarm.text


def test_a_held_out_row_that_networks_train_on_is_a_leak(split_fold):
    fold = split_fold("seen")
    cross_fit = fold.cross_fit.copy()
    cross_fit[fold.test[1]] = 0
    (alarm,) = leaks(dataclasses.replace(fold, cross_fit=cross_fit))
    assert "the networks' training and the held-out rows share" in alarm.text and f"row {fold.test[1]} " in alarm.text


@pytest.mark.parametrize("expression", [True, False])
def test_a_measurement_that_stands_twice_is_a_leak(split_fold, expression):
    fold = split_fold("seen")
    one, other = fold.train[0], fold.test[0]
    name = "delta_expression" if expression else "delta_program"
    fold = fold if expression else dataclasses.replace(fold, delta_expression=None)
    copies = {field: getattr(fold, field).copy() for field in ("regulator", "dose", "state", name)}
    for array in copies.values():
        array[other] = array[one]
    (alarm,) = leaks(dataclasses.replace(fold, **copies))
    assert "train and test share the measurement of 1 rows" in alarm.text
    copies[name][other, 0] += 1e-3
    assert leaks(dataclasses.replace(fold, **copies)) == []
    copies[name][[one, other]] = 0  # nothing was seen to change: no measurement to copy
    assert leaks(dataclasses.replace(fold, **copies)) == []
