"""The predictors behind the baselines: weights worked out by hand, exact leave-one-out, matches that are learned."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.baselines import smoothers
from mantra_ray.baselines.headers import Headers, equal, held_out_groups, stand_ins
from mantra_ray.baselines.memory import Pairs, residual_memory
from mantra_ray.baselines.ridge import eigensystem, left_out_residuals, one_hot, ridge


def headers(regulator, state=None, strategy=None, dose=None):
    n = len(regulator)
    zeros = np.zeros(n, int)
    return Headers(
        np.asarray(regulator),
        np.zeros(n, np.float32) if dose is None else np.float32(dose),
        zeros if state is None else np.asarray(state),
        zeros if strategy is None else np.asarray(strategy),
    )


def test_a_state_without_training_rows_takes_the_mean():
    train, query = headers([0, 1, 2], state=[0, 0, 1]), headers([3, 3], state=[0, 7])
    weights = smoothers.state_mean(query, train, np.ones((2, 3), bool))
    assert weights == pytest.approx(np.array([[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]]))


def test_state_mean_shrunk_leaves_the_own_regulator_out():
    train, query = headers([0, 1, 2]), headers([0])
    assert smoothers.state_mean_shrunk(query, train, np.ones((1, 3), bool)) == pytest.approx(np.array([[0, 1, 1]]) / 6)


def test_lookups_by_hand():
    train, query = headers([0, 0, 0, 1], state=[0, 0, 1, 0]), headers([0, 0, 2], state=[0, 5, 0])
    allowed = np.ones((3, 4), bool)
    assert smoothers.lookup(query, train, allowed, 1.0) == pytest.approx(
        np.array([[0.25, 0.25, 0.25, 0], [0.25, 0.25, 0.25, 0], [0, 0, 0, 0]])
    )
    # two rows of the context against two pseudo-rows of the regulator's mean
    found = smoothers.lookup_context(query, train, allowed, 1.0, 2.0)
    expected = [[0.25 + 0.125, 0.25 + 0.125, 0.125, 0], [0.25, 0.25, 0.25, 0], [0, 0, 0, 0]]
    assert found == pytest.approx(np.array(expected))


def test_neighbours_share_ties_and_prefer_the_own_regulator():
    train = headers([0, 0, 1, 0], dose=[0.1, 0.5, 0.3, 0.5])
    distance = smoothers.header_distance(headers([0], dose=[0.45]), train)
    allowed = np.ones((1, 4), bool)
    assert smoothers.neighbours(distance, allowed, 1).tolist() == [[0, 0.5, 0, 0.5]]
    assert smoothers.neighbours(distance, allowed, 3) == pytest.approx(np.array([[1, 1, 0, 1]]) / 3)
    allowed[0, 1] = False
    assert smoothers.neighbours(distance, allowed, 1).tolist() == [[0, 0, 0, 1]]
    assert smoothers.neighbours(distance, allowed, 9) == pytest.approx(np.array([[1, 0, 1, 1]]) / 3)


def test_groups_and_stand_ins_by_hand():
    train = headers([0, 0, 0, 1, 2, 2], state=[0, 0, 1, 0, 1, 1])
    assert held_out_groups(train, "seen").tolist() == [0, 1, 2, 3, 4, 5]
    context = held_out_groups(train, "context")
    assert context[0] == context[1] and context[4] == context[5] and len(set(context)) == 4
    assert held_out_groups(train, "unseen").tolist() == train.regulator.tolist()
    assert stand_ins(train, "seen").tolist() == [True, True, True, False, True, True]
    assert stand_ins(train, "strategy").tolist() == [True, True, False, False, True, True]
    assert stand_ins(train, "context").tolist() == [True, True, True, False, False, False]
    assert stand_ins(train, "unseen").all()
    assert stand_ins(headers([0, 1, 2]), "seen").all()


@given(st.integers(0, 10_000), st.sampled_from([0.1, 1.0, 30.0]), st.booleans())
@settings(max_examples=15, deadline=None)
def test_left_out_residuals_equal_refits(seed, penalty, interaction):
    rng = np.random.default_rng(seed)
    n = 14
    train = headers(rng.integers(0, 4, n), rng.integers(0, 2, n), rng.integers(0, 2, n), rng.random(n))
    target, group = rng.normal(size=(n, 3)), rng.integers(0, 6, n)
    columns = one_hot(interaction, True)(train)
    inner = (columns @ columns.T).toarray()
    found = left_out_residuals(*eigensystem(columns), target, group, penalty)
    for g in np.unique(group):
        rows, rest = np.flatnonzero(group == g), np.flatnonzero(group != g)
        weights = inner[np.ix_(rows, rest)] @ np.linalg.inv(inner[np.ix_(rest, rest)] + penalty * np.eye(len(rest)))
        assert found[rows] == pytest.approx(target[rows] - weights @ target[rest], abs=1e-6)


@given(st.integers(0, 10_000), st.integers(3, 30), st.booleans())
@settings(max_examples=15, deadline=None)
def test_features_have_the_inner_products_of_their_headers(seed, n, interaction):
    """And their eigensystem gives those back, with more rows than columns or fewer."""
    rng = np.random.default_rng(seed)
    train = headers(rng.integers(0, 4, n), rng.integers(0, 2, n), rng.integers(0, 2, n), rng.random(n))
    same = {name: equal(getattr(train, name), getattr(train, name)) for name in ("regulator", "state", "strategy")}
    expected = same["regulator"] * (1 + interaction * same["state"]) * np.outer(train.dose, train.dose.astype(float))
    expected = expected + same["state"] + same["strategy"]
    columns = one_hot(interaction, True)(train)
    assert (columns @ columns.T).toarray() == pytest.approx(expected)
    values, vectors = eigensystem(columns)
    assert (vectors * values) @ vectors.T == pytest.approx(expected)


def test_ridge_equals_its_primal_form():
    rng = np.random.default_rng(0)
    train = headers(np.repeat(np.arange(5), 4), np.tile([0, 1], 10))
    target = rng.normal(size=(5, 3))[train.regulator] + 0.1 * rng.normal(size=(20, 3))
    weights = ridge(train, train, target, np.arange(20), np.ones(20, bool), [one_hot(False, False)])
    columns = np.hstack([np.eye(5)[train.regulator], np.eye(2)[train.state], np.ones((20, 1))])
    fits = {
        p: columns @ np.linalg.solve(columns.T @ columns + p * np.eye(8), columns.T @ target) for p in (0.1, 0.3, 1)
    }
    assert min(np.abs(weights @ target - fit).max() for fit in fits.values()) < 1e-5


def test_ridge_uses_dose_only_where_effects_scale_with_it():
    rng = np.random.default_rng(0)
    train = headers(np.repeat(np.arange(8), 4), dose=np.tile([0.1, 0.4, 0.7, 1.0], 8))
    effect = rng.normal(size=(8, 10))[train.regulator]
    query = headers([3], dose=[0.05])
    for target, scale in ((effect * train.dose[:, None], 0.05), (effect, 1.0)):
        choices = [one_hot(True, False), one_hot(True, True)]
        weights = ridge(query, train, target, np.arange(32), np.ones(32, bool), choices)
        assert (weights @ target)[0] == pytest.approx(scale * effect[12], abs=0.1)


def test_memory_weights_equal_a_plain_loop():
    rng = np.random.default_rng(0)
    train = headers(rng.integers(0, 3, 12), rng.integers(0, 2, 12), rng.integers(0, 3, 12), rng.random(12))
    query = headers([0, 1, 9], [1, 0, 0], [2, 1, 0], [0.3, 0.9, 0.1])
    parameters = torch.tensor([0.4, 1.5, 0.7, 2.0, -0.3, 1.1, 0.2], dtype=torch.float64)
    target = rng.normal(size=(12, 2))
    found = Pairs(query, train, np.ones((3, 12), bool)).predict(parameters, torch.from_numpy(target)).numpy()
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
    weights = residual_memory(query, train, np.ones((1, 135), bool), target)[0]
    same = (regulator == 4) & (strategy == 1)
    assert weights[same].sum() > 0.95 and weights[regulator != 4].sum() == 0
