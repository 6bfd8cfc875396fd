"""Baselines: means by hand, no sight of held-out records, and planted effects found."""

import dataclasses

import numpy as np
import pytest

from mantra_ray.baselines import arms as arms_module
from mantra_ray.baselines import baseline_predictions
from mantra_ray.baselines.embedding import gene_embedding, random_embedding
from mantra_ray.forward import Fold

ARMS = {
    "zero", "mean", "state_mean", "state_mean_shrunk", "bias", "lookup", "lookup_context", "ridge",
    "ridge_interaction", "ridge_pca", "ridge_random", "residual_neighbours", "residual_memory", "gnn",
}  # fmt: skip


def make_fold(kind="strategy", by_regulator=1.0, by_context=0.0, noise=0.1, base=0.0, seed=0) -> Fold:
    """20 regulators x 2 states x 3 strategies; effects of a regulator, of its contexts, and of the base."""
    rng = np.random.default_rng(seed)
    regulator, state, strategy = (a.ravel() for a in np.meshgrid(*map(np.arange, (20, 2, 3)), indexing="ij"))
    n, genes, programs = len(regulator), 30, 5
    known = base * rng.normal(size=(n, genes))
    effect = by_regulator * rng.normal(size=(20, genes))[regulator]
    effect = effect + by_context * rng.normal(size=(20, 2, genes))[regulator, state]
    observed = (known + effect + noise * rng.normal(size=(n, genes))).astype(np.float32)
    loadings = rng.normal(size=(genes, programs)).astype(np.float32) / 5
    known, theta = known.astype(np.float32), rng.normal(size=(programs, 2)).astype(np.float32)
    if kind == "unseen":
        test = regulator >= 16
    elif kind == "context":
        test = (regulator >= 14) & (state == 1)
    else:
        test = strategy == rng.integers(0, 3, size=20)[regulator]
    return Fold(
        regulator=regulator,
        dose=np.full(n, 0.5, np.float32),
        state=state,
        strategy=strategy,
        group=np.arange(n),
        train=np.flatnonzero(~test),
        validation=np.array([], int),
        test=np.flatnonzero(test),
        cross_fit=np.zeros(n, int),
        regulator_class=np.full(20, -1),
        delta_program=observed @ loadings,
        program_noise=np.zeros((n, programs), np.float32),
        base_program=known @ loadings,
        lift=np.eye(programs, dtype=np.float32),
        trait_weights=theta,
        delta_trait=observed @ loadings @ theta,
        delta_expression=observed,
        base_expression=known,
        lift_expression=np.linalg.pinv(loadings),
        loadings=loadings,
        names={"regulator": [f"g{i}" for i in range(20)], "gene": [f"g{i}" for i in range(5, 35)]},
        meta={"kind": kind, "seed": seed},
    )


def errors_on_test(fold: Fold) -> dict[str, float]:
    return {
        name: float(np.square(p.program - fold.delta_program)[fold.test].mean())
        for name, p in baseline_predictions(fold, 0).items()
    }


@pytest.mark.parametrize("kind", ["seen", "strategy", "context", "unseen"])
def test_every_arm_predicts_all_rows_consistently(kind):
    fold = make_fold(kind, base=0.5)
    arms = baseline_predictions(fold, 0)
    assert set(arms) == ARMS
    for name, arm in arms.items():
        assert arm.program.shape == fold.delta_program.shape and np.isfinite(arm.program).all(), name
        assert arm.trait == pytest.approx(arm.program @ fold.trait_weights)
        # the same weights serve genes and programs, so programs of the predicted genes are the predicted programs
        assert arm.expression @ fold.loadings == pytest.approx(arm.program, abs=1e-4), name


@pytest.mark.parametrize("kind", ["strategy", "context", "unseen"])
def test_held_out_observations_are_never_used(kind):
    fold = make_fold(kind, by_context=0.5, base=0.5)
    changed = {name: getattr(fold, name).copy() for name in ("delta_program", "delta_expression", "delta_trait")}
    for value in changed.values():
        value[fold.test] = 1e3
    before, after = baseline_predictions(fold, 0), baseline_predictions(dataclasses.replace(fold, **changed), 0)
    for name in ARMS:
        assert (before[name].program == after[name].program).all(), name
        assert (before[name].expression == after[name].expression).all(), name


def test_a_fold_without_expression_or_traits():
    fold = make_fold()
    missing = dict.fromkeys(("delta_expression", "base_expression", "lift_expression", "loadings"))
    fold = dataclasses.replace(fold, **missing, trait_weights=np.zeros((5, 0), np.float32))
    arms = baseline_predictions(fold, 0)
    assert set(arms) == ARMS - {"ridge_pca", "ridge_random"}
    for arm in arms.values():
        assert arm.expression is None and arm.trait.shape == (len(fold.dose), 0)


