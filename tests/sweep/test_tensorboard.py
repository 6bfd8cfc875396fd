import dataclasses
import io
import math

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from mantra_ray.config import LAPTOP, DataConfig, ExperimentConfig, NexusConfig
from mantra_ray.fields import flatten, replace
from mantra_ray.sweep.held import Held, held_by
from mantra_ray.sweep.hparams import FINAL, Columns
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.sweep.tensorboard import COLUMNS, TrialBoard, begin, held_summaries, settings_text
from mantra_ray.training.nexus import train_nexus

SMALL = NexusConfig(**LAPTOP | {"d_model": 16}, heads=2, top_programs=3, epochs=1)


def read(folder):
    """What TensorBoard reads of a run; all values of each tag."""
    return EventAccumulator(str(folder), {"images": 0, "histograms": 0, "tensors": 0}).Reload()


def finished(folder, kind="nexus", config=None, final=None, held=()):
    """What TensorBoard reads of a trial that ran three epochs."""
    board = TrialBoard(folder)
    for epoch in range(3):
        board.epoch(epoch, {"loss": 1.0 / (epoch + 1), "write_density": 0.5})
    board.finish(TrialSpec(kind, config or ExperimentConfig(), "d", "c"), final or {}, held)
    return read(folder)


def plugin(events, tag):
    """Content of an entry of the HParams tab."""
    return HParamsPluginData.FromString(events.summary_metadata[tag].plugin_data.content)


def test_curves_and_final_numbers_can_be_read_back(tmp_path):
    final = {"test_gain": 0.25} | {name: float(i) for i, name in enumerate(FINAL)}
    events = finished(tmp_path, final=final)
    assert [event.step for event in events.Scalars("epoch/loss")] == [0, 1, 2]
    assert [event.value for event in events.Scalars("epoch/loss")] == pytest.approx([1.0, 0.5, 1 / 3])
    for name, value in final.items():
        assert [event.value for event in events.Scalars(f"final/{name}")] == [value]


def test_a_trial_is_one_row_with_its_knobs(tmp_path):
    config = ExperimentConfig(seed=3, nexus=NexusConfig(regret_gamma=math.inf, read="soft"))
    events = finished(tmp_path, config=config, final={"test_gain": 0.25})
    found = plugin(events, "_hparams_/session_start_info").session_start_info.hparams
    assert found["seed"].number_value == 3 and found["nexus.read"].string_value == "soft"
    assert found["nexus.regret_gamma"].string_value == "inf"
    assert "_hparams_/experiment" not in events.summary_metadata  # the first one that TensorBoard finds wins


def test_baselines_have_no_row_but_their_settings(tmp_path):
    events = finished(tmp_path, kind="baselines")
    assert not [tag for tag in events.summary_metadata if tag.startswith("_hparams_")]
    assert events.Tags()["tensors"] == ["settings/text_summary"] and not events.Tags()["images"]


