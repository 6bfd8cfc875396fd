"""No knob of the memory is dead: two values of each change the predictions of test rows."""

import dataclasses

import numpy as np
import pytest
import torch

from mantra_ray.config import LAPTOP, NexusConfig
from mantra_ray.nexus.cam import EMPTY
from mantra_ray.training import recursive
from mantra_ray.training.inputs import make_inputs
from mantra_ray.training.nexus import train_nexus
from mantra_ray.training.recursive import train_memory

SIZE = LAPTOP | {"d_model": 16, "heads": 2, "top_programs": 3, "batch": 32}
# A loaded memory (two records a slot), so that writing and eviction matter.
SMALL = NexusConfig(**SIZE, load=2.0, slots=4, regret_gamma=0.0, epochs=2)


# Two values of every knob: what is given differs from SMALL, or from SMALL with the second dict on top.
KNOBS = {
    "mode": (dict(mode="language"), {}),
    "correct": (dict(correct="genes"), {}),
    "routing": (dict(routing="class"), {}),
    "hash_heads": (dict(hash_heads=3), dict(routing="hash", load=1.0)),
    "pathway_gamma": (dict(pathway_gamma=1.0), dict(routing="levels")),
    "buckets": (dict(buckets=5), dict(load=0.0, buckets=9)),
    "slots": (dict(slots=3), dict(load=0.0, buckets=6)),
    "load": (dict(load=4.0), {}),
    "regret_gamma": (dict(regret_gamma=1.0), {}),
    "query_alpha": (dict(query_alpha=0.9), {}),
    "tau": (dict(tau=0.3), {}),
    "read": (dict(read="soft"), {}),
    "transport": (dict(transport="none"), {}),
    "start": (dict(start="plain"), {}),
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
    "top_genes": (dict(top_genes=3), {}),
    "magnitude_bins": (dict(magnitude_bins=3), {}),
    "dose_bins": (dict(dose_bins=2), {}),
    "d_model": (dict(d_model=8), {}),
    "layers": (dict(layers=2), {}),
    "heads": (dict(heads=4), {}),
    "window": (dict(window=12), dict(mode="language", window=30)),  # longer and shorter than a few records
    "precision": (dict(precision="bfloat16"), dict(precision="float32", query_alpha=1.0)),  # hidden states alone
    "dropout": (dict(dropout=0.3), {}),
    "epochs": (dict(epochs=3), {}),
    "language_epochs": (dict(language_epochs=3), dict(mode="language", language_epochs=1)),
    "batch": (dict(batch=16), {}),
    "learning_rate": (dict(learning_rate=3e-3), {}),
    "weight_decay": (dict(weight_decay=1.0), {}),
    "language_weight": (dict(language_weight=1.0), {}),
    "language_share": (dict(language_share=1.0), {}),
}
# These act on a memory whatever the weights: they must change it before any training.
OF_THE_MEMORY = ("slots", "regret_gamma", "query_alpha", "tau", "priming", "eviction", "ema", "gate_signal")
OF_THE_MEMORY += ("surprisal_weight", "rarity_weight", "novelty_weight", "pathway_gamma")
ROUTINGS = ("regulator", "class", "levels", "hash", "random")
STARTS = ("gate_prior", "transport")  # least squares on what the memory recalls
# These decide which records are held.
OF_WHAT_IS_HELD = ("buckets", "slots", "load", "regret_gamma", "priming", "eviction", "ema", "gate_signal")
OF_WHAT_IS_HELD += ("surprisal_weight", "rarity_weight", "novelty_weight", "routing", "hash_heads", "pathway_gamma")


def test_every_knob_is_among_those_that_are_tried():
    fields = {field.name for field in dataclasses.fields(NexusConfig)}
    assert set(KNOBS) == fields - {"correction"}  # which needs networks beside the fold


def tried(planted, knob, **changes):
    """The fold, two trained models that differ in one knob, and what they add to programs of the test rows."""
    fold = planted(classes=4, manifold=knob != "correct")  # a correction of genes passes no manifold
    here, base = KNOBS[knob]
    configs = [dataclasses.replace(SMALL, **changes | base | extra) for extra in ({}, here)]
    trained = [train_nexus(fold, config, 0) for config in configs]
    return fold, trained, [(t.predict(fold).program - fold.base_program)[fold.test] for t in trained]


def held(trained) -> list[set[int]]:
    """Records that each manifold holds."""
    return [set(memory.record[memory.record != EMPTY].tolist()) for memory in trained.memories]


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
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0] if not n.endswith(STARTS))
    assert np.abs(one - other)[fold.regulator[fold.test] < 20].max() > 1e-3


def test_every_routing_corrects_in_its_own_way(planted):
    fold = planted(classes=4)
    configs = [dataclasses.replace(SMALL, routing=routing) for routing in ROUTINGS]
    found = [train_nexus(fold, config, 0).corrections() for config in configs]
    for i, one in enumerate(found):
        assert all(np.abs(one - other).max() > 1e-2 for other in found[:i])


def test_tokens_follow_their_knobs(planted):
    """Bins, programs and genes that change the vocabulary change what a record says, not only the draw of weights."""
    fold, seen = planted(), {}
    for name in ("dose_bins", "magnitude_bins", "top_programs", "top_genes"):
        for config in (SMALL, dataclasses.replace(SMALL, **KNOBS[name][0])):
            records = make_inputs(fold, config).records
            kinds = [len(records.header[:, i].unique()) for i in range(3)]
            seen.setdefault(name, []).append((kinds, records.content.shape[1], len(records.content.unique())))
    assert seen["dose_bins"][0][0] == [24, 3, 2] and seen["dose_bins"][1][0] == [24, 2, 2]
    assert seen["magnitude_bins"][0][2] > seen["magnitude_bins"][1][2]
    assert [width for _, width, _ in seen["top_programs"]] == [4, 6]
    assert [width for _, width, _ in seen["top_genes"]] == [4, 7]
    assert seen["top_genes"][1][2] > seen["top_genes"][0][2]


def test_a_recursive_correction_goes_on_from_the_added_one_with_the_networks_beside_the_fold(
    planted, tmp_path, monkeypatch
):
    fold = planted()
    fold.meta["networks"] = "those.pt"
    added = train_nexus(fold, SMALL, 0)
    monkeypatch.setattr(recursive, "load_networks", lambda path, device: path)
    monkeypatch.setattr(recursive, "train_recursive", lambda fold, networks, start, *_: (networks, start))
    networks, start = train_memory(fold, tmp_path, dataclasses.replace(SMALL, correction="recursive"), 0)
    assert networks == tmp_path / "those.pt"
    for trained in (start, train_memory(fold, tmp_path, SMALL, 0)):
        assert np.array_equal(trained.corrections(), added.corrections())
