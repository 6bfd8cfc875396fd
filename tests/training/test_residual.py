"""Mode B on a synthetic fold: what training may see, what it gains, and which epoch it returns."""

import dataclasses

import numpy as np
import pytest
import torch

from mantra_ray.config import LAPTOP, NexusConfig
from mantra_ray.evaluation.statistics import nested_gain
from mantra_ray.forward import predict
from mantra_ray.nexus.adapter import trimmed
from mantra_ray.nexus.cam import EMPTY
from mantra_ray.training import residual
from mantra_ray.training.nexus import train_nexus
from mantra_ray.training.residual import chosen_epoch, read_only
from mantra_ray.training.state import TIMED

SIZE = LAPTOP | {"d_model": 16, "heads": 2, "top_programs": 3, "batch": 32}
# A loaded memory (two records a slot), so that writing and eviction matter.
SMALL = NexusConfig(**SIZE, load=2.0, slots=4, regret_gamma=0.0, epochs=2)
ROOMY = dataclasses.replace(SMALL, load=0.0, buckets=32, slots=32)  # a bucket for each regulator


def held(trained) -> set[int]:
    (memory,) = trained.memories
    return set(memory.record[memory.record != EMPTY].tolist())


def same(trained, other) -> bool:
    """Whether two trained models are the same bit for bit, memories and all."""
    mine, theirs = trained.model.state_dict(), other.model.state_dict()
    held = (one.equals(two) for one, two in zip(trained.memories, other.memories, strict=True))
    return all(held) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_training_is_the_same_from_the_same_seed(planted, last_epoch):
    fold = planted()
    first, again, other = (train_nexus(fold, dataclasses.replace(SMALL, dropout=0.1), seed) for seed in (3, 3, 4))
    assert same(first, again) and first.curves == again.curves
    assert not same(first, other)


def test_curves_tell_of_every_epoch(planted):
    told = []
    trained = train_nexus(planted(), SMALL, 0, on_epoch=lambda epoch, metrics: told.append((epoch, metrics)))
    assert [epoch for epoch, _ in told] == [0, 1, 2]
    rows = [(e, m, v) for e, metrics in told for m, v in metrics.items() if m not in TIMED]
    assert trained.curves == [{"epoch": e, "metric": m, "value": v} for e, m, v in rows]
    every = {"validation_gain", "write_density", "occupancy", "evictions", "records_per_second", "hard_hit_rate"}
    every |= {"gate_mean", "sim_max_mean", "read_entropy"}
    assert all(every == metrics.keys() - {"loss"} and np.isfinite(list(metrics.values())).all() for _, metrics in told)
    assert all(0 < m["gate_mean"] < 2 and m["read_entropy"] >= 0 and m["records_per_second"] > 0 for _, m in told)
    losses = [row["value"] for row in trained.curves if row["metric"] == "loss"]
    assert len(losses) == SMALL.epochs and np.isfinite(losses).all()


@pytest.mark.parametrize("routing", ["regulator", "class", "levels", "hash"])
def test_evaluation_changes_nothing_and_rows_do_not_touch_each_other(planted, routing):
    fold = planted(classes=4)
    trained = train_nexus(fold, dataclasses.replace(SMALL, routing=routing), 0)
    records, memories = trained.inputs.records, tuple(memory.clone() for memory in trained.memories)
    weights = {n: t.clone() for n, t in trained.model.state_dict().items()}
    whole = read_only(trained.model, trained.memories, records).value
    order = torch.tensor(np.random.default_rng(0).permutation(len(whole)))
    shuffled = read_only(trained.model, trained.memories, records.take(order)).value
    assert torch.allclose(shuffled, whole[order], atol=1e-5)
    for size in (1, 7):
        parts = [read_only(trained.model, trained.memories, records.take(r)).value for r in order.split(size)]
        assert torch.allclose(torch.cat(parts), whole[order], atol=1e-5)
    assert all(memory.equals(before) for memory, before in zip(trained.memories, memories, strict=True))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trained.model.state_dict().items())
    assert torch.equal(read_only(trained.model, trained.memories, records).value, whole)
    assert not whole.requires_grad
    np.testing.assert_allclose(trained.corrections(), whole.numpy() * trained.inputs.scale, atol=1e-5)


def test_the_memory_is_that_of_the_final_weights_on_the_training_rows(planted, last_epoch):
    fold = planted()
    trained = train_nexus(fold, ROOMY, 0)
    train, (memory,) = trained.inputs.records.take(torch.tensor(fold.train)), trained.memories
    keys = trained.model.streams(train)[0].candidates.key
    for record, key in zip(train.record.tolist(), keys, strict=True):
        bucket = int(trained.inputs.records.bucket[record])
        slot = (memory.record[bucket] == record).nonzero().flatten()
        if len(slot):
            assert torch.allclose(memory.key[bucket, slot[0]], key, atol=1e-5)
    assert held(trained) <= set(fold.train.tolist()) and len(held(trained)) > 60


