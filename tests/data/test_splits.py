"""Splits: disjoint, complete, without leaks by kind, the same for the same seed."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.config import SplitConfig, SplitKind
from mantra_ray.data.records import from_arrays
from mantra_ray.data.splits import cross_fit_folds, make_split
from mantra_ray.errors import InputError

KINDS = get_args(SplitKind)
fast = settings(max_examples=40, deadline=None)


def make(regulator, state):
    regulator = np.asarray(regulator)
    dose = np.linspace(0, 1, len(regulator))
    return from_arrays({"regulator": regulator, "state": state, "dose": dose, "delta_program": np.ones((len(dose), 1))})


@st.composite
def screens(draw):
    n = draw(st.integers(2, 60))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    return make(rng.integers(draw(st.integers(1, 12)), size=n), rng.integers(draw(st.integers(1, 4)), size=n))


@st.composite
def fractions(draw):
    return draw(st.floats(0.05, 0.5)), draw(st.floats(0.05, 0.45))


@fast
@given(screens(), fractions(), st.sampled_from(KINDS), st.integers(0, 9))
def test_split_laws(data, shares, kind, seed):
    config = SplitConfig(kind, *shares)
    try:
        split = make_split(data, config, seed)
    except InputError as error:
        assert error.value == kind and spare(data, kind) < 2
        return
    assert spare(data, kind) >= 2
    parts = (split.train, split.validation, split.test)
    assert all(len(part) and (np.diff(part) > 0).all() for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(data)))
    again = make_split(data, config, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, (again.train, again.validation, again.test), strict=True))

    regulators = [set(data.regulator[part]) for part in parts]
    pairs = [set(zip(data.regulator[part], data.state[part], strict=True)) for part in parts]
    if kind == "unseen":
        assert not any(regulators[a] & regulators[b] for a, b in ((0, 1), (0, 2), (1, 2)))
    else:
        assert regulators[1] | regulators[2] <= regulators[0]
    if kind == "strategy":
        assert pairs[1] | pairs[2] <= pairs[0]
    if kind == "context":
        assert not any(pairs[a] & pairs[b] for a, b in ((0, 1), (0, 2), (1, 2)))


def spare(data, kind):
    """Units beyond one an anchor, counted independently of the implementation."""
    pairs = list(zip(data.regulator.tolist(), data.state.tolist(), strict=True))
    return {
        "seen": len(data) - len(set(data.regulator.tolist())),
        "strategy": len(data) - len(set(pairs)),
        "context": len(set(pairs)) - len(set(data.regulator.tolist())),
        "unseen": len(set(data.regulator.tolist())) - 1,
    }[kind]


@fast
@given(screens(), st.sampled_from(KINDS), st.integers(2, 5), st.integers(0, 9))
def test_cross_fit_laws(data, kind, folds, seed):
    train = np.flatnonzero(np.random.default_rng(seed).random(len(data)) < 0.8)
    pair = data.regulator * 10 + data.state
    unit = {"seen": np.arange(len(data)), "strategy": np.arange(len(data)), "context": pair, "unseen": data.regulator}
    unit = unit[kind][train]
    if len(set(unit)) < folds:
        with pytest.raises(InputError, match="folds"):
            cross_fit_folds(data, train, kind, folds, seed)
        return
    fold = cross_fit_folds(data, train, kind, folds, seed)
    assert fold.dtype == np.int64 and set(fold) == set(range(folds))
    assert np.array_equal(fold, cross_fit_folds(data, train, kind, folds, seed))
    assert all(len(set(fold[unit == u])) == 1 for u in set(unit))
    sizes, largest = np.bincount(fold), max(np.bincount(np.unique(unit, return_inverse=True)[1]))
    if kind != "context":  # there the spread of a regulator's states goes first
        assert sizes.max() - sizes.min() <= largest
    if kind == "seen":  # the records of a regulator spread as evenly as they can
        for r in set(data.regulator[train]):
            counts = np.bincount(fold[data.regulator[train] == r], minlength=folds)
            assert counts.max() - counts.min() <= 1


def full(regulators=20, doses=3, states=2):
    grid = np.meshgrid(np.arange(regulators), np.arange(doses), np.arange(states), indexing="ij")
    return make(grid[0].ravel(), grid[2].ravel())


@pytest.mark.parametrize("kind", KINDS)
def test_fractions_are_met_where_the_data_can_spare_them(kind):
    split = make_split(full(), SplitConfig(kind), 0)
    assert (len(split.train), len(split.validation), len(split.test)) == (84, 12, 24)


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_give_different_splits_and_folds(kind):
    data = full()
    splits = {tuple(make_split(data, SplitConfig(kind), seed).test) for seed in range(5)}
    folds = {tuple(cross_fit_folds(data, np.arange(len(data)), kind, 3, seed)) for seed in range(5)}
    assert len(splits) == len(folds) == 5


def test_scarce_units_shrink_test_and_validation_alike():
    split = make_split(make([0, 0, 1, 1, 2, 2], [0] * 6), SplitConfig("seen", 0.5, 0.3), 0)
    assert (len(split.validation), len(split.test), len(split.train)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("kind", "regulator", "state", "problem"),
    [
        ("seen", [0, 1, 2], [0, 0, 0], "regulators with two records"),
        ("strategy", [0, 0, 1, 1], [0, 1, 0, 1], "pairs with two records"),
        ("context", [0, 0, 1, 1], [0, 0, 0, 0], "regulators in two states"),
        ("unseen", [0, 0, 1, 1], [0, 0, 0, 0], "among regulators"),
    ],
)
def test_impossible_kinds_say_why(kind, regulator, state, problem):
    with pytest.raises(InputError, match=problem):
        make_split(make(regulator, state), SplitConfig(kind), 0)


@pytest.mark.parametrize(("test", "validation"), [(0, 0.1), (0.2, 1.0), (0.6, 0.4), (float("nan"), 0.1)])
def test_senseless_fractions_are_refused(test, validation):
    with pytest.raises(InputError, match="fraction"):
        make_split(full(), SplitConfig("seen", test, validation), 0)
