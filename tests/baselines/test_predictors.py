"""The predictors behind the baselines: weights worked out by hand, exact leave-one-out, matches that are learned."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.baselines import memory, smoothers
from mantra_ray.baselines.headers import Headers, Members, codes, pairs, stand_ins
from mantra_ray.baselines.memory import Pairs, residual_memory
from mantra_ray.baselines.ridge import Design, Features, Fit, ridge


def headers(regulator, state=None, strategy=None, dose=None, group=None):
    n = len(regulator)
    zeros = np.zeros(n, int)
    return Headers(
        np.asarray(regulator),
        np.zeros(n, np.float32) if dose is None else np.float32(dose),
        zeros if state is None else np.asarray(state),
        zeros if strategy is None else np.asarray(strategy),
        np.full(n, -1) if group is None else np.asarray(group),
    )


def weights(smoother, rows):
    """The weights [n, m] of a smoother of m rows."""
    return smoother(np.eye(rows))


def drawn(seed, n, doses=None):
    """Random training rows of 5 regulators, 3 states, 2 strategies."""
    rng = np.random.default_rng(seed)
    dose = rng.random(n) if doses is None else rng.choice(doses, n)
    return headers(rng.integers(0, 5, n), rng.integers(0, 3, n), rng.integers(0, 2, n), dose)


def test_a_state_without_training_rows_takes_the_mean():
    train, query = headers([0, 1, 2], state=[0, 0, 1]).grouped("seen"), headers([3, 3], state=[0, 7])
    expected = np.array([[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]])
    assert weights(smoothers.state_mean(query, train), 3) == pytest.approx(expected)


def test_state_mean_shrunk_leaves_the_own_regulator_out():
    train, query = headers([0, 1, 2]).grouped("seen"), headers([0])
    assert weights(smoothers.state_mean_shrunk(query, train), 3) == pytest.approx(np.array([[0, 1, 1]]) / 6)


def test_lookups_by_hand():
    train, query = headers([0, 0, 0, 1], state=[0, 0, 1, 0]).grouped("seen"), headers([0, 0, 2], state=[0, 5, 0])
    assert weights(smoothers.lookup(query, train, 1.0), 4) == pytest.approx(
        np.array([[0.25, 0.25, 0.25, 0], [0.25, 0.25, 0.25, 0], [0, 0, 0, 0]])
    )
    # two rows of the context against two pseudo-rows of the regulator's mean
    found = weights(smoothers.lookup_context(query, train, 1.0, 2.0), 4)
    expected = [[0.25 + 0.125, 0.25 + 0.125, 0.125, 0], [0.25, 0.25, 0.25, 0], [0, 0, 0, 0]]
    assert found == pytest.approx(np.array(expected))


def test_neighbours_share_ties_and_prefer_the_own_regulator():
    train, query = headers([0, 0, 1, 0], dose=[0.1, 0.5, 0.3, 0.5], group=[9, 1, 2, 3]), headers([0], dose=[0.45])
    assert weights(smoothers.neighbours(query, train, 1), 4).tolist() == [[0, 0.5, 0, 0.5]]
    assert weights(smoothers.neighbours(query, train, 3), 4) == pytest.approx(np.array([[1, 1, 0, 1]]) / 3)
    query = dataclasses.replace(query, group=np.array([1]))
    assert weights(smoothers.neighbours(query, train, 1), 4).tolist() == [[0, 0, 0, 1]]
    assert weights(smoothers.neighbours(query, train, 9), 4) == pytest.approx(np.array([[1, 0, 1, 1]]) / 3)


@given(st.integers(0, 10_000), st.sampled_from(["seen", "context", "unseen"]), st.integers(1, 12), st.booleans())
@settings(max_examples=30, deadline=None)
def test_neighbours_equal_a_search_of_all_rows(seed, kind, k, continuous):
    train = drawn(seed, 25, None if continuous else np.float32([0.3, 0.6])).grouped(kind)
    found = weights(smoothers.neighbours(train, train, k), 25)
    for i in range(25):
        usable = np.flatnonzero(train.group != train.group[i])
        distance = 10.0 * (train.regulator != train.regulator[i]) + (train.state != train.state[i])
        distance = distance + 0.5 * (train.strategy != train.strategy[i]) + np.abs(train.dose - train.dose[i])
        radius = np.sort(distance[usable])[min(k, len(usable)) - 1] if len(usable) else 0
        near = usable[distance[usable] <= radius + 1e-5]
        expected = np.zeros(25)
        expected[near] = 1 / max(len(near), 1)
        assert found[i] == pytest.approx(expected)


def test_neighbours_are_the_same_in_blocks(monkeypatch):
    train = drawn(0, 40, np.float32([0.3, 0.6])).grouped("unseen")
    whole = weights(smoothers.neighbours(train, train, 20), 40)
    monkeypatch.setattr(smoothers, "BLOCK", 7)
    assert (weights(smoothers.neighbours(train, train, 20), 40) == whole).all()


@given(st.integers(0, 10_000), st.sampled_from(["seen", "context", "unseen"]))
@settings(max_examples=20, deadline=None)
def test_members_are_the_rows_that_agree_outside_the_own_group(seed, kind):
    train = drawn(seed, 20).grouped(kind)
    query = Headers(*(np.append(column, 99) for column in dataclasses.astuple(train)))  # and one like no other
    for fields in ((), ("regulator",), ("regulator", "state")):
        members = Members(query, train, *fields)
        agree = query.group[:, None] != train.group[None, :]
        for name in fields:
            agree &= getattr(query, name)[:, None] == getattr(train, name)[None, :]
        assert members.count[:, 0].tolist() == agree.sum(1).tolist()
        assert members.sum(np.eye(20)) == pytest.approx(agree.astype(float))


def test_codes_and_pairs_by_hand():
    query, memory = headers([3, 1, 7], state=[0, 1, 0]), headers([1, 3, 3, 1], state=[1, 0, 1, 1])
    asked, held, size = codes(query, memory, "regulator", "state")
    assert asked[0] == held[1] and asked[1] == held[0] == held[3] and size == 4 == len({*asked, *held})
    assert [pair.tolist() for pair in pairs(query, memory)] == [[0, 0, 1, 1], [1, 2, 0, 3]]


def test_groups_and_stand_ins_by_hand():
    train = headers([0, 0, 0, 1, 2, 2], state=[0, 0, 1, 0, 1, 1])
    assert train.grouped("seen").group.tolist() == [0, 1, 2, 3, 4, 5]
    context = train.grouped("context").group
    assert context[0] == context[1] and context[4] == context[5] and len(set(context)) == 4
    assert train.grouped("unseen").group.tolist() == train.regulator.tolist()
    wanted = {
        "seen": [True, True, True, False, True, True],
        "strategy": [True, True, False, False, True, True],
        "context": [True, True, True, False, False, False],
        "unseen": [True] * 6,
    }
    assert {kind: stand_ins(train.grouped(kind), kind).tolist() for kind in wanted} == wanted
    assert stand_ins(headers([0, 1, 2]).grouped("seen"), "seen").all()


def columns_of(train, features):
    """The columns of a ridge, written out."""
    parts = [np.eye(3)[train.state], np.eye(2)[train.strategy]]
    own = (train.dose.astype(float) if features.dose else np.ones(len(train.dose)))[:, None]
    if features.regulator:
        parts.append(np.eye(5)[train.regulator] * own)
    if features.interaction:
        parts.append(np.eye(15)[train.regulator * 3 + train.state] * own)
    if features.embedding is not None:
        parts.append(features.embedding[train.regulator])
    return np.hstack(parts)


FEATURES = [
    Features(regulator=True),
    Features(regulator=True, interaction=True),
    Features(regulator=True, interaction=True, dose=True),
    Features(embedding=np.random.default_rng(0).normal(size=(5, 4))),
]


@given(st.integers(0, 10_000), st.sampled_from([0.1, 1.0, 30.0]), st.sampled_from(FEATURES))
@settings(max_examples=30, deadline=None)
def test_a_ridge_equals_its_normal_equations(seed, penalty, features):
    rng = np.random.default_rng(seed)
    train, query = drawn(seed, 18), drawn(seed + 1, 9)
    target = rng.normal(size=(18, 3))
    held, asked = columns_of(train, features), columns_of(query, features)
    expected = asked @ np.linalg.solve(held.T @ held + penalty * np.eye(held.shape[1]), held.T @ target)
    assert Fit(Design(query, train, features), penalty).predict(target) == pytest.approx(expected, abs=1e-9)


@given(
    st.integers(0, 10_000),
    st.sampled_from([0.1, 1.0, 30.0]),
    st.sampled_from(FEATURES),
    st.sampled_from(["seen", "context", "unseen"]),
)
@settings(max_examples=30, deadline=None)
def test_left_out_residuals_equal_refits(seed, penalty, features, kind):
    rng = np.random.default_rng(seed)
    train = drawn(seed, 16).grouped(kind)
    target, held = rng.normal(size=(16, 3)), columns_of(train, features)
    found = Fit(Design(train, train, features), penalty).left_out_residuals(target, train.group)
    for g in np.unique(train.group):
        rows, rest = train.group == g, train.group != g
        normal = held[rest].T @ held[rest] + penalty * np.eye(held.shape[1])
        expected = target[rows] - held[rows] @ np.linalg.solve(normal, held[rest].T @ target[rest])
        assert found[rows] == pytest.approx(expected, abs=1e-8)


def test_ridge_uses_dose_only_where_effects_scale_with_it():
    rng = np.random.default_rng(0)
    train = headers(np.repeat(np.arange(8), 4), dose=np.tile([0.1, 0.4, 0.7, 1.0], 8)).grouped("seen")
    effect = rng.normal(size=(8, 10))[train.regulator]
    query = headers([3], dose=[0.05])
    for target, scale in ((effect * train.dose[:, None], 0.05), (effect, 1.0)):
        found = ridge(query, train, target, np.ones(32, bool), FEATURES[1:3])(target)
        assert found[0] == pytest.approx(scale * effect[12], abs=0.1)


def test_memory_weights_equal_a_plain_loop():
    rng = np.random.default_rng(0)
    train = headers(rng.integers(0, 3, 12), rng.integers(0, 2, 12), rng.integers(0, 3, 12), rng.random(12))
    query = headers([0, 1, 9], [1, 0, 0], [2, 1, 0], [0.3, 0.9, 0.1])
    parameters = torch.tensor([0.4, 1.5, 0.7, 2.0, -0.3, 1.1, 0.2], dtype=torch.float64)
    target = rng.normal(size=(12, 2))
    found = Pairs(query, train, *pairs(query, train)).predict(parameters, torch.from_numpy(target)).numpy()
    count, state, strategy, dose, bias, held, number = parameters.tolist()
    for i in range(3):
        rows = np.flatnonzero(train.regulator == query.regulator[i])
        if not len(rows):
            assert not found[i].any()
            continue
        matched = train.state[rows] == query.state[i]
        score = np.exp(
            state * matched
            + strategy * (train.strategy[rows] == query.strategy[i])
            - dose * np.abs(train.dose[rows] - query.dose[i])
        )
        gate = 1 / (1 + np.exp(-(bias + held * matched.any() + number * np.log1p(len(rows)))))
        mean = target[rows].sum(0) / (len(rows) + np.exp(count))
        assert found[i] == pytest.approx((1 - gate) * mean + gate * (score / score.sum()) @ target[rows])


def test_memory_learns_which_match_matters():
    """The query's own strategy repeats an effect exactly; its state says nothing."""
    rng = np.random.default_rng(0)
    regulator, state, strategy = (a.ravel() for a in np.meshgrid(*map(np.arange, (15, 3, 3)), indexing="ij"))
    train = headers(regulator, state, strategy)
    target = rng.normal(size=(15, 3, 8))[regulator, strategy] + 0.05 * rng.normal(size=(135, 8))
    query = headers([4], state=[2], strategy=[1])
    found = weights(residual_memory(query, train, target), 135)[0]
    same = (regulator == 4) & (strategy == 1)
    assert found[same].sum() > 0.95 and found[regulator != 4].sum() == 0


def test_a_memory_fitted_to_a_share_of_the_rows_is_nearly_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    train = headers(np.repeat(np.arange(6), 30), rng.integers(0, 3, 180), rng.integers(0, 2, 180))
    target = rng.normal(size=(6, 2, 5))[train.regulator, train.strategy] + 0.3 * rng.normal(size=(180, 5))
    whole = residual_memory(train, train, target)(target)
    monkeypatch.setattr(memory, "ENTRIES", 6 * 30 * 30 * 5 // 3)
    share = residual_memory(train, train, target)(target)
    assert 0 < np.abs(share - whole).max() < 0.1
