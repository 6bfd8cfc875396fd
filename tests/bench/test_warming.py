"""The benchmark of the warming pass: that it checks, what it counts, and how it refuses."""

import json

import pytest
import torch

from mantra_ray.bench import warming
from mantra_ray.bench.warming import VALUE, least_bytes, main, make_stream, same, single
from mantra_ray.config import NexusConfig
from mantra_ray.errors import InputError
from mantra_ray.nexus.cam import Memory
from mantra_ray.nexus.warming import warm

SMALL = ["--records", "200", "--geometry", "16x4", "--dim", "8", "--skew", "0", "1", "--sample", "50"]


@pytest.fixture(autouse=True)
def small_copies(monkeypatch):
    monkeypatch.setattr(warming, "COPIED", 2**16)


def test_a_run_prints_a_table_and_saves_its_rows(tmp_path, capsys):
    out = tmp_path / "deep" / "rows.json"
    assert main([*SMALL, "--device", "cpu", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert [row["skew"] for row in rows] == [0, 1] and all(row["same"] for row in rows)
    for row in rows:
        assert row["ratio"] == pytest.approx(row["loop_seconds_per_record"] * 200 / row["seconds"])
        assert row["over_floor"] == pytest.approx(row["seconds"] / row["floor_seconds"])
        assert row["loop_records"] == 50 and 0 < row["write_density"] <= 1
    printed = capsys.readouterr().out
    assert "16x4" in printed and "first 50 records" in printed and {row["way"] for row in rows} == {"waves"}


def test_the_table_names_what_ran(monkeypatch, capsys):
    monkeypatch.setattr(warming, "kernels_run", lambda memory, config: config.gate_signal == "entropy")
    for signal, ran in (("entropy", "kernels"), ("residual", "waves")):
        assert main([*SMALL[:-3], "--sample", "20", "--device", "cpu", "--gate-signal", signal]) == 0
        (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:2] == ["200", "16x4"]]
        assert row[4] == ran


def test_with_full_the_loop_runs_on_all_records(tmp_path):
    out = tmp_path / "rows.json"
    args = [*SMALL[:-2], "--full", "--eviction", "random", "--gate-signal", "residual", "--device", "cpu"]
    assert main([*args, "--out", str(out)]) == 0
    assert all(row["loop_records"] == 200 for row in json.loads(out.read_text()))


def test_a_difference_between_waves_and_loop_is_found(monkeypatch):
    def wrong(memory, stream, config, decode=None):
        memory, seen = warm(memory, stream, config, decode)
        memory.record[memory.record == 7] = 8
        return memory, seen

    monkeypatch.setattr(warming, "warm", wrong)
    assert main([*SMALL, "--device", "cpu"]) == 1


def test_values_that_differ_are_not_the_same_memory():
    memory = Memory.empty(2, 3, 4, 5, 6, dtype=torch.float64)
    other = memory.clone()
    assert same(memory, other)
    other.value[1, 2, 3] += 1e-6
    assert not same(memory, other)


def test_a_skewed_stream_has_a_few_regulators_with_most_records():
    top = []
    for skew in (0.0, 1.0, 1.5):
        stream, regulators = make_stream(4000, 64, 8, skew, 0, "cpu")
        counts = torch.bincount(stream.candidates.token, minlength=regulators).sort(descending=True).values
        top.append(int(counts[: regulators // 20].sum()) / 4000)
        assert regulators == 200 and torch.equal(stream.candidates.bucket, stream.candidates.token % 64)
    assert top[0] < 0.1 < 0.4 < top[1] < top[2]


def test_the_floor_counts_keys_what_stays_and_the_copy():
    stream = single(make_stream(40, 8, 6, 0.0, 0, "cpu")[0])
    memory, _ = warm(Memory.empty(8, 2, 6, VALUE, 2), stream, NexusConfig())
    kept = int((memory.record >= 0).sum())
    assert 0 < kept < 40
    assert least_bytes(memory, stream) == 4 * (40 * 6 + 2 * kept * (6 + VALUE)) + 2 * memory.bytes


@pytest.mark.parametrize(
    ("args", "field"),
    [
        (["--records", "0"], "--records"),
        (["--geometry", "512"], "--geometry"),
        (["--dim", "1"], "--dim"),
        (["--skew", "-1"], "--skew"),
        (["--skew", "nan"], "--skew"),
        (["--sample", "0"], "--sample"),
        (["--device", "abacus"], "--device"),
        (["--out", "rows.csv"], "--out"),
    ],
)
def test_options_that_cannot_be_are_refused(args, field):
    with pytest.raises(InputError) as raised:
        main(args)
    assert raised.value.field == field
