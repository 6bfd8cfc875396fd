"""The ratios of `mantra bench cpu`: that both forms are compared, and that a ratio which fell is told."""

import json

import pytest

from mantra_ray.bench import cpu
from mantra_ray.errors import InputError

FAST = ["--quick", "--parts", "read", "write", "warming", "step"]


def test_used_and_plain_forms_agree_and_rows_are_kept(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert cpu.main([*FAST, "--out", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert [row["work"].split(",")[0] for row in rows] == ["read", "write", "warming", "Mode B step"]
    assert all(row["ratio"] == pytest.approx(row["plain"] / row["used"]) and row["error"] <= 1e-4 for row in rows)
    assert "warming, 500 records" in capsys.readouterr().out


def test_a_ratio_far_below_an_earlier_one_is_a_regression(tmp_path, capsys):
    earlier = tmp_path / "earlier.json"
    args = ["--quick", "--parts", "read", "--against", str(earlier)]
    for ratio, code in ((1e-6, 0), (1e9, 1)):
        earlier.write_text(json.dumps([{"work": "read, 500 records", "ratio": ratio}]))
        assert cpu.main(args) == code
    assert "was 1000000000.0" in capsys.readouterr().out


def test_forms_that_differ_end_with_1(monkeypatch, capsys):
    real = cpu.write

    def wrong(memory, new, *rest):
        memory, written = real(memory, new, *rest)
        memory.priority += len(new.record) > 1
        return memory, written

    monkeypatch.setattr(cpu, "write", wrong)
    assert cpu.main(["--quick", "--parts", "write"]) == 1
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "field"), [(["--parts", "reed"], "--parts"), (["--out", "rows.csv"], "--out")], ids=("parts", "out")
)
def test_options_that_cannot_be_are_refused(args, field):
    with pytest.raises(InputError, match=field):
        cpu.main(args)


@pytest.mark.parametrize("text", ["", '[{"work": 1}]', '[{"work": "a", "ratio": "b"}]', "[1]"])
def test_a_file_without_rows_is_refused(tmp_path, text):
    (tmp_path / "earlier.json").write_text(text)
    with pytest.raises(InputError, match="--against"):
        cpu.earlier_ratios(str(tmp_path / "earlier.json"))


def test_a_sweep_is_compared_with_tune_alone_by_wall_time_a_trial():
    rows = {way: {"way": way, "wall": wall, "count": 10, "gains": [0.1]} for way, wall in (("tune", 6), ("sweep", 2))}
    row = cpu.by_ways(rows)
    assert (row.work, row.ratio, row.error) == ("sweep, 10 tiny trials", pytest.approx(3), 0)
    rows["tune"]["gains"] = [0.2]
    assert cpu.by_ways(rows).error == float("inf")
