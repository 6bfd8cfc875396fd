import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from mantra_ray.config import DataConfig, ExperimentConfig, NexusConfig
from mantra_ray.fields import flatten
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.sweep.tensorboard import FINAL, TrialBoard, knobs, settings_text


def finished(folder, kind="nexus", config=None, final=None):
    """What TensorBoard reads of a trial that ran three epochs."""
    board = TrialBoard(folder)
    for epoch in range(3):
        board.epoch(epoch, {"loss": 1.0 / (epoch + 1), "write_density": 0.5})
    board.finish(TrialSpec(kind, config or ExperimentConfig(), "d", "c"), final or {})
    return EventAccumulator(str(folder)).Reload()


def plugin(events, tag):
    """Content of an entry of the HParams tab."""
    return HParamsPluginData.FromString(events.summary_metadata[tag].plugin_data.content)


def test_curves_and_final_numbers_can_be_read_back(tmp_path):
    final = {"test_gain": 0.25} | {name: float(i) for i, name in enumerate(FINAL)}
    events = finished(tmp_path, final=final)
    assert [event.step for event in events.Scalars("loss")] == [0, 1, 2]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([1.0, 0.5, 1 / 3])
    for name, value in final.items():
        assert [event.value for event in events.Scalars(f"final/{name}")] == [value]


def test_a_trial_is_one_entry_with_its_knobs_and_final_numbers(tmp_path):
    config = ExperimentConfig(seed=3, nexus=NexusConfig(regret_gamma=math.inf, read="soft"))
    events = finished(tmp_path, config=config, final={"test_gain": 0.25, "gate_mean": 0.5})
    metrics = plugin(events, "_hparams_/experiment").experiment.metric_infos
    assert [metric.name.tag for metric in metrics] == ["final/test_gain", "final/gate_mean"]
    found = plugin(events, "_hparams_/session_start_info").session_start_info.hparams
    assert found["seed"].number_value == 3 and found["split"].string_value == "seen"
    assert found["nexus.regret_gamma"].number_value == math.inf and found["nexus.read"].string_value == "soft"
    assert found["manifold.smooth"].bool_value is False and found["manifold.smooth"].HasField("bool_value")
    assert set(found) == set(knobs(TrialSpec("nexus", config, "d", "c")))


def test_every_knob_of_a_sweep_has_a_column():
    spec = TrialSpec("nexus", ExperimentConfig(), "d", "c")
    turned = {n for n in flatten(spec.config) if n.partition(".")[0] in ("grn", "manifold", "nexus", "programs")}
    assert turned | {"seed", "split"} <= knobs(spec).keys()
    assert all(isinstance(value, (bool, int, float, str)) for value in knobs(spec).values())


def test_baselines_have_no_entry_but_their_settings(tmp_path):
    events = finished(tmp_path, kind="baselines")
    assert not [tag for tag in events.summary_metadata if tag.startswith("_hparams_")]
    assert events.Tags()["tensors"] == ["settings/text_summary"]


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
