"""Mode B on a synthetic fold: what training may see, what it gains, and which epoch it returns."""

import dataclasses

import numpy as np
import pytest
import torch

from mantra_ray.config import NexusConfig
from mantra_ray.evaluation.statistics import nested_gain
from mantra_ray.forward import predict
from mantra_ray.nexus.cam import EMPTY
from mantra_ray.training import residual
from mantra_ray.training.residual import chosen_epoch, make_records, predict_residual, train_nexus

# A loaded memory (two records a slot), so that writing and eviction matter.
SMALL = NexusConfig(load=2.0, slots=4, regret_gamma=0.0, epochs=2, d_model=16, heads=2, top_programs=3, batch=32)
ROOMY = dataclasses.replace(SMALL, load=0.0, buckets=32, slots=32)  # a bucket for each regulator


@pytest.fixture
def last_epoch(monkeypatch):
    """Takes the weights of the last epoch, so that what acts in training alone shows."""
    monkeypatch.setattr(residual, "chosen_epoch", lambda errors, *_: len(errors) - 1)


def corrections(fold, trained) -> np.ndarray:
    """Corrections of all rows in units of the residual, [N, K]."""
    return predict_residual(trained.model, trained.memory, trained.records).cpu().numpy() * trained.scale


def held(trained) -> set[int]:
    return set(trained.memory.record[trained.memory.record != EMPTY].tolist())


def same(trained, other) -> bool:
    """Whether two trained models are the same bit for bit, memories and all."""
    mine, theirs = trained.model.state_dict(), other.model.state_dict()
    return trained.memory.equals(other.memory) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_training_is_the_same_from_the_same_seed(planted, last_epoch):
    fold = planted()
    first, again, other = (train_nexus(fold, dataclasses.replace(SMALL, dropout=0.1), seed) for seed in (3, 3, 4))
    assert same(first, again) and first.curves == again.curves
    assert not same(first, other)


def test_curves_tell_of_every_epoch(planted):
    told = []
    trained = train_nexus(planted(), SMALL, 0, on_epoch=lambda epoch, metrics: told.append((epoch, metrics)))
    assert [epoch for epoch, _ in told] == [0, 1, 2]
    assert trained.curves == [{"epoch": e, "metric": m, "value": v} for e, metrics in told for m, v in metrics.items()]
    assert all({"validation_gain", "write_density", "occupancy", "evictions"} <= metrics.keys() for _, metrics in told)
    losses = [row["value"] for row in trained.curves if row["metric"] == "loss"]
    assert len(losses) == SMALL.epochs and np.isfinite(losses).all()


def test_evaluation_changes_nothing_and_rows_do_not_touch_each_other(planted):
    fold = planted()
    trained = train_nexus(fold, SMALL, 0)
    memory, weights = trained.memory.clone(), {n: t.clone() for n, t in trained.model.state_dict().items()}
    whole = predict_residual(trained.model, trained.memory, trained.records)
    order = torch.tensor(np.random.default_rng(0).permutation(len(whole)))
    shuffled = predict_residual(trained.model, trained.memory, trained.records.take(order))
    assert torch.allclose(shuffled, whole[order], atol=1e-5)
    for size in (1, 7):
        parts = [predict_residual(trained.model, trained.memory, trained.records.take(r)) for r in order.split(size)]
        assert torch.allclose(torch.cat(parts), whole[order], atol=1e-5)
    assert trained.memory.equals(memory)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trained.model.state_dict().items())
    assert torch.equal(predict_residual(trained.model, trained.memory, trained.records), whole)
    assert not whole.requires_grad


def test_the_memory_is_that_of_the_final_weights_on_the_training_rows(planted, last_epoch):
    fold = planted()
    trained = train_nexus(fold, ROOMY, 0)
    train = trained.records.take(torch.tensor(fold.train))
    keys = trained.model.stream(train).candidates.key
    for record, key in zip(train.record.tolist(), keys, strict=True):
        bucket = int(trained.records.bucket[record])
        slot = (trained.memory.record[bucket] == record).nonzero().flatten()
        if len(slot):
            assert torch.allclose(trained.memory.key[bucket, slot[0]], key, atol=1e-5)
    assert held(trained) <= set(fold.train.tolist()) and len(held(trained)) > 60


