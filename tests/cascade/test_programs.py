import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.cascade.programs import check_rank, choose_k, fit_programs, halves
from mantra_ray.config import ProgramsConfig
from mantra_ray.errors import InputError


def planted(rows=150, genes=60, programs=4, seed=0, noise=0.02):
    """Changes made of a few disjoint gene sets that rise and fall."""
    rng = np.random.default_rng(seed)
    loadings = np.zeros((genes, programs))
    for k in range(programs):
        loadings[k * genes // programs : (k + 1) * genes // programs, k] = 0.5 + rng.random(genes // programs)
    loadings /= np.linalg.norm(loadings, axis=0)
    return (
        loadings,
        rng.standard_normal((rows, programs)) @ loadings.T + noise * rng.standard_normal((rows, genes)),
    )


def test_nmf_finds_planted_programs_of_either_sign():
    loadings, changes = planted()
    fitted = fit_programs(changes, ProgramsConfig(k=4, restarts=3), seed=0)
    assert (loadings.T @ fitted).max(1).min() > 0.95
    assert (fitted >= 0).all()


def test_pca_spans_what_svd_spans_without_centring():
    changes = planted()[1] + 0.5  # a common offset is a change against control, so it must be kept
    fitted = fit_programs(changes, ProgramsConfig(method="pca", k=5), seed=0)
    exact = np.linalg.svd(changes, full_matrices=False)[2][:5].T
    assert np.linalg.norm(exact.T @ fitted, axis=0).min() > 1 - 1e-3


@settings(max_examples=6, deadline=None)
@given(st.sampled_from(["nmf", "pca"]), st.integers(2, 6), st.integers(0, 3))
def test_programs_have_unit_norm_and_an_inverse(method, k, seed):
    config = ProgramsConfig(method=method, k=k, restarts=2)
    changes = planted(rows=40, programs=6, noise=0.3, seed=seed)[1]
    fitted = fit_programs(changes, config, seed)
    assert fitted.shape == (60, k) and fitted.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(fitted, axis=0), 1, atol=1e-4)
    np.testing.assert_allclose(np.linalg.inv(fitted.T @ fitted) @ (fitted.T @ fitted), np.eye(k), atol=1e-2)
    np.testing.assert_array_equal(fitted, fit_programs(changes, config, seed))


@pytest.mark.parametrize("k", [0, 21])
def test_more_programs_than_the_data_allow(k):
    with pytest.raises(InputError, match=r"programs\.k"):
        fit_programs(planted(rows=20)[1], ProgramsConfig(k=k), seed=0)


@pytest.mark.parametrize("method", ["nmf", "pca"])
def test_data_of_lower_rank_than_k(method):
    changes = np.outer(np.linspace(0.5, 1, 30), np.ones(20))  # one pattern only
    with pytest.raises(InputError):
        fit_programs(changes, ProgramsConfig(method=method, k=3, restarts=2), seed=0)


def test_check_rank_names_the_fault():
    good = np.eye(5, 3)
    check_rank(good, "W.npy")
    with pytest.raises(InputError, match="linearly dependent"):
        check_rank(np.concatenate([good, good[:, :1]], axis=1), "W.npy")
    with pytest.raises(InputError, match="without weight"):
        check_rank(good * [1, 0, 1], "W.npy")


def test_refitted_programs_keep_the_loadings_inside_a_set():
    loadings, changes = planted(noise=0.2)
    fitted = fit_programs(changes, ProgramsConfig(k=4, restarts=5), seed=0)
    assert np.diag(loadings.T @ fitted[:, (loadings.T @ fitted).argmax(1)]).min() > 0.97


def test_halves_are_the_changes_and_no_row_is_empty():
    changes = np.array([[1, -2], [0, 0], [3, 0]], np.float32)
    np.testing.assert_array_equal(halves(changes), [[1, 0], [3, 0], [0, 2]])


def test_the_planted_number_of_programs_is_chosen():
    rows, config = halves(planted(programs=5)[1].astype(np.float32)), ProgramsConfig(restarts=8)
    table, chosen = choose_k(rows, [7, 2, 4, 5, 6], config, seed=0)
    assert chosen == 5 and [row.k for row in table] == [2, 4, 5, 6, 7]
    error = [row.error for row in table]
    assert error[0] > error[1] > 0.05 > max(error[2:])
    silhouette = {row.k: row.silhouette for row in table}
    assert silhouette[5] > 0.95 > silhouette[7] + 0.05 and table[2].kept == 1


@pytest.mark.parametrize(
    ("ks", "restarts", "problem"),
    [([1, 3], 3, "--ks: the data allow 2 to 60"), ([2, 61], 3, "--ks"), ([2, 3], 1, r"--programs\.restarts")],
)
def test_numbers_of_programs_that_cannot_be_compared(ks, restarts, problem):
    with pytest.raises(InputError, match=problem):
        choose_k(halves(planted()[1]), ks, ProgramsConfig(restarts=restarts), seed=0)
