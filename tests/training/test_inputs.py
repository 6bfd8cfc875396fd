"""From a fold to the memory's records: what comes from training rows, and the space that errors are judged in."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.config import LAPTOP, NexusConfig
from mantra_ray.errors import InputError
from mantra_ray.training.inputs import make_inputs

CONFIG = NexusConfig(**LAPTOP, buckets=32, slots=8, top_programs=3)
GENES = dataclasses.replace(CONFIG, correct="genes", top_genes=2)
EXPRESSION = ("delta_expression", "base_expression", "lift_expression", "loadings")


def wild(fold, rows):
    """The fold with all that is observed of some rows replaced by noise."""
    rng, changes = np.random.default_rng(9), {}
    for name in ("delta_program", "program_noise", "delta_trait", "delta_expression"):
        array = getattr(fold, name).copy()
        array[rows] = np.abs(rng.normal(size=array[rows].shape)) * 50
        changes[name] = array
    return dataclasses.replace(fold, **changes)


@pytest.mark.parametrize("config", [CONFIG, GENES])
def test_edges_and_scale_come_from_training_rows(planted, config):
    fold = planted(manifold=False)
    held_out = np.concatenate([fold.validation, fold.test])
    changed = dataclasses.replace(
        wild(fold, held_out), dose=np.where(np.isin(np.arange(len(fold.dose)), held_out), 0.01, fold.dose)
    )
    inputs, blind = make_inputs(fold, config), make_inputs(changed, config)
    assert blind.vocabulary == inputs.vocabulary and blind.scale == inputs.scale and blind.routes == inputs.routes
    assert blind.space.genes == inputs.space.genes
    assert torch.equal(blind.records.content[fold.train], inputs.records.content[fold.train])
    assert torch.equal(blind.records.noise[fold.train], inputs.records.noise[fold.train])
    assert make_inputs(wild(fold, fold.train), config).vocabulary != inputs.vocabulary
    genes = config.correct == "genes"
    residual = fold.delta_expression - fold.base_expression if genes else fold.residual
    assert inputs.scale == pytest.approx(np.sqrt(np.mean(residual[fold.train] ** 2)), rel=1e-5)
    assert inputs.records.residual[fold.train].square().mean() == pytest.approx(1, rel=1e-5)
    assert inputs.records.known.tolist() == (fold.regulator < 20).tolist()


@pytest.mark.parametrize("config", [CONFIG, GENES])
def test_values_are_what_is_corrected_in_units_of_the_scale(planted, config):
    fold = planted(manifold=False)
    inputs = make_inputs(fold, config)
    genes = config.correct == "genes"
    base, observed = (fold.base_expression, fold.delta_expression) if genes else (fold.base_program, fold.delta_program)
    records, scale = inputs.records, inputs.scale
    np.testing.assert_allclose(records.base * scale, base, atol=1e-5)
    np.testing.assert_allclose((records.base + records.residual) * scale, observed, atol=1e-5)
    power = np.mean(fold.residual[fold.train] ** 2)  # of programs, whatever the values are
    np.testing.assert_allclose(records.noise, fold.program_noise.mean(1) / power, rtol=1e-4)


def test_other_residuals_take_the_place_of_the_folds_own(planted):
    fold = planted()
    other = np.random.default_rng(0).normal(scale=3, size=fold.residual.shape)
    inputs = make_inputs(fold, CONFIG, other)
    np.testing.assert_allclose(inputs.records.residual * inputs.scale, other, atol=1e-5)
    assert inputs.scale == pytest.approx(np.sqrt(np.mean(other[fold.train] ** 2)), rel=1e-5)
    assert torch.equal(inputs.records.content, make_inputs(fold, CONFIG).records.content)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_errors_of_programs_are_judged_after_the_manifold(planted, seed):
    fold, rng = planted(), np.random.default_rng(seed)
    inputs = make_inputs(fold, CONFIG)
    correction = rng.normal(size=fold.residual.shape).astype(np.float32)
    found = inputs.space.error(inputs.records.residual, torch.from_numpy(correction))
    expected = np.square(fold.residual / inputs.scale - correction @ fold.lift).mean(1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_errors_of_genes_are_those_of_genes_and_of_programs_by_halves(planted, seed):
    fold, rng = planted(seed=1, manifold=False), np.random.default_rng(seed)
    inputs, count = make_inputs(fold, GENES), fold.loadings.shape[0]
    correction = rng.normal(size=(len(fold.regulator), count)).astype(np.float32)
    found = inputs.space.error(inputs.records.residual, torch.from_numpy(correction)).numpy()
    left = inputs.records.residual.numpy() - correction
    of_genes, of_programs = np.square(left).sum(1), np.square(left @ fold.loadings).sum(1)
    residual = inputs.records.residual.numpy()[fold.train]
    shares = [np.square(residual).sum(1).mean(), np.square(residual @ fold.loadings).sum(1).mean()]
    halves = (of_genes / shares[0] + of_programs / shares[1]) / 2
    np.testing.assert_allclose(found, halves, rtol=1e-3)
    observed = inputs.space.observed(inputs.records.residual)[fold.train]
    assert observed[:, :count].square().sum(1).mean() == pytest.approx(
        float(observed[:, count:].square().sum(1).mean()), rel=1e-3
    )
    assert observed.square().mean() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("routing", ["regulator", "class", "levels", "hash", "random"])
def test_buckets_are_those_of_the_routes(planted, routing):
    fold = planted(classes=5)
    inputs = make_inputs(fold, dataclasses.replace(CONFIG, routing=routing))
    records, kind = inputs.records, torch.tensor(fold.regulator_class[fold.regulator])
    assert records.bucket.shape == (len(records), len(inputs.routes))
    for route, bucket in zip(inputs.routes, records.bucket.unbind(1), strict=True):
        assert torch.equal(bucket, route.bucket(torch.tensor(fold.regulator), kind, records.record))
    if routing == "class":
        assert inputs.routes[0].buckets == 6  # five classes, and one of those without


@pytest.mark.parametrize(
    ("change", "field"), [({"correct": "genes"}, "--nexus.correct"), ({"top_genes": 2}, "--nexus.top-genes")]
)
def test_genes_need_expression(planted, change, field):
    bare = dataclasses.replace(planted(manifold=False), **dict.fromkeys(EXPRESSION))
    with pytest.raises(InputError, match="no changes of expression") as caught:
        make_inputs(bare, dataclasses.replace(CONFIG, **change))
    assert caught.value.field == field


def test_genes_pass_no_manifold(planted):
    with pytest.raises(InputError, match="manifold"):
        make_inputs(planted(), GENES)


def test_hash_heads_need_as_many_primes(planted):
    with pytest.raises(InputError, match="primes") as caught:
        make_inputs(planted(), dataclasses.replace(CONFIG, routing="hash", hash_heads=9))
    assert (caught.value.field, caught.value.value) == ("--nexus.routing", "hash")
