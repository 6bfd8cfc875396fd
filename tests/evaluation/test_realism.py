import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.evaluation.realism import displacement, judged_rows, neighbour_overlap, overlap_by_chance, realism


def brute(predicted, observed, state, k):
    """Neighbours one record at a time."""
    shares = []
    for i in range(len(predicted)):
        rows = np.flatnonzero(state == state[i])
        others = [(np.linalg.norm(predicted[j] - predicted[i]), 0) for j in rows if j != i]
        others += [(np.linalg.norm(observed[j] - predicted[i]), 1) for j in rows]
        nearest = sorted(others)[:k]
        shares.append(sum(is_observed for _, is_observed in nearest) / len(nearest))
    return np.mean(shares)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_overlap_is_that_of_a_plain_loop(seed, k):
    rng = np.random.default_rng(seed)
    predicted, observed, state = rng.normal(size=(30, 3)), rng.normal(size=(30, 3)), np.arange(30) % 2
    assert neighbour_overlap(predicted, observed, state, k) == pytest.approx(brute(predicted, observed, state, k))


def test_draws_from_one_distribution_overlap_by_chance_and_islands_do_not():
    rng = np.random.default_rng(0)
    observed, predicted, state = rng.normal(size=(400, 5)), rng.normal(size=(400, 5)), np.arange(400) % 2
    assert neighbour_overlap(predicted, observed, state) == pytest.approx(overlap_by_chance(state), abs=0.03)
    assert neighbour_overlap(predicted + 50, observed, state) == 0.0
    assert neighbour_overlap(0.01 * predicted, observed, state) < 0.1  # a collapsed prediction


def test_a_states_records_are_no_neighbours_of_anothers():
    predicted, observed, state = np.zeros((20, 2)), np.zeros((20, 2)), np.repeat([0, 1], 10)
    observed[:10] += 100  # those of state 0; its predictions lie among the observations of state 1
    assert neighbour_overlap(predicted[:10], observed[:10], state[:10], 5) == 0
    assert neighbour_overlap(predicted, observed, state, 5) <= 0.5


def test_displacement_is_zero_without_a_manifold_and_counts_what_moved():
    before = np.array([[3.0, 4.0], [0.0, 5.0]])
    assert displacement(before, before) == (0.0, 0.0)
    assert displacement(before, 0.8 * before) == pytest.approx((1.0, 0.2))
    assert displacement(before[:0], before[:0]) == (0.0, 0.0)
    assert displacement(0 * before, 0 * before) == (0.0, 0.0)


def test_numbers_for_the_tables_are_finite_and_follow_the_projection():
    rng = np.random.default_rng(1)
    observed, state = rng.normal(size=(100, 4)), np.zeros(100, int)
    before = rng.normal(size=(100, 4)) + 3
    numbers = realism(before, before - 3, observed, state)
    assert numbers["neighbour_overlap_before"] < numbers["neighbour_overlap_after"]
    assert numbers["displacement"] == pytest.approx(6.0)
    assert all(np.isfinite(value) for value in numbers.values())


def test_many_rows_are_thinned_evenly():
    assert judged_rows(np.arange(7)).tolist() == list(range(7))
    thinned = judged_rows(np.arange(5000))
    assert len(thinned) == len(set(thinned.tolist())) == 1000 and thinned[0] == 0 and thinned[-1] == 4999
