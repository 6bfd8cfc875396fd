"""The tables of `mantra bench gpu`: what is wrong is told, what was measured is kept, floors are the device's own."""

import json
import sys
import types
from dataclasses import replace

import pytest
import torch

from mantra_ray.bench import gpu, measured
from mantra_ray.bench.measured import Card, Row, deviation, measure_card
from mantra_ray.errors import InputError

CARD = Card("CPU", "cpu", 1e10, 1e11)
ROW = Row("read, 4 x 2", 3e6, "queries/s", 4e6, "bytes", 2**30, 1e-6, 1e-5, goal=2e6, note="half the bytes")


@pytest.fixture
def parts(monkeypatch):
    """Puts rows, or an error, in the place of every part of one device."""

    def put(*found):
        def rows(card, quick):
            assert quick and card.device == "cpu"
            for one in found:
                if isinstance(one, Exception):
                    raise one
                yield one

        for part in gpu.PARTS:
            module = types.ModuleType(f"mantra_ray.bench.gpu_{part}")
            module.rows = rows
            monkeypatch.setitem(sys.modules, module.__name__, module)

    monkeypatch.setattr(gpu, "measure_card", lambda device: replace(CARD, device=device))
    return put


def test_rows_are_printed_and_kept(parts, tmp_path, capsys):
    parts(ROW)
    assert gpu.main(["--parts", "read", "--quick", "--device", "cpu", "--out", str(tmp_path / "deep")]) == 0
    printed = capsys.readouterr().out
    assert "read, 4 x 2" in printed and "75%" in printed and "3 M" in printed
    table, page = sorted((tmp_path / "deep").iterdir())
    kept = json.loads(table.read_text())
    assert [Row(**row) for row in kept["rows"]] == [ROW] and Card(**kept["card"]) == CARD
    assert (
        "| read, 4 x 2 | 3 M queries/s | 4 M (bytes) | 75% | 2 M ✓ | 1.00 | 1e-06 | half the bytes |"
        in page.read_text()
    )


@pytest.mark.parametrize("error", [2e-5, float("inf")])
def test_what_differs_from_its_reference_is_told_and_ends_with_1(parts, capsys, error):
    parts(replace(ROW, error=error))
    assert gpu.main(["--parts", "read", "--quick", "--device", "cpu"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_what_was_measured_before_a_part_broke_is_kept(parts, tmp_path):
    parts(ROW, RuntimeError("the device is gone"))
    with pytest.raises(RuntimeError, match="is gone"):
        gpu.main(["--parts", "read", "--quick", "--device", "cpu", "--out", str(tmp_path)])
    (kept,) = tmp_path.glob("*.json")
    assert len(json.loads(kept.read_text())["rows"]) == 1


@pytest.mark.parametrize(
    ("args", "field"),
    [(["--parts", "reed"], "--parts"), (["--gpus", "-1"], "--gpus"), (["--device", "warp"], "--device")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_that_cannot_be_are_refused(args, field):
    with pytest.raises(InputError, match=field):
        gpu.main(args)


def test_the_slower_of_bytes_and_operations_sets_the_floor():
    assert CARD.seconds(bytes=1e10, flop=1e10) == (1.0, "bytes")
    assert CARD.seconds(bytes=1e9, flop=3e11) == (3.0, "FLOP")


def test_a_device_is_measured(monkeypatch):
    monkeypatch.setattr(measured, "COPIED", 2**16)
    monkeypatch.setattr(measured, "SIDE", 512)
    card = measure_card("cpu")
    assert card.bandwidth > 1e7 and card.arithmetic > 1e6 and card.device == "cpu"


def test_deviation_is_relative_to_the_largest_number_and_nan_is_infinite():
    reference = torch.tensor([1.0, -4.0])
    assert deviation(torch.tensor([1.0, -3.0]), reference) == pytest.approx(0.25)
    assert deviation(torch.tensor([1.0, torch.nan]), reference) == float("inf")


@pytest.mark.parametrize(
    ("value", "shown"), [(12.34, "12.3"), (4.5e4, "45 k"), (2.25e6, "2.25 M"), (7e9, "7 G"), (1.5e13, "15 T")]
)
def test_rates_are_short(value, shown):
    assert gpu.amount(value) == shown
