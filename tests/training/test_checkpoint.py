"""Checkpoints: what comes back predicts the same bit for bit, and what does not fit is refused by name."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from mantra_ray.config import LAPTOP, ExperimentConfig, NexusConfig
from mantra_ray.errors import InputError
from mantra_ray.fields import replace
from mantra_ray.forward import Fold
from mantra_ray.training import recursive, stages
from mantra_ray.training.checkpoint import load, save
from mantra_ray.training.distributed import save_unit, train_unit
from mantra_ray.training.networks import load_networks
from mantra_ray.training.nexus import train_nexus
from mantra_ray.training.recursive import train_recursive

SMALL = NexusConfig(**LAPTOP | {"d_model": 16}, heads=2, buckets=16, slots=8, epochs=2, top_programs=3, dropout=0.1)
VARIANTS = {
    "residual": {},
    "language": {"mode": "language", "language_epochs": 1},
    "genes": {"correct": "genes", "top_genes": 2},
    "levels": {"routing": "levels"},
    "hash": {"routing": "hash", "buckets": 24},
    "random": {"eviction": "random", "slots": 2, "buckets": 4},
}


@pytest.fixture(scope="module")
def fold(planted) -> Fold:
    fold = planted(classes=3, manifold=False)
    return dataclasses.replace(fold, meta=fold.meta | {"data": "d" * 64, "stage": "s" * 16})


def trained_and_saved(fold, path, **changes):
    config = ExperimentConfig(nexus=dataclasses.replace(SMALL, **changes))
    trained = train_nexus(fold, config.nexus, 0)
    save(path, trained, fold, config, ("k0", "k1", "k2"))
    return trained


@pytest.fixture(scope="module")
def saved(fold, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    return trained_and_saved(fold, path), path


def same_predictions(one, other, fold) -> bool:
    predictions = [trained.predict(fold) for trained in (one, other)]
    assert (predictions[0].program != fold.base_program).any()
    names = [field.name for field in dataclasses.fields(predictions[0])]
    return all(np.array_equal(*(getattr(prediction, name) for prediction in predictions)) for name in names)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_loaded_predicts_the_same_bit_for_bit(fold, tmp_path, variant):
    path = tmp_path / "model.pt"
    trained = trained_and_saved(fold, path, **VARIANTS[variant])
    torch.manual_seed(99)
    before = torch.get_rng_state()
    checkpoint = load(path)
    assert torch.equal(torch.get_rng_state(), before)
    again = checkpoint.trained(fold, tmp_path)
    assert same_predictions(trained, again, fold)
    assert all(one.equals(other) for one, other in zip(trained.memories, again.memories, strict=True))
    rewarmed, _ = again.model.warm(again.inputs.records.take(torch.tensor(fold.train)))
    assert all(one.equals(other) for one, other in zip(trained.memories, rewarmed, strict=True))
    assert again.curves == trained.curves and again.diagnostics == trained.diagnostics
    assert checkpoint.config.nexus == trained.model.config and checkpoint.names["class"] == ["k0", "k1", "k2"]
    assert np.array_equal(checkpoint.records["train"].nonzero()[:, 0], fold.train)


@pytest.mark.parametrize("correct", ("programs", "genes"))
def test_a_recursive_correction_comes_back_with_its_networks(screen, experiment, tmp_path, monkeypatch, correct):
    def run(records, units, *_):
        for unit in units:
            save_unit(unit, train_unit(records, unit))

    monkeypatch.setattr(stages, "run_units", run)
    monkeypatch.setattr(recursive, "chosen_epoch", lambda errors, *_: len(errors) - 1)
    nexus = dataclasses.replace(SMALL, correction="recursive", correct=correct)
    experiment = dataclasses.replace(experiment, nexus=nexus)
    (file,) = stages.make_folds(screen, [experiment], tmp_path, workers=1, gpus=0).values()
    fold = Fold.load(file)
    networks = load_networks(tmp_path / fold.meta["networks"])
    trained = train_recursive(fold, networks, train_nexus(fold, nexus, 0), 0, network_rate=1e-3)  # networks move, too
    save(tmp_path / "model.pt", trained, fold, experiment, screen.class_names)
    again = load(tmp_path / "model.pt").trained(fold, tmp_path)
    assert same_predictions(trained, again, fold)
    first = dict(networks.models[0].named_parameters())
    moved = again.networks.models[0].named_parameters()
    assert any(not torch.equal(one, first[name]) for name, one in moved)
    other = dataclasses.replace(fold, meta=fold.meta | {"stage": "another"})
    with pytest.raises(InputError, match=r"stage.*'another'"):
        load(tmp_path / "model.pt").trained(other, tmp_path)
    (tmp_path / fold.meta["networks"]).unlink()
    with pytest.raises(InputError, match="networks"):
        load(tmp_path / "model.pt").trained(fold, tmp_path)


def test_the_file_holds_plain_tensors_numbers_and_text(saved):
    stored = torch.load(saved[1], weights_only=True)
    held = sum(len(memory["record"]) for memory in stored["memories"])
    told = saved[0].diagnostics
    assert held == told["stored"] - told["evictions"] and stored["data_sha256"] == "d" * 64
    assert all(tensor.device.type == "cpu" and not tensor.requires_grad for tensor in stored["weights"].values())


CHANGES = {
    "data sha256": lambda fold: {"meta": fold.meta | {"data": "other"}},
    "names, regulator": lambda fold: {"names": fold.names | {"regulator": ["new", *fold.names["regulator"][1:]]}},
    "number of names, gene": lambda fold: {"names": fold.names | {"gene": fold.names["gene"][1:]}},
    "names, program": lambda fold: {"names": fold.names | {"program": fold.names["program"][::-1]}},
    "split.kind": lambda fold: {"meta": fold.meta | {"kind": "unseen"}},
    "seed": lambda fold: {"meta": fold.meta | {"seed": 1}},
    "stage": lambda fold: {"meta": fold.meta | {"stage": "other"}},
    "scale of the residuals": lambda fold: {"base_program": 0.9 * fold.base_program},
    "vocabulary": lambda fold: {"dose": fold.dose + 0.01},
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_fold_that_does_not_fit_is_refused_by_name(saved, fold, field):
    other = dataclasses.replace(fold, **CHANGES[field](fold))
    with pytest.raises(InputError) as caught:
        load(saved[1]).trained(other, saved[1].parent)
    assert caught.value.field.startswith(field) and caught.value.file == str(saved[1])


def test_damage_is_seen(saved, tmp_path):
    whole = saved[1].read_bytes()
    path = tmp_path / "model.pt"
    with pytest.raises(InputError, match="is not there"):
        load(path)
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    for content in (b"", whole[:-200], whole[:middle], flipped, b"no zip"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            load(path)


def drop(name):
    return lambda stored: stored.pop(name)


TAMPERED = {
    "a part lacks": drop("memories"),
    "a weight lacks": lambda stored: stored["weights"].popitem(),
    "another width": lambda stored: stored["config"].update({"nexus.d_model": 32}),
    "an unknown setting": lambda stored: stored["config"].update({"nexus.none": 1}),
    "another manifold": lambda stored: stored["memories"].append(stored["memories"][0]),
    "something more": lambda stored: stored.update(more=1),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_is_no_checkpoint_of_ours_is_refused(saved, tmp_path, what):
    stored = torch.load(saved[1], weights_only=True)
    TAMPERED[what](stored)
    path = tmp_path / "model.pt"
    torch.save(stored, path)
    with pytest.raises(InputError, match="cannot be read"):
        load(path)


def test_a_failed_write_leaves_the_old_checkpoint(saved, fold, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    shutil.copy(saved[1], path)

    def half(stored, partial):
        partial.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        save(path, saved[0], fold, replace(ExperimentConfig(), **{"nexus.slots": 8}))
    assert path.read_bytes() == saved[1].read_bytes() and [file.name for file in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_of_the_gpu_is_loaded_on_the_cpu(fold, tmp_path):
    trained = train_nexus(fold, dataclasses.replace(SMALL, precision="float32"), 0, device="cuda")
    save(tmp_path / "model.pt", trained, fold, ExperimentConfig(nexus=trained.model.config))
    again = load(tmp_path / "model.pt").trained(fold, tmp_path)
    np.testing.assert_allclose(again.predict(fold).program, trained.predict(fold).program, atol=1e-3)
    assert again.memories[0].key.device.type == "cpu"