def test_an_empty_memory_leaves_the_base_bit_for_bit(planted):
    fold, rows = planted(), np.arange(10, 60)
    trained = train_nexus(fold, SMALL, 0)
    records = trained.records.take(torch.tensor(rows))
    correction = predict_residual(trained.model, trained.model.empty_memory(), records).numpy() * trained.scale
    prediction, base = predict(fold, rows, correction), predict(fold, rows)
    assert np.array_equal(prediction.program, fold.base_program[rows])
    assert np.array_equal(prediction.expression, fold.base_expression[rows])
    assert np.array_equal(prediction.trait, base.trait)


def test_an_unseen_regulator_in_a_bucket_of_its_own_is_left_alone(planted):
    fold = planted()
    found = corrections(fold, train_nexus(fold, ROOMY, 0))
    unseen = fold.regulator >= 20
    assert np.array_equal(found[unseen], np.zeros_like(found[unseen]))
    assert (np.abs(found[~unseen]).max(1) > 0).mean() > 0.9
    shared = corrections(fold, train_nexus(fold, SMALL, 0))  # in a bucket with others it reads those
    assert (np.abs(shared[unseen]).max(1) > 0).any()


def gain(fold, trained, rows):
    """Errors of the corrected and of the base's predictions on some rows."""
    left = fold.residual[rows] - corrections(fold, trained)[rows] @ fold.lift
    return np.square(left).mean(1), np.square(fold.residual[rows]).mean(1)


def test_a_planted_residual_is_gained_and_a_shuffled_one_is_not(planted):
    """Five folds, each with its own residuals and its own shuffle among the training rows."""
    config = dataclasses.replace(SMALL, load=0.0, buckets=8, slots=32, epochs=6)
    real, shuffled = [], []
    for seed in range(5):
        fold = planted(seed=seed)
        wrong = fold.residual.copy()
        wrong[fold.train] = wrong[np.random.default_rng(seed).permutation(fold.train)]
        rows = fold.test[fold.regulator[fold.test] < 20]
        for pool, given in ((real, None), (shuffled, wrong)):
            error, reference = gain(fold, train_nexus(fold, config, seed, residual=given), rows)
            pool.append((error, reference, fold.regulator[rows], np.full(len(rows), seed)))
    intervals = [
        nested_gain(*map(np.concatenate, zip(*pool, strict=True)), 1000, 0.95, rng_seed=0) for pool in (real, shuffled)
    ]
    assert intervals[0].lower > 0.3
    assert intervals[1].lower <= 0 and intervals[1].value < 0.05 < intervals[0].value


def test_without_a_residual_to_learn_nothing_is_gained(planted):
    errors = []
    for seed in range(3):
        fold = planted(seed=seed, effect=0.0)
        rows = fold.test[fold.regulator[fold.test] < 20]
        error, reference = gain(fold, train_nexus(fold, SMALL, seed), rows)
        errors.append((error, reference, fold.regulator[rows], np.full(len(rows), seed)))
    interval = nested_gain(*map(np.concatenate, zip(*errors, strict=True)), 1000, 0.95, rng_seed=0)
    assert interval.lower <= 0 and abs(interval.value) < 0.05


def wild(fold, rows):
    """The fold with all that is observed of some rows replaced by noise."""
    rng, changes = np.random.default_rng(9), {}
    for name in ("delta_program", "program_noise", "delta_trait", "delta_expression"):
        array = getattr(fold, name).copy()
        array[rows] = np.abs(rng.normal(size=array[rows].shape)) * 50
        changes[name] = array
    return dataclasses.replace(fold, **changes)


def test_what_is_observed_of_test_rows_never_reaches_the_model(planted, last_epoch):
    fold = planted()
    for config in (SMALL, dataclasses.replace(SMALL, gate_signal="residual")):
        trained, blind = train_nexus(fold, config, 0), train_nexus(wild(fold, fold.test), config, 0)
        assert same(trained, blind) and trained.curves == blind.curves and trained.scale == blind.scale
        assert np.array_equal(corrections(fold, trained), corrections(fold, blind))


