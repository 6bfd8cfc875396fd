import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import splu

from mantra_ray.cascade.smoother import ROWS, LaplacianSmoother
from mantra_ray.errors import InputError

GENES = 12


@st.composite
def edges(draw):
    seed, count = draw(st.integers(0, 1000)), draw(st.integers(0, 40))
    rng = np.random.default_rng(seed)
    return rng.integers(0, GENES, count), rng.integers(0, GENES, count), rng.standard_normal(count)


def matrix(graph, smoothing):
    return LaplacianSmoother(*graph, GENES, smoothing)(np.eye(GENES))


@settings(max_examples=25, deadline=None)
@given(edges(), st.floats(0, 10))
def test_symmetric_contraction_between_its_bounds(graph, smoothing):
    operator = matrix(graph, smoothing)
    np.testing.assert_allclose(operator, operator.T, atol=1e-8)
    values = np.linalg.eigvalsh(operator)
    assert values.max() <= 1 + 1e-8
    assert values.min() >= 1 / (1 + 2 * smoothing) - 1e-8


@settings(max_examples=10, deadline=None)
@given(edges())
def test_lambda_zero_is_the_identity(graph):
    np.testing.assert_allclose(matrix(graph, 0.0), np.eye(GENES), atol=1e-12)


def test_matches_the_dense_formula_and_leaves_lone_genes():
    graph = (np.array([0, 1, 2, 3]), np.array([1, 2, 2, 0]), np.array([1.0, -2.0, 5.0, 0.5]))  # 2 -> 2 is dropped
    adjacency = np.zeros((GENES, GENES))
    for i, j, w in ((0, 1, 1.0), (1, 2, 2.0), (3, 0, 0.5)):
        adjacency[i, j] = adjacency[j, i] = w
    root = np.sqrt(adjacency.sum(1), where=adjacency.any(1), out=np.ones(GENES))
    laplacian = np.diag(adjacency.any(1).astype(float)) - adjacency / np.outer(root, root)
    change = np.random.default_rng(0).standard_normal((3, GENES)).astype(np.float32)
    smoothed = LaplacianSmoother(*graph, GENES, 0.7)(change)
    np.testing.assert_allclose(smoothed, change @ np.linalg.inv(np.eye(GENES) + 0.7 * laplacian), atol=1e-5)
    np.testing.assert_allclose(smoothed[:, 5:], change[:, 5:], atol=1e-6)
    assert smoothed.dtype == np.float32


@settings(max_examples=15, deadline=None)
@given(edges(), st.floats(0, 10), st.integers(-6, 6))
def test_as_a_factorisation_solves_it_whatever_the_rows_sizes(graph, smoothing, exponent):
    smoother = LaplacianSmoother(*graph, GENES, smoothing)
    change = np.random.default_rng(1).standard_normal((ROWS + 3, GENES))
    change[1] *= 10.0**exponent
    change[2] = 0
    solved = splu(smoother.system.tocsc()).solve(change.T).T
    error = np.linalg.norm(smoother(change) - solved, axis=1)
    assert (error <= 1e-7 * np.linalg.norm(change, axis=1)).all()
    assert smoother(change[:0]).shape == (0, GENES)


@pytest.mark.parametrize("smoothing", [-0.1, float("nan"), float("inf")])
def test_bad_lambda(smoothing):
    with pytest.raises(InputError, match="smoothing"):
        LaplacianSmoother(*(np.zeros(0, int),) * 2, np.zeros(0), GENES, smoothing)
