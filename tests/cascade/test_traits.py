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
