"""Cross-fitted residuals are what the base leaves on new records; in-sample ones are not, and mislead the memory."""

import dataclasses

import numpy as np
import pytest

from mantra_ray.cascade.ridge import design, fit_ridge
from mantra_ray.config import LAPTOP, ExperimentConfig, GrnConfig, NexusConfig, SimulationConfig
from mantra_ray.data.simulate import simulate
from mantra_ray.evaluation.statistics import nested_difference, nested_gain
from mantra_ray.forward import Fold
from mantra_ray.training.nexus import train_nexus
from mantra_ray.training.stages import make_folds

REGULATORS, FOLDS, SEEDS = 60, 2, 3


@pytest.fixture(scope="module")
def folds(tmp_path_factory) -> list[Fold]:
    """A simulated screen of programs alone, so that the base is a ridge, which trains at once; one fold a seed."""
    simulated, _ = simulate(SimulationConfig(regulators=REGULATORS, genes=100, programs=8, idiosyncratic_share=1.0))
    loadings = np.linalg.svd(simulated.data.delta_expression, full_matrices=False)[2][:8].T
    program = (simulated.data.delta_expression @ loadings).astype(np.float32)
    bare = {"delta_expression": None, "delta_expression_se": None, "gene_names": ()}
    data = dataclasses.replace(simulated.data, **bare, delta_program=program)
    screen = dataclasses.replace(simulated, data=data, loadings=None, graph=None, traits={}, program_names=())
    grn = GrnConfig(folds=FOLDS, calibrate=False)
    experiments = [ExperimentConfig(grn=grn, seed=seed) for seed in range(SEEDS)]
    paths = make_folds(screen, experiments, tmp_path_factory.mktemp("folds"), workers=1, gpus=0)
    return [Fold.load(path) for path in paths.values()]


def in_sample(fold: Fold) -> np.ndarray:
    """Residuals [N, K] of the training rows under the models that trained on them."""
    features = design(fold.regulator, fold.dose, fold.state, REGULATORS, 2)
    residual, models = fold.residual.copy(), 0 * fold.delta_program
    for part in range(FOLDS):
        rows = fold.train[fold.cross_fit[fold.train] != part]
        models[rows] += fit_ridge(features[rows], fold.delta_program[rows]).predict(features[rows]) / (FOLDS - 1)
    residual[fold.train] = (fold.delta_program - models)[fold.train]
    return residual


def size(residual: np.ndarray, rows: np.ndarray) -> float:
    return float(np.sqrt(np.square(residual[rows]).mean()))


def test_in_sample_residuals_are_too_small_and_cross_fitted_ones_are_those_of_new_records(folds):
    for fold in folds:
        cross_fitted, own, new = (
            size(*pair)
            for pair in ((fold.residual, fold.train), (in_sample(fold), fold.train), (fold.residual, fold.test))
        )
        assert own < 0.75 * cross_fitted and own < 0.75 * new
        assert cross_fitted == pytest.approx(new, rel=0.25)


def test_a_memory_trained_on_in_sample_residuals_gains_less(folds):
    config = NexusConfig(**LAPTOP, epochs=4)
    rows = {"cross": [], "own": [], "base": [], "regulator": [], "seed": []}
    for seed, fold in enumerate(folds):
        for name, residual in (("cross", None), ("own", in_sample(fold))):
            predicted = train_nexus(fold, config, seed, residual=residual).predict(fold).program
            rows[name].append(np.square(predicted - fold.delta_program)[fold.test].mean(1))
        rows["base"].append(np.square(fold.residual)[fold.test].mean(1))
        rows["regulator"].append(fold.regulator[fold.test])
        rows["seed"].append(np.full(len(fold.test), seed))
    rows = {name: np.concatenate(values) for name, values in rows.items()}
    gain, too_small = (nested_gain(rows[n], rows["base"], rows["regulator"], rows["seed"]) for n in ("cross", "own"))
    assert gain.lower > 0.03 and too_small.value < 0.5 * gain.value
    assert nested_difference(rows["own"], rows["cross"], rows["regulator"], rows["seed"]).lower > 0