def test_the_text_has_every_setting(tmp_path):
    data = DataConfig(data="s3://me:secret@host/x.npz")
    config = ExperimentConfig(data=data, nexus=NexusConfig(tau=0.25))
    (event,) = finished(tmp_path, config=config).Tensors("settings/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    spec = TrialSpec("nexus", config, "d", "c")
    assert text == settings_text(spec) and spec.id in text and "secret" not in text
    assert "| nexus.tau | **`0.25`** |" in text and "| nexus.ema | `0.9` |" in text
    assert all(f"| {name} |" in text for name in flatten(config))


def test_clear_removes_an_unfinished_run(tmp_path):
    finished(tmp_path)
    TrialBoard(tmp_path).clear()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes, names",
    [
        ({}, ["regulator"]),
        ({"correct": "genes"}, ["regulator"]),
        ({"routing": "levels", "buckets": 32, "slots": 4}, ["regulator", "class"]),
        ({"mode": "language", "language_epochs": 1}, ["regulator"]),
    ],
)
def test_histograms_and_maps_are_of_the_final_memory(planted, tmp_path, changes, names):
    fold = planted(classes=4, manifold=False)
    trained = train_nexus(fold, dataclasses.replace(SMALL, **changes), 0)
    held = held_by(fold, trained)
    assert [manifold.name for manifold in held] == names
    events = finished(tmp_path, held=held)
    kinds = ("priority", "similarity_training", "similarity_validation")
    assert set(events.Tags()["histograms"]) == {f"memory/{name}_{kind}" for name in names for kind in kinds}
    assert set(events.Tags()["images"]) == {f"memory/{name}_slots" for name in names}
    for name, memory, mine in zip(names, trained.memories, held, strict=True):
        assert np.array_equal(np.isnan(mine.priority), memory.record < 0)
        filled = memory.priority[memory.record >= 0].numpy()
        (event,) = events.Histograms(f"memory/{name}_priority")
        told = event.histogram_value
        assert len(filled) == told.num == sum(told.bucket)
        assert told.min == pytest.approx(filled.min()) and told.max == pytest.approx(filled.max())
        assert told.sum == pytest.approx(filled.sum(), rel=1e-5)
        (event,) = events.Images(f"memory/{name}_slots")
        image = Image.open(io.BytesIO(event.encoded_image_string))
        assert image.size == (event.width, event.height) and event.width < 400
        for part, rows in (("training", fold.train), ("validation", fold.validation)):
            (event,) = events.Histograms(f"memory/{name}_similarity_{part}")
            told = event.histogram_value
            assert told.num == sum(told.bucket) == len(rows) and 0 <= told.min <= told.max <= 1


def test_an_empty_memory_and_missing_reads_are_drawn_as_such(planted, tmp_path):
    fold = dataclasses.replace(planted(), validation=np.zeros(0, np.int64))
    trained = train_nexus(planted(), dataclasses.replace(SMALL, epochs=0), 0)
    trained.memories = trained.model.empty_memory()
    (held,) = held_by(fold, trained)
    assert np.isnan(held.priority).all() and not held.similarity["training"].any()
    events = finished(tmp_path, held=[held])
    assert events.Tags()["histograms"] == ["memory/regulator_similarity_training"]
    assert len(events.Images("memory/regulator_slots")) == 1


def test_numbers_that_are_none_are_left_out(tmp_path):
    held = Held("regulator", np.array([[np.inf, 1.0], [np.nan, 1.0]], np.float32), {"training": np.array([np.nan])})
    events = finished(tmp_path, held=[held])
    (event,) = events.Histograms("memory/regulator_priority")
    assert event.histogram_value.num == 2 and events.Tags()["histograms"] == ["memory/regulator_priority"]


@pytest.mark.parametrize("buckets, slots", [(512, 32), (2048, 8), (4096, 4)])
def test_a_full_memory_adds_few_bytes(buckets, slots):
    rng = np.random.default_rng(0)
    priority, similarity = rng.gamma(3.0, 1.0, (buckets, slots)).astype(np.float32), rng.random(10_000)
    held = Held("regulator", priority, {"training": similarity, "validation": similarity})
    assert sum(summary.ByteSize() for summary in held_summaries(held)) < 20_000


def test_a_sweep_begins_with_its_columns_and_renames_what_an_earlier_command_left(tmp_path):
    arms = [{"nexus.tau": 0.1}, {"nexus.tau": 0.2}]
    specs = [TrialSpec("nexus", replace(ExperimentConfig(), **arm), "d", "c") for arm in arms]
    trials = {spec.id: spec for spec in specs}
    begin(tmp_path, Columns(), trials)
    finished(tmp_path / specs[0].id)  # as they were called once
    finished(tmp_path / Columns().run(specs[1]))
    (tmp_path / "mine").mkdir()
    for _ in range(2):
        begin(tmp_path, Columns.of(arms, ExperimentConfig()), trials)
        names = {f"seen_s0_{specs[0].id}", f"seen_s0_tau=0.2_{specs[1].id}"}
        assert {path.name for path in tmp_path.iterdir()} == names | {COLUMNS, "mine"}
    assert len(list((tmp_path / COLUMNS).iterdir())) == 1
    experiment = plugin(read(tmp_path / COLUMNS), "_hparams_/experiment").experiment
    assert [info.name for info in experiment.hparam_infos] == ["fold.split", "nexus.tau", "seed"]
    assert read(tmp_path / f"seen_s0_{specs[0].id}").Scalars("epoch/loss")
