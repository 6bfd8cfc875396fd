import json
from pathlib import Path

import pytest

from mantra_ray.errors import InputError
from mantra_ray.report.findings import read_findings
from mantra_ray.sweep.compact import compact
from mantra_ray.sweep.frames import configuration_rows
from mantra_ray.sweep.schema import SCHEMAS
from mantra_ray.sweep.spec import SweepSpec
from mantra_ray.sweep.store import Store


def test_the_numbers_are_those_of_the_tables(findings, sweep):
    rows = configuration_rows(Store(sweep / "results"), Store(sweep / "results").read("trials")).to_pylist()
    seen = [
        (split, *(item.values[f"nexus.{name}"] for name in ("buckets", "regret_gamma", "load")), result.test)
        for item in findings.found
        for split, result in item.results.items()
    ]
    told = {(r["split"], r["nexus.buckets"], r["nexus.regret_gamma"], r["nexus.load"]): r for r in rows}
    assert len(told) == len(seen) == 30
    for *key, gain in seen:
        row = told[tuple(key)]
        assert (gain.value, gain.lower, gain.upper, gain.n) == tuple(
            row[name] for name in ("test_gain", "lower", "upper", "records")
        )
    assert findings.splits == ["seen", "unseen"] and findings.level == "95 %" and not findings.missing
    assert len(findings.ended("failed")) == 2 and findings.records("seen") == 32


def test_rows_of_other_trials_in_the_folder_are_not_seen(write, tmp_path):
    trials = write(tmp_path, arms=[{"nexus.tau": 0.1}, {"nexus.tau": 0.2}])
    before = read_findings(str(tmp_path))
    stale = SweepSpec("old", trials[0].config, ({"nexus.tau": 0.3},), (0,), ("seen",)).trials("data", "old")[-1]
    Store(tmp_path / "results").write(stale, {"status": "done"})
    after = read_findings(str(tmp_path))
    assert len(after.found) == 2 and [item.results for item in after.found] == [item.results for item in before.found]
    assert set(after.store.read("trials")["trial"].to_pylist()) == {trial.id for trial in trials}


def test_trials_that_have_not_run_are_counted(write, tmp_path):
    write(tmp_path, arms=[{"nexus.tau": 0.1}, {"nexus.tau": 0.2}], skips=lambda t: t.config.nexus.tau == 0.2)
    assert read_findings(str(tmp_path)).missing == 4


def test_a_folder_without_results_or_without_a_finished_trial(write, tmp_path):
    with pytest.raises(InputError, match=r"sweep\.json"):
        read_findings(str(tmp_path))
    (tmp_path / "sweep.json").write_text(json.dumps({"trials": ["0" * 16], "timing": None}))
    with pytest.raises(InputError, match="no trial of the sweep has finished"):
        read_findings(str(tmp_path))
    write(tmp_path, arms=[{}], fails=lambda trial: True)
    with pytest.raises(InputError, match="8 failed, see mantra results"):
        read_findings(str(tmp_path))


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("table", "damage"),
    [*((table, cut) for table in SCHEMAS), *((table, Path.unlink) for table in SCHEMAS if table != "trials")],
)
def test_damaged_files_are_refused(write, tmp_path, table, damage):
    trials = write(tmp_path, arms=[{}])
    damage(tmp_path / "results" / table / f"{trials[1].id}.parquet")
    with pytest.raises(InputError, match="1 trials are damaged"):
        read_findings(str(tmp_path))


@pytest.mark.filterwarnings("error")
def test_a_compact_folder_reads_alike_and_is_refused_when_damaged(write, tmp_path):
    write(tmp_path, arms=[{"nexus.tau": 0.1}, {"nexus.tau": 0.2}])
    before = read_findings(str(tmp_path))
    compact(Store(tmp_path / "results"))
    after = read_findings(str(tmp_path))
    assert [item.results["seen"].test for item in after.found] == [item.results["seen"].test for item in before.found]
    (path,) = (tmp_path / "results" / "records").glob("compact-*.parquet")
    cut(path)
    with pytest.raises(InputError, match="damaged"):
        read_findings(str(tmp_path))
