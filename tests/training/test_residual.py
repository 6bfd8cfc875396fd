"""Mode B on a synthetic fold: what training may see, what moves a prediction, and what several workers agree on."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from mantra_ray.config import NexusConfig
from mantra_ray.evaluation.statistics import nested_gain
from mantra_ray.forward import predict
from mantra_ray.nexus.cam import EMPTY
from mantra_ray.training import residual
from mantra_ray.training.residual import bucket_count, chosen_epoch, make_records, predict_residual, train_nexus

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


# Two values of every knob: what is given differs from SMALL, or from SMALL with the second dict on top.
KNOBS = {
    "buckets": (dict(buckets=5), dict(load=0.0, buckets=9)),
    "slots": (dict(slots=3), dict(load=0.0, buckets=6)),
    "load": (dict(load=4.0), {}),
    "regret_gamma": (dict(regret_gamma=1.0), {}),
    "query_alpha": (dict(query_alpha=0.9), {}),
    "tau": (dict(tau=0.3), {}),
    "priming": (dict(priming=0), {}),
    "eviction": (dict(eviction="fifo"), {}),
    "surprisal_weight": (dict(surprisal_weight=0.0), {}),
    "rarity_weight": (dict(rarity_weight=0.0), {}),
    "novelty_weight": (dict(novelty_weight=0.0), {}),
    "ema": (dict(ema=0.3), dict(gate_signal="residual")),  # few records a token: only a signal that jumps shows it
    "gate_signal": (dict(gate_signal="residual"), {}),
    "hide_state": (dict(hide_state=0.0), {}),
    "hide_regulator": (dict(hide_regulator=0.6), {}),
    "top_programs": (dict(top_programs=5), {}),
    "magnitude_bins": (dict(magnitude_bins=3), {}),
    "dose_bins": (dict(dose_bins=2), {}),
    "d_model": (dict(d_model=8), {}),
    "layers": (dict(layers=2), {}),
    "heads": (dict(heads=4), {}),
    "dropout": (dict(dropout=0.3), {}),
    "epochs": (dict(epochs=3), {}),
    "batch": (dict(batch=16), {}),
    "learning_rate": (dict(learning_rate=3e-3), {}),
    "weight_decay": (dict(weight_decay=1.0), {}),
    "language_weight": (dict(language_weight=1.0), {}),
    "language_share": (dict(language_share=1.0), {}),
}
# These act on a memory whatever the weights: they must change it before any training.
OF_THE_MEMORY = ("slots", "regret_gamma", "query_alpha", "tau", "priming", "eviction", "ema", "gate_signal")
OF_THE_MEMORY += ("surprisal_weight", "rarity_weight", "novelty_weight")
STARTS = ("gate_prior", "transport")  # least squares on what the memory recalls
# These decide which records are held.
OF_WHAT_IS_HELD = ("buckets", "slots", "load", "regret_gamma", "priming", "eviction", "ema", "gate_signal")
OF_WHAT_IS_HELD += ("surprisal_weight", "rarity_weight", "novelty_weight")


def test_every_knob_is_among_those_that_are_tried():
    assert set(KNOBS) == {field.name for field in dataclasses.fields(NexusConfig)}


def tried(planted, knob, **changes):
    """The fold, two trained models that differ in one knob, and their corrections of the test rows."""
    fold = planted()
    here, base = KNOBS[knob]
    configs = [dataclasses.replace(SMALL, **changes | base | extra) for extra in ({}, here)]
    trained = [train_nexus(fold, config, 0) for config in configs]
    return fold, trained, [corrections(fold, t)[fold.test] for t in trained]


def held(trained) -> set[int]:
    return set(trained.memory.record[trained.memory.record != EMPTY].tolist())


@pytest.mark.parametrize("knob", sorted(KNOBS))
def test_no_knob_is_dead(planted, last_epoch, knob):
    _, trained, (one, other) = tried(planted, knob)
    assert np.abs(one - other).max() > 1e-3
    if knob in OF_WHAT_IS_HELD:
        assert held(trained[0]) != held(trained[1])


@pytest.mark.parametrize("knob", OF_THE_MEMORY)
def test_a_knob_of_the_memory_acts_without_any_training(planted, knob):
    fold, trained, (one, other) = tried(planted, knob, epochs=0)
    weights = [t.model.state_dict() for t in trained]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0] if n not in STARTS)
    assert np.abs(one - other)[fold.regulator[fold.test] < 20].max() > 1e-3


def test_tokens_follow_their_knobs(planted):
    """Bins and programs that change the vocabulary change what a record says, not only the draw of weights."""
    fold, seen = planted(), {}
    for name in ("dose_bins", "magnitude_bins", "top_programs"):
        for config in (SMALL, dataclasses.replace(SMALL, **KNOBS[name][0])):
            _, records, _ = make_records(fold, config, fold.residual, "cpu")
            kinds = [len(records.header[:, i].unique()) for i in range(3)]
            seen.setdefault(name, []).append((kinds, records.content.shape[1], len(records.content.unique())))
    assert seen["dose_bins"][0][0] == [24, 3, 2] and seen["dose_bins"][1][0] == [24, 2, 2]
    assert seen["magnitude_bins"][0][2] > seen["magnitude_bins"][1][2]
    assert [width for _, width, _ in seen["top_programs"]] == [4, 6]


@pytest.mark.parametrize(("load", "slots", "buckets"), [(2.0, 4, 11), (0.25, 32, 11), (1.0, 90, 1), (1000.0, 32, 1)])
def test_load_sets_the_number_of_buckets(load, slots, buckets):
    assert bucket_count(dataclasses.replace(SMALL, load=load, slots=slots), 90) == buckets
    assert bucket_count(dataclasses.replace(SMALL, load=0.0, buckets=77), 90) == 77


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


WORKER = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from mantra_ray.config import NexusConfig, unflatten
from mantra_ray.forward import Fold
from mantra_ray.training import residual

folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
residual.chosen_epoch = lambda errors, *_: len(errors) - 1
fold, found = Fold.load(folder / "fold.npz"), []
for values in torch.load(folder / "configs.pt"):
    trained = residual.train_nexus(fold, unflatten(NexusConfig, values), 0)
    found.append((vars(trained.memory), trained.curves, trained.model.state_dict()))
torch.save(found, folder / f"{rank}.pt")
dist.destroy_process_group()
"""
# 90 training records in batches of 32 and of 89: the last batch is even, and then a single record.
SHARED = [
    dataclasses.replace(SMALL, language_share=1.0),
    dataclasses.replace(SMALL, batch=89, language_share=1.0),
    dataclasses.replace(SMALL, batch=50),
    dataclasses.replace(SMALL, dropout=0.1),
]


