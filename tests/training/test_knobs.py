"""No knob of the memory is dead: two values of each change the predictions of test rows."""

import dataclasses

import numpy as np
import pytest
import torch

from mantra_ray.config import NexusConfig
from mantra_ray.nexus.cam import EMPTY
from mantra_ray.training import residual
from mantra_ray.training.residual import bucket_count, make_records, predict_residual, train_nexus

# A loaded memory (two records a slot), so that writing and eviction matter.
SMALL = NexusConfig(load=2.0, slots=4, regret_gamma=0.0, epochs=2, d_model=16, heads=2, top_programs=3, batch=32)


@pytest.fixture
def last_epoch(monkeypatch):
    """Takes the weights of the last epoch, so that what acts in training alone shows."""
    monkeypatch.setattr(residual, "chosen_epoch", lambda errors, *_: len(errors) - 1)


def corrections(fold, trained) -> np.ndarray:
    """Corrections of all rows in units of the residual, [N, K]."""
    return predict_residual(trained.model, trained.memory, trained.records).cpu().numpy() * trained.scale


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
