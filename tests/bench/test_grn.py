"""The benchmark of message passing: that it checks, what it counts, and how it refuses."""

import json
import math

import pytest
import torch

from mantra_ray.bench import grn, warming
from mantra_ray.bench.grn import Options, Peak, least_bytes, main, make_inputs
from mantra_ray.errors import InputError

SMALL = ["--genes", "48", "80", "--hidden", "6", "--batch", "5", "--layer-batch", "3", "--device", "cpu"]


@pytest.fixture(autouse=True)
def small_copies(monkeypatch):
    monkeypatch.setattr(warming, "COPIED", 2**16)


def test_a_run_prints_its_tables_and_saves_its_rows(tmp_path, capsys):
    out = tmp_path / "deep" / "rows.json"
    assert main([*SMALL, "--out", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert [row["genes"] for row in rows] == [48, 80] and all(row["same"] for row in rows)
    for row in rows:
        assert row["both_ratio"] == pytest.approx(row["dense_both_seconds"] / row["sparse_both_seconds"])
        assert row["dense_operator_bytes"] == 2 * 4 * row["genes"] ** 2
        assert row["over_floor"] == pytest.approx(row["step_seconds"] / row["floor_seconds"])
        assert row["floor_seconds"] == pytest.approx(12 * 4 * row["genes"] * 5 * 6 / row["bytes_per_second"])
    printed = capsys.readouterr().out
    assert "One round" in printed and "The whole network" in printed


@pytest.mark.parametrize("wrong", [1.01, 1.0])
def test_a_difference_between_sparse_and_dense_is_found(monkeypatch, wrong):
    exact = grn.dense_operators
    monkeypatch.setattr(grn, "dense_operators", lambda *args: [wrong * exact(*args)[0], exact(*args)[1]])
    assert main([*SMALL[:2], *SMALL[3:]]) == (wrong != 1)


def test_the_graph_is_skewed_and_of_the_asked_size():
    inputs = make_inputs(800, 10, 0)
    assert 6_000 < len(inputs.source) <= 8_000 and inputs.source.max() < 100
    assert torch.bincount(torch.from_numpy(inputs.source)).max() > 3 * len(inputs.source) / 100


def test_a_deeper_network_has_a_higher_floor():
    options = [Options(layers=layers, hidden=7, batch=3) for layers in (1, 2, 4)]
    assert [least_bytes(10, option) for option in options] == [6 * 960, 6 * 960, 18 * 960]


def test_the_peak_counts_what_was_given_back_and_not_what_was_there():
    before = torch.ones(2**22)
    with Peak("cpu") as peak:
        torch.ones(2**24).sum()
    if math.isnan(peak.bytes):
        pytest.skip("this system does not tell the peak")
    assert 60e6 < peak.bytes < 90e6 and len(before)


@pytest.mark.parametrize(
    ("args", "field"),
    [
        (["--genes", "8"], "--genes"),
        (["--edges", "0"], "--edges"),
        (["--layer-batch", "0"], "--layer-batch"),
        (["--seed", "-1"], "--seed"),
        (["--device", "abacus"], "--device"),
        (["--out", "rows.csv"], "--out"),
    ],
)
def test_options_that_cannot_be_are_refused(args, field):
    with pytest.raises(InputError) as raised:
        main(args)
    assert raised.value.field == field