def test_batches_read_what_the_epochs_warming_wrote_and_write_nothing(planted, monkeypatch):
    """Reading comes before writing, whatever the size of a batch."""
    epoch, batches = residual.Regression.epoch, []

    def watched(self, memories, draw):
        model, train = self.model, self.train
        before, warmed = tuple(memory.clone() for memory in memories), trimmed(model.warm(train)[0])
        assert all(memory.equals(other) for memory, other in zip(memories, warmed, strict=True))
        model.register_forward_pre_hook(lambda module, inputs: batches.append((inputs[0], len(inputs[1]))))
        loss = epoch(self, memories, draw)
        assert all(memory.equals(other) for memory, other in zip(memories, before, strict=True))
        assert all(one.key is memory.key for read, _ in batches for one, memory in zip(read, memories, strict=True))
        assert sum(rows for _, rows in batches) == len(train)
        return loss

    monkeypatch.setattr(residual.Regression, "epoch", watched)
    train_nexus(planted(), dataclasses.replace(SMALL, epochs=1, batch=50), 0)
    assert [rows for _, rows in batches][:2] == [50, 40]


@pytest.mark.parametrize("correct", ["programs", "genes"])
@pytest.mark.parametrize("routing", ["regulator", "class", "levels", "hash"])
def test_an_empty_memory_leaves_the_base_bit_for_bit(planted, routing, correct):
    fold, everything = planted(classes=4, manifold=False), np.arange(144)
    trained = train_nexus(fold, dataclasses.replace(SMALL, routing=routing, correct=correct), 0)
    prediction, base = trained.predict(fold, trained.model.empty_memory()), predict(fold, everything)
    assert np.array_equal(prediction.program, fold.base_program)
    assert np.array_equal(prediction.expression, fold.base_expression)
    assert np.array_equal(prediction.trait, base.trait)
    read = trained.predict(fold)
    assert np.abs(read.program - fold.base_program).max() > 1e-2
    assert np.abs(read.expression - fold.base_expression).max() > 1e-2


def test_an_unseen_regulator_in_a_bucket_of_its_own_is_left_alone(planted):
    fold = planted()
    found = train_nexus(fold, ROOMY, 0).corrections()
    unseen = fold.regulator >= 20
    assert np.array_equal(found[unseen], np.zeros_like(found[unseen]))
    assert (np.abs(found[~unseen]).max(1) > 0).mean() > 0.9
    shared = train_nexus(fold, SMALL, 0).corrections()  # in a bucket with others it reads those
    assert (np.abs(shared[unseen]).max(1) > 0).any()


def gain(fold, trained, rows):
    """Errors of the corrected and of the base's predictions on some rows."""
    left = fold.residual[rows] - trained.corrections()[rows] @ fold.lift
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


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gate_signal": "residual"},
        {"mode": "language", "window": 50},
        {"correct": "genes", "top_genes": 3},
        {"routing": "class"},
        {"routing": "levels"},
        {"routing": "hash"},
    ],
)
def test_what_is_observed_of_test_rows_never_reaches_the_model(planted, last_epoch, changes):
    fold, config = planted(classes=4, manifold=False), dataclasses.replace(SMALL, **changes)
    trained, blind = train_nexus(fold, config, 0), train_nexus(wild(fold, fold.test), config, 0)
    assert same(trained, blind) and trained.curves == blind.curves and trained.inputs.scale == blind.inputs.scale
    assert np.array_equal(trained.corrections(), blind.corrections())


def test_validation_rows_choose_the_epoch_and_do_nothing_else(planted, last_epoch):
    fold = planted()
    trained, blind = train_nexus(fold, SMALL, 0), train_nexus(wild(fold, fold.validation), SMALL, 0)
    assert same(trained, blind) and trained.curves != blind.curves
    assert not same(trained, train_nexus(wild(fold, fold.train[:1]), SMALL, 0))


def test_the_heads_entropy_tells_regulators_apart_after_training(planted, last_epoch):
    fold = planted()
    trained = train_nexus(fold, dataclasses.replace(ROOMY, epochs=6, language_weight=1.0, language_share=1.0), 0)
    records = trained.inputs.records
    first = (fold.regulator < 20) & (fold.dose == fold.dose[0]) & (fold.state == 0)
    entropy = trained.model.streams(records.take(torch.tensor(first)))[0].signal
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
        left = fold.residual - trained[epoch].corrections() @ fold.lift
        reached = 1 - np.square(left[fold.validation]).mean() / np.square(fold.residual[fold.validation]).mean()
        curve = {row["epoch"]: row["value"] for row in trained[epoch].curves if row["metric"] == "validation_gain"}
        assert curve[epoch] == pytest.approx(reached, abs=1e-4)
    assert not same(trained[0], trained[1]) and not same(trained[1], trained[2])
