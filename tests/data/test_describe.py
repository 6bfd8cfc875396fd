"""Counts equal plain loops; the picture is a picture, whole or not there."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.config import DataConfig, SimulationConfig
from mantra_ray.data.catalog import load_screen
from mantra_ray.data.describe import count_by, effect_sizes, missing_parts, save_picture, totals
from mantra_ray.data.records import from_arrays

SMALL = SimulationConfig(regulators=20, doses=(0.3, 0.6, 0.95), states=2, genes=100, programs=4)


def random_records(seed, n=30):
    rng = np.random.default_rng(seed)
    return from_arrays(
        {
            "regulator": rng.integers(0, 5, n),
            "dose": rng.choice([0.2, 0.5, 1.0], n),
            "state": rng.integers(0, 3, n),
            "strategy": rng.integers(0, 2, n),
            "delta_expression": rng.normal(size=(n, 4)),
            "regulator_names": [f"r{i}" for i in range(6)],  # the last has no record
        }
    )


@given(st.integers(0, 10_000), st.sampled_from(["regulator", "state", "strategy"]))
@settings(max_examples=20, deadline=None)
def test_counts_equal_a_plain_loop(seed, field):
    data = random_records(seed)
    counts, names = count_by(data, field), getattr(data, field + "_names")
    assert counts.records.sum() == len(data) and list(counts.records) == sorted(counts.records, reverse=True)
    assert len(counts.names) == len(np.unique(getattr(data, field)))
    for i, name in enumerate(counts.names):
        rows = getattr(data, field) == names.index(name)
        assert counts.records[i] == rows.sum()
        for column in ("regulator", "dose", "state"):
            assert getattr(counts, column + "s")[i] == len(set(getattr(data, column)[rows].tolist()))
        assert counts.effect[i] == pytest.approx(np.sqrt((data.delta_expression[rows] ** 2).mean(1)).mean(), rel=1e-5)


def test_few_doses_are_named_and_many_binned():
    few = count_by(random_records(0), "dose")
    assert few.names == ("0.2", "0.5", "1") and few.records.sum() == 30
    rng = np.random.default_rng(0)
    dose = np.concatenate([rng.random(98), [0.0, 1.0]])
    data = from_arrays({"regulator": np.zeros(100, int), "dose": dose, "delta_expression": np.ones((100, 2))})
    many = count_by(data, "dose")
    assert many.names[0] == "0.0 to 0.1" and many.names[-1] == "0.9 to 1.0" and many.records.sum() == 100
    expected = np.histogram(data.dose, np.linspace(0, 1, 11))[0]
    assert np.array_equal(many.records, expected[expected > 0])


def test_effects_fall_back_on_programs():
    data = from_arrays({"regulator": [0, 1], "dose": [1, 1], "delta_program": [[3.0, 4.0], [0, 0]]})
    assert effect_sizes(data) == pytest.approx([np.sqrt(12.5), 0])


def test_totals_and_missing_parts():
    screen = load_screen(DataConfig(simulation=SMALL))
    sizes = totals(screen)
    assert sizes["records"] == "120" and sizes["genes"] == "100" and sizes["programs"] == "4"
    assert sizes["doses"] == "3 distinct, 0.3 to 0.95" and sizes["splits"] == "seen, unseen"
    assert missing_parts(screen) == ["no observed changes of programs"]


def test_picture_is_a_png_and_appears_whole(tmp_path, monkeypatch):
    screen = load_screen(DataConfig(simulation=SMALL))
    save_picture(screen, tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")

    def broken(figure, target, **_):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        save_picture(screen, tmp_path / "other.png")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
