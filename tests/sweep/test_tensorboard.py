import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mantra_ray.config import ExperimentConfig
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.sweep.tensorboard import TrialBoard


def test_curves_and_final_numbers_can_be_read_back(tmp_path):
    board = TrialBoard(tmp_path)
    for epoch in range(3):
        board.epoch(epoch, {"loss": 1.0 / (epoch + 1), "write_density": 0.5})
    board.finish(TrialSpec("nexus", ExperimentConfig(), "d", "c"), {"test_gain": 0.25})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [0, 1, 2]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([1.0, 0.5, 1 / 3])
    assert events.Scalars("final/test_gain")[0].value == 0.25
    assert "hparams" in events.summary_metadata["_hparams_/session_start_info"].plugin_data.plugin_name


def test_clear_removes_an_unfinished_run(tmp_path):
    board = TrialBoard(tmp_path)
    board.epoch(0, {"loss": 1.0})
    board.finish(TrialSpec("nexus", ExperimentConfig(), "d", "c"), {})
    TrialBoard(tmp_path).clear()
    assert not list(tmp_path.iterdir())