def test_trait_arms_join_where_gene_effects_are_known():
    fold = make_fold(base=0.5)
    effects = {"gene_effect": np.ones((30, 2), np.float32), "gene_effect_se": np.ones((30, 2), np.float32)}
    arms = baseline_predictions(dataclasses.replace(fold, **effects, free_program=fold.base_program), 0)
    assert set(arms) == ARMS | {"trait_genes", "trait_program_mean", "trait_linear"}
    assert arms["trait_linear"].trait == pytest.approx(arms["gnn"].trait)


def test_predictions_do_not_depend_on_how_many_columns_are_taken_at_once(monkeypatch):
    fold = make_fold(base=0.5)
    whole = dict(baseline_predictions(fold, 0))
    monkeypatch.setattr(arms_module, "COLUMNS", 7)
    for name, arm in baseline_predictions(fold, 0).items():
        assert arm.expression == pytest.approx(whole[name].expression, abs=1e-5), name


def test_means_by_hand():
    fold = make_fold("unseen", base=0.5)
    arms, train, row = baseline_predictions(fold, 0), fold.train, fold.test[0]
    observed = fold.delta_program
    same_state = train[fold.state[train] == fold.state[row]]
    assert not arms["zero"].program.any()
    assert arms["mean"].program[row] == pytest.approx(observed[train].mean(0), abs=1e-5)
    assert arms["state_mean"].program[row] == pytest.approx(observed[same_state].mean(0), abs=1e-5)
    shrunk = observed[same_state].sum(0) / (len(same_state) + 4)
    assert arms["state_mean_shrunk"].program[row] == pytest.approx(shrunk, abs=1e-5)
    bias = fold.base_program[row] + fold.residual[train].mean(0)
    assert arms["bias"].program[row] == pytest.approx(bias, abs=1e-5)
    assert (arms["gnn"].program == fold.base_program).all()


def test_a_planted_regulator_effect_is_found():
    error = errors_on_test(make_fold(by_regulator=1.0))
    for name in ("lookup", "lookup_context", "ridge", "ridge_interaction", "residual_memory", "residual_neighbours"):
        assert error[name] < 0.1 * error["zero"], name


def test_a_planted_context_effect_is_found_by_the_arms_that_model_it():
    error = errors_on_test(make_fold(by_regulator=0.3, by_context=1.0))
    for name in ("lookup_context", "ridge_interaction", "residual_memory"):
        assert error[name] < 0.15 * error["zero"], name
        assert error[name] < 0.5 * min(error["lookup"], error["ridge"]), name


@pytest.mark.parametrize("kind", ["strategy", "context"])
def test_noise_is_shrunk_away(kind):
    error = errors_on_test(make_fold(kind, by_regulator=0.0, noise=1.0))
    for name in ("lookup", "ridge", "ridge_interaction", "residual_memory", "residual_neighbours"):
        assert error[name] < 1.15 * error["zero"], name


def test_residual_arms_keep_what_the_base_explains():
    error = errors_on_test(make_fold(by_regulator=0.5, base=2.0))
    assert error["residual_neighbours"] < 0.2 * error["gnn"] < 0.2 * error["lookup"]


def test_arms_of_the_regulator_are_silent_for_an_unseen_one():
    fold = make_fold("unseen")
    arms = baseline_predictions(fold, 0)
    for name in ("lookup", "lookup_context", "residual_memory"):
        assert not arms[name].program[fold.test].any()


def test_gene_embedding_carries_effects_over_to_unseen_regulators():
    """Genes load on few factors; a regulator's effect is set by the factors of its own gene."""
    rng = np.random.default_rng(0)
    genes, factors = 60, 3
    factor = rng.normal(size=(genes, factors))
    regulator = np.repeat(np.arange(40), 3)
    effect = factor[regulator] @ rng.normal(size=(factors, factors)) @ factor.T
    observed = (effect + 0.1 * rng.normal(size=effect.shape)).astype(np.float32)
    loadings = rng.normal(size=(genes, 5)).astype(np.float32) / 8
    test = regulator >= 30
    zeros = np.zeros(len(regulator), int)
    fold = dataclasses.replace(
        make_fold("unseen"),
        regulator=regulator,
        state=zeros,
        strategy=zeros,
        dose=np.ones(len(regulator), np.float32),
        train=np.flatnonzero(~test),
        test=np.flatnonzero(test),
        delta_expression=observed,
        base_expression=np.zeros_like(observed),
        delta_program=observed @ loadings,
        base_program=np.zeros((len(regulator), 5), np.float32),
        names={"regulator": [f"g{i}" for i in range(40)], "gene": [f"g{i}" for i in range(60)]},
    )
    error = errors_on_test(fold)
    assert error["ridge_pca"] < 0.2 * error["zero"]
    assert error["ridge_random"] > 0.6 * error["zero"]


def test_regulators_that_are_not_measured_have_no_embedding():
    embedding = gene_embedding(make_fold(), 4, 0)
    assert not embedding[:5].any() and embedding[5:].any(1).all()
    assert np.square(embedding[5:]).sum(1).mean() == pytest.approx(1)
    control = random_embedding(embedding, 0)
    assert (control.any(1) == embedding.any(1)).all() and np.square(control[5:]).sum(1).mean() == pytest.approx(1)
