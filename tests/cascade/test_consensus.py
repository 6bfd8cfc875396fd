import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from mantra_ray.cascade.consensus import (
    BLOCK,
    local_density,
    median_spectra,
    refit_spectra,
    refit_usages,
    restarts,
    unexplained,
)
from mantra_ray.config import ProgramsConfig
from mantra_ray.errors import InputError


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5), st.booleans())
def test_refitted_spectra_are_the_non_negative_least_squares_of_the_rows(seed, k, collinear):
    rng = np.random.default_rng(seed)
    usages, rows = rng.random((20, k)), rng.normal(0.3, 1, (20, 6))
    if collinear:
        usages = np.concatenate([usages, usages[:, :1]], axis=1)
    found = refit_spectra(usages.T @ usages, usages.T @ rows)
    exact = np.stack([nnls(usages, column)[0] for column in rows.T], axis=1)
    assert (found >= 0).all()
    np.testing.assert_allclose(usages @ found, usages @ exact, atol=1e-6)


def test_spectra_of_a_program_that_no_row_uses_are_empty():
    assert not refit_spectra(np.zeros((2, 2)), np.zeros((2, 3))).any()
    assert not refit_spectra(np.diag([1.0, 0.0]), np.array([[1.0, 2.0], [0.0, 0.0]]))[1].any()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([np.asarray, sp.csr_array]))
def test_unexplained_share_is_that_of_the_product_made_in_full(seed, form):
    rng = np.random.default_rng(seed)
    count = BLOCK + 30
    rows = rng.poisson(1, (count, 8)).astype(np.float32)
    usages, spectra = rng.random((count, 3)), rng.random((3, 8))
    exact = np.square(rows - usages @ spectra).sum() / np.square(rows).sum()
    assert unexplained(form(rows), usages, spectra) == pytest.approx(exact, rel=1e-6)


def test_usages_of_exact_mixtures_come_back_dense_or_sparse():
    rng = np.random.default_rng(0)
    usages, spectra = rng.random((40, 3)), rng.random((3, 12)) * (rng.random((3, 12)) < 0.5)
    for form in (np.asarray, sp.csr_array):
        np.testing.assert_allclose(refit_usages(form(usages @ spectra), spectra), usages, atol=1e-2)


def test_a_spectrum_far_from_the_others_is_dropped():
    rng = np.random.default_rng(0)
    pooled = np.abs(np.repeat(np.eye(2, 6), 10, axis=0) + 0.01 * rng.normal(size=(20, 6)))
    odd = np.full((1, 6), 6**-0.5)
    pooled = np.concatenate([pooled / np.linalg.norm(pooled, axis=1, keepdims=True), odd])
    density = local_density(pooled, 10)
    assert density[-1] > 0.5 > 0.1 > density[:-1].max()
    config = ProgramsConfig(restarts=10)
    filtered = median_spectra(pooled, 3, config, seed=0)
    assert (np.linalg.norm(filtered - odd / odd.sum(), axis=1) > 0.3).all()
    kept = median_spectra(pooled, 3, ProgramsConfig(restarts=10, density=2), seed=0)
    assert np.linalg.norm(kept - odd / odd.sum(), axis=1).min() < 1e-6
    np.testing.assert_allclose(filtered.sum(1), 1)


def test_where_all_restarts_disagree_the_best_k_remain():
    config = ProgramsConfig(restarts=2, density=1e-6)
    medians = median_spectra(np.eye(6), 4, config, seed=0)
    assert np.linalg.matrix_rank(medians) == 4


def test_restarts_of_rows_with_too_few_patterns():
    with pytest.raises(InputError, match=r"programs\.k.*not empty"):
        restarts(np.zeros((5, 4), np.float32), [2], ProgramsConfig(restarts=1), seed=0)


def test_restarts_do_not_depend_on_the_other_ks_and_report_progress():
    rows, seen = np.random.default_rng(0).random((30, 8), np.float32), []
    config = ProgramsConfig(restarts=3)
    both = restarts(rows, [2, 3], config, 0, lambda *progress: seen.append(progress))
    np.testing.assert_array_equal(both[3], restarts(rows, [3], config, 0)[3])
    assert seen == [(done, 6) for done in range(1, 7)]
    np.testing.assert_allclose(np.linalg.norm(both[2], axis=1), 1, atol=1e-5)
    assert len(both[2]) == 6 and not np.allclose(both[2][:2], both[2][2:4])  # each from a start of its own