@pytest.fixture(scope="module")
def two_workers(planted, tmp_path_factory):
    """What two gloo workers make of each configuration in SHARED, by rank."""
    folder = tmp_path_factory.mktemp("workers")
    planted().save(folder / "fold.npz")
    torch.save([dataclasses.asdict(config) for config in SHARED], folder / "configs.pt")
    (folder / "worker.py").write_text(WORKER)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, str(folder / "worker.py"), str(folder)]
    workers = [
        subprocess.Popen([*command, str(rank), "2"], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        told = [worker.communicate(timeout=120)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], told
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("number", range(len(SHARED)))
def test_every_worker_holds_the_same_memory_and_model(two_workers, number):
    (memory, curves, weights), (other_memory, other_curves, other_weights) = (found[number] for found in two_workers)
    assert all(torch.equal(memory[name], other_memory[name]) for name in memory)
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert curves == other_curves
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


# Dropout draws its masks on each worker, so that it is left out here.
@pytest.mark.parametrize("number", [0, 1, 2])
def test_two_workers_do_what_one_does(planted, last_epoch, two_workers, number):
    memory, curves, weights = two_workers[0][number]
    alone = train_nexus(planted(), SHARED[number], 0)
    for name in ("record", "token", "state"):
        assert torch.equal(memory[name], getattr(alone.memory, name)), name
    for name in ("key", "value", "mean"):
        assert torch.allclose(memory[name], getattr(alone.memory, name), atol=1e-3), name
    for name, tensor in alone.model.state_dict().items():
        assert torch.allclose(weights[name], tensor, atol=1e-3), name
    one, two = ({(r["epoch"], r["metric"]): r["value"] for r in rows} for rows in (alone.curves, curves))
    assert one.keys() == two.keys()
    assert [two[key] for key in one] == pytest.approx(list(one.values()), abs=1e-3)
