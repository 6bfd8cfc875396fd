"""What a fold holds for the judging of traits and of genes."""

import dataclasses

import numpy as np
import pytest

from mantra_ray.baselines import baseline_predictions
from mantra_ray.evaluation.differential import significant_genes
from mantra_ray.fields import replace
from mantra_ray.forward import Fold
from mantra_ray.training import stages
from mantra_ray.training.distributed import save_unit, train_unit
from mantra_ray.training.traits import gene_effects


@pytest.fixture
def make(monkeypatch, tmp_path):
    """Makes a screen's fold in this process, without Ray."""

    def run(records, units, workers, gpus, storage, on_progress):
        for unit in units:
            save_unit(unit, train_unit(records, unit))

    monkeypatch.setattr(stages, "run_units", run)

    def made(screen, experiment) -> Fold:
        (path,) = stages.make_folds(screen, [experiment], tmp_path, workers=1, gpus=0).values()
        return Fold.load(path)

    return made


def test_a_fold_holds_gene_effects_and_the_base_before_the_manifold(screen, experiment, make):
    fold = make(screen, replace(experiment, **{"manifold.smooth": True}))
    place = [screen.data.gene_names.index(name) for name in fold.names["gene"]]
    assert fold.gene_effect[:, 0].tolist() == screen.traits["height"].b[place].tolist()
    assert fold.gene_effect_se[:, 0].tolist() == screen.traits["height"].se[place].tolist()
    assert fold.free_program.shape == fold.base_program.shape
    assert np.abs(fold.free_program - fold.base_program).max() > 1e-4
    arms = set(baseline_predictions(fold, 0))
    assert {"trait_genes", "trait_program_mean", "trait_linear"} <= arms


def test_significant_genes_are_those_of_the_kept_genes(screen, experiment, make):
    fold = make(screen, experiment)
    expected = significant_genes(fold.delta_expression, np.full(fold.delta_expression.shape, 0.05))
    assert (fold.significant == expected).all() and 0 < expected.mean() < 1
    assert fold.free_program is None  # no manifold
    assert "trait_linear" not in baseline_predictions(fold, 0)


def test_what_a_screen_lacks_is_none(screen, experiment, make):
    data = dataclasses.replace(screen.data, delta_expression_se=None)
    fold = make(dataclasses.replace(screen, data=data, traits={}, sha256="1" * 64), experiment)
    assert fold.significant is None and fold.gene_effect is None and fold.gene_effect_se is None
    assert gene_effects(dataclasses.replace(screen, traits={}), np.arange(3))["gene_effect"] is None
