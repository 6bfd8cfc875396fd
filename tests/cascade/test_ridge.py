import numpy as np

from mantra_ray.cascade.ridge import design, fit_ridge


def test_design_tells_regulators_states_and_doses_apart():
    features = design(np.array([0, 1]), np.array([0.5, 1.0]), np.array([1, 0]), regulators=2, states=2)
    np.testing.assert_array_equal(features, [[1, 0, 0.5, 0, 0, 1, 0.5], [0, 1, 0, 1, 1, 0, 1]])


def test_ridge_recovers_an_additive_effect_of_regulator_and_shrinks_noise():
    rng = np.random.default_rng(0)
    regulator, state = np.repeat(np.arange(6), 10), rng.integers(0, 2, 60)
    features = design(regulator, np.ones(60), state, 6, 2)
    effect = rng.standard_normal((6, 3))
    model = fit_ridge(features, effect[regulator] + 0.01 * rng.standard_normal((60, 3)))
    np.testing.assert_allclose(model.predict(features), effect[regulator], atol=0.05)
    noise = rng.standard_normal((60, 3))
    assert np.square(fit_ridge(features, noise).predict(features)).mean() < 0.1 * np.square(noise).mean()
