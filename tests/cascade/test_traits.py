import numpy as np
import pytest

from mantra_ray.cascade.traits import trait_weights
from mantra_ray.errors import InputError


def test_matches_least_squares_on_scaled_rows():
    rng = np.random.default_rng(0)
    loadings, b, se = rng.random((80, 4)), rng.standard_normal(80), rng.uniform(0.1, 1, 80)
    theta, _ = trait_weights(loadings, b, se)
    expected = np.linalg.lstsq(loadings / se[:, None], b / se, rcond=None)[0]
    np.testing.assert_allclose(theta, expected, rtol=1e-4)


def test_missing_genes_do_not_count():
    rng = np.random.default_rng(1)
    loadings, b, se = rng.random((50, 3)), rng.standard_normal(50), rng.uniform(0.1, 1, 50)
    b[:5], se[5:10] = np.nan, np.nan
    np.testing.assert_allclose(
        trait_weights(loadings, b, se)[0], trait_weights(loadings[10:], b[10:], se[10:])[0], rtol=1e-5
    )


def test_standard_errors_match_the_spread_of_estimates():
    rng = np.random.default_rng(2)
    loadings, truth, se = rng.random((60, 2)), np.array([1.0, -0.5]), rng.uniform(0.2, 0.6, 60)
    draws = [trait_weights(loadings, loadings @ truth + se * rng.standard_normal(60), se) for _ in range(400)]
    spread = np.std([theta for theta, _ in draws], axis=0)
    stated = np.mean([error for _, error in draws], axis=0)
    assert (np.abs(stated / spread - 1) < 0.2).all()


def test_unit_of_effects_does_not_matter():
    rng = np.random.default_rng(3)
    loadings, b, se = rng.random((40, 3)), rng.standard_normal(40), rng.uniform(0.1, 1, 40)
    np.testing.assert_allclose(
        trait_weights(loadings, 1e-4 * b, 1e-4 * se)[0], 1e-4 * trait_weights(loadings, b, se)[0], rtol=1e-4
    )


def test_dependent_programs_still_give_finite_weights():
    rng = np.random.default_rng(4)
    column = rng.random((40, 1))
    theta, error = trait_weights(np.concatenate([column, column], 1), column[:, 0], np.full(40, 0.1))
    np.testing.assert_allclose(theta.sum(), 1, atol=1e-3)
    assert np.isfinite(error).all()


def test_too_few_genes():
    with pytest.raises(InputError, match="3 programs"):
        trait_weights(np.eye(5, 3), np.array([1, 2, np.nan, np.nan, np.nan]), np.ones(5))


def planted(seed, genes=60, programs=20, noise=1.0, correlation=0.95):
    """Loadings of programs that share most of their genes, small true weights and noisy effects."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((genes, 1))
    loadings = correlation * shared + (1 - correlation) * rng.standard_normal((genes, programs))
    truth, se = 0.1 * rng.standard_normal(programs), noise * rng.uniform(0.5, 2, genes)
    return loadings, truth, loadings @ truth + se * rng.standard_normal(genes), se


def test_ridge_recovers_weights_better_where_programs_are_alike_and_effects_noisy():
    errors = {False: [], True: []}
    for seed in range(10):
        loadings, truth, b, se = planted(seed)
        for ridge in errors:
            errors[ridge].append(np.square(trait_weights(loadings, b, se, ridge)[0] - truth).mean())
    assert np.mean(errors[True]) < 0.2 * np.mean(errors[False])


def test_ridge_leaves_clear_effects_alone():
    loadings, truth, b, se = planted(0, genes=400, programs=4, noise=1e-3, correlation=0.0)
    (plain, plain_error), (shrunk, error) = (trait_weights(loadings, b, se, ridge) for ridge in (False, True))
    np.testing.assert_allclose(shrunk, plain, atol=1e-4)
    np.testing.assert_allclose(error, plain_error, rtol=0.02)
    np.testing.assert_allclose(shrunk, truth, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_ridge_penalty_is_that_of_least_error_on_genes_left_out(seed):
    loadings, _, b, se = planted(seed, genes=30, programs=5, correlation=0.5)
    root, scale = 1 / se, np.mean(1 / se**2)
    x, y = loadings * root[:, None], b * root
    unit = np.trace(x.T @ x) / 5

    def fit(rows, penalty):
        return np.linalg.solve(x[rows].T @ x[rows] + penalty * unit * np.eye(5), x[rows].T @ y[rows])

    def left_out(penalty):
        return sum((y[i] - x[i] @ fit(np.arange(30) != i, penalty)) ** 2 for i in range(30)) / scale

    best = min(10.0 ** np.arange(-6, 5), key=left_out)
    np.testing.assert_allclose(trait_weights(loadings, b, se, True)[0], fit(np.ones(30, bool), best), rtol=1e-4)


def test_ridge_errors_match_the_spread_of_estimates():
    loadings, truth, _, se = planted(1, genes=80, programs=3, correlation=0.5)
    rng = np.random.default_rng(0)
    fits = [trait_weights(loadings, loadings @ truth + se * rng.standard_normal(80), se, True) for _ in range(300)]
    stated = np.sqrt(np.mean([error**2 for _, error in fits], axis=0))
    spread = np.std([theta for theta, _ in fits], axis=0)
    assert (stated < 1.6 * spread).all() and (stated > 0.5 * spread).all()


def test_ridge_does_not_depend_on_units():
    loadings, _, b, se = planted(2, genes=40, programs=3, correlation=0.5)
    (theta, error), (small, small_error) = (trait_weights(loadings, u * b, u * se, True) for u in (1, 1e-4))
    np.testing.assert_allclose(small, 1e-4 * theta, rtol=1e-4)
    np.testing.assert_allclose(small_error, 1e-4 * error, rtol=1e-4)
