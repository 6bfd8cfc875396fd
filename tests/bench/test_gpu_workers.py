"""The benchmark of workers and of trials side by side: what its rows say, at sizes that a CPU does in seconds."""

import math
from dataclasses import replace

import numpy as np
import pytest

from mantra_ray.bench import gpu_workers
from mantra_ray.bench.gpu_workers import (
    HALVINGS,
    QUICK,
    exchange,
    scaling,
    side_by_side,
    thresholds,
)
from mantra_ray.forward import Fold
from mantra_ray.training.nexus import train_nexus


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(gpu_workers.torch.cuda, "device_count", lambda: 0)


def test_the_planted_fold_has_a_header_of_its_own_for_every_record(tmp_path):
    fold = QUICK.fold()
    count = QUICK.regulators * QUICK.doses * QUICK.states
    headers = np.stack([fold.regulator, fold.dose, fold.state], 1)
    assert len(np.unique(headers, axis=0)) == count == len(fold.delta_program)
    assert sorted([*fold.train, *fold.validation, *fold.test]) == list(range(count))
    assert len(fold.validation) == len(fold.test) == count // 10
    fold.save(tmp_path / "fold.npz")
    assert np.array_equal(Fold.load(tmp_path / "fold.npz").delta_program, fold.delta_program)


def test_thresholds_are_those_at_which_the_wanted_share_is_written():
    fold, wanted = QUICK.fold(), (0.9, 0.7, 0.4)

    def written(gamma):
        config = replace(QUICK.config, regret_gamma=gamma, epochs=0)
        return train_nexus(fold, config, 0).diagnostics["write_density"]

    found = thresholds(fold, QUICK.config, "cpu", wanted)
    assert sorted(found) == found
    for gamma, density in zip(found, wanted, strict=True):
        beyond = math.sinh(math.asinh(gamma) + 10 / 2**HALVINGS)
        assert written(beyond) <= density < written(gamma)


def test_the_exchange_grows_with_workers_and_not_with_write_density(forked):
    rows = exchange(2, quick=True)
    assert [row["workers"] for row in rows] == [1, 1, 1, 2, 2, 2]
    for row in rows:
        assert row["same"] and row["moved"] <= 0.05 and row["backend"] == "gloo"
        assert 0 < row["gather_seconds"] < row["epoch_seconds"] and row["headers_seconds"] > 0
        assert row["records_per_second"] == pytest.approx(row["records"] / row["epoch_seconds"])
    for some in (rows[:3], rows[3:]):
        first, second, third = (row["density"] for row in some)
        assert 1.0 == first > second > third
    records, columns = rows[0]["records"], QUICK.config.d_model + 2
    assert {row["received_bytes"] for row in rows[:3]} == {0}
    assert {row["received_bytes"] for row in rows[3:]} == {records // 2 * columns * 4}


def test_the_scaling_compares_with_one_worker_of_the_same_share(forked):
    rows, batch = scaling(2, quick=True), QUICK.config.batch
    share = QUICK.config.language_share
    cases = [(row["workers"], row["language_share"], row["batch"]) for row in rows]
    assert cases == [(1, share, batch), (1, 1.0, batch)] + [(2, s, b) for s in (share, 1.0) for b in (batch, 2 * batch)]
    assert [row["speed_up"] for row in rows[:2]] == [1.0, 1.0]
    first = {row["language_share"]: row["records_per_second"] for row in rows[:2]}
    for row in rows:
        assert row["speed_up"] == pytest.approx(row["records_per_second"] / first[row["language_share"]])


def test_trials_side_by_side_are_counted_by_the_hour(forked):
    one, two = side_by_side("cpu", quick=True)
    assert (one["processes"], two["processes"], one["speed_up"]) == (1, 2, 1.0)
    for row in (one, two):
        assert row["trials_per_hour"] == pytest.approx(3600 * row["processes"] / row["seconds_per_trial"])
    assert two["speed_up"] == pytest.approx(two["trials_per_hour"] / one["trials_per_hour"])