def test_validation_rows_choose_the_epoch_and_do_nothing_else(planted, last_epoch):
    fold = planted()
    trained, blind = train_nexus(fold, SMALL, 0), train_nexus(wild(fold, fold.validation), SMALL, 0)
    assert same(trained, blind) and trained.curves != blind.curves
    assert not same(trained, train_nexus(wild(fold, fold.train[:1]), SMALL, 0))


def test_edges_and_scale_come_from_training_rows(planted):
    fold = planted()
    held_out = np.concatenate([fold.validation, fold.test])
    changed = dataclasses.replace(
        wild(fold, held_out), dose=np.where(np.isin(np.arange(len(fold.dose)), held_out), 0.01, fold.dose)
    )
    vocabulary, records, scale = make_records(fold, SMALL, fold.residual, "cpu")
    other, blind, other_scale = make_records(changed, SMALL, changed.residual, "cpu")
    assert other == vocabulary and other_scale == scale
    assert torch.equal(blind.content[fold.train], records.content[fold.train])
    assert make_records(wild(fold, fold.train), SMALL, fold.residual, "cpu")[0] != vocabulary
    assert scale == pytest.approx(np.sqrt(np.mean(fold.residual[fold.train] ** 2)), rel=1e-6)
    assert records.residual[fold.train].square().mean() == pytest.approx(1, rel=1e-5)
    assert records.known.tolist() == (fold.regulator < 20).tolist()


def test_the_heads_entropy_tells_regulators_apart_after_training(planted, last_epoch):
    fold = planted()
    trained = train_nexus(fold, dataclasses.replace(ROOMY, epochs=6, language_weight=1.0, language_share=1.0), 0)
    records = trained.records
    first = (fold.regulator < 20) & (fold.dose == fold.dose[0]) & (fold.state == 0)
    entropy = trained.model.stream(records.take(torch.tensor(first))).signal
    assert len(entropy) == 20 and entropy.std() > 1e-3  # nats; float noise is 1e-6
    assert (torch.pdist(entropy[:, None]) > 1e-5).float().mean() > 0.95


ERRORS = np.random.default_rng(0).normal(1.0, 0.3, 40)


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([ERRORS, ERRORS - 0.1, ERRORS - 0.4, ERRORS - 0.2], 2),  # clear on every record: the least one
        ([ERRORS, ERRORS + 0.1, ERRORS + 0.2, ERRORS + 0.3], 0),  # training only harms
        ([ERRORS, ERRORS, ERRORS], 0),  # nothing happened
        ([ERRORS, ERRORS - np.where(np.arange(40) % 2, 1.0, -0.9)], 0),  # a small mean difference of large noise
        ([ERRORS, ERRORS - np.where(np.arange(40) == 3, 1.0, -0.01)], 0),  # one lucky record
        ([ERRORS[:1], ERRORS[:1] - 0.5], 0),  # one record has no noise to judge by
    ],
)
def test_training_must_beat_its_start_by_more_than_noise(errors, expected):
    assert chosen_epoch(np.stack(errors)) == expected


def test_weights_of_the_chosen_epoch_are_returned(planted, monkeypatch):
    fold, trained = planted(), {}
    for epoch in range(SMALL.epochs + 1):
        monkeypatch.setattr(residual, "chosen_epoch", lambda errors, *_, epoch=epoch: epoch)
        trained[epoch] = train_nexus(fold, SMALL, 0)
        assert trained[epoch].diagnostics["epoch"] == epoch
        left = fold.residual - corrections(fold, trained[epoch]) @ fold.lift
        reached = 1 - np.square(left[fold.validation]).mean() / np.square(fold.residual[fold.validation]).mean()
        curve = {row["epoch"]: row["value"] for row in trained[epoch].curves if row["metric"] == "validation_gain"}
        assert curve[epoch] == pytest.approx(reached, abs=1e-4)
    assert not same(trained[0], trained[1]) and not same(trained[1], trained[2])
