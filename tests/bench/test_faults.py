"""The slow tests disturb a sweep for real; the others see to it that no fault and no difference goes unnoticed."""

import json
import math
import random
import resource
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from mantra_ray.bench import fault_host, fault_sweep, faults
from mantra_ray.bench.fault_host import HUNG, Scene, processes, small_disk
from mantra_ray.bench.fault_kinds import DAMAGES, FAULTS
from mantra_ray.bench.fault_tables import compare, leftovers
from mantra_ray.errors import InputError
from mantra_ray.sweep.options import SMOKE
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.trial import TrialOutcome

SPECS = replace(fault_sweep.recipe(SMOKE), splits=("seen",)).trials("data", "code")
SCORE = {"arm": "memory_on", "split": "seen", "part": "test", "slice": "all", "lower": None, "upper": None, "n": 3}
RECORDS = {
    "arm": np.repeat("memory_on", 3),
    "part": np.repeat("test", 3),
    "record": np.arange(3),
    "regulator": np.arange(3),
    "dose": np.full(3, 0.5, np.float32),
    "state": np.zeros(3, np.int64),
    "squared_error": np.array([0.1, 0.2, 0.3]),
    "reference_error": np.ones(3),
}


def outcome(value=0.1):
    scores = [SCORE | {"metric": name, "value": v} for name, v in (("program_mse", value), ("slope", math.nan))]
    return TrialOutcome({"load": 0.5}, scores, RECORDS, [{"epoch": 0, "metric": "loss", "value": 1.0}])


@pytest.fixture
def sweep(tmp_path):
    """Writes a sweep of three trials under a name; `changes` go to the first one's rows."""

    def write(name, seconds=1.0, **changes):
        for index, spec in enumerate(SPECS[:3]):
            made = outcome()
            tables = {"scores": made.scores, "records": made.records, "curves": made.curves}
            tables |= changes if index == 0 else {}
            origin = {"seconds": seconds, "provenance.command": name, "records_per_second": seconds}
            row = {"status": "done"} | made.diagnostics | origin
            Store(tmp_path / name / "results").write(spec, row, **tables)
        return tmp_path / name

    return write


def differences(left, right):
    found = compare(left / "results", right / "results")
    return found.lost, found.doubled, found.wrong


def test_runs_that_differ_in_times_and_origin_alone_are_equal(sweep):
    one, other = sweep("one", 1.0), sweep("other", 2.0)
    assert differences(one, other) == (0, 0, 0) and not leftovers(one, other)


def test_rows_lost_doubled_and_wrong_are_counted(sweep):
    one, scores = sweep("one"), outcome().scores
    assert differences(sweep("twice", scores=[*scores, scores[0]]), one) == (0, 1, 0)
    assert differences(sweep("less", scores=scores[:1]), one) == (1, 0, 0)
    assert differences(sweep("bit", scores=outcome(np.nextafter(0.1, 1)).scores), one) == (0, 0, 1)
    assert differences(sweep("more", scores=[*scores, scores[0] | {"metric": "new"}]), one) == (0, 0, 1)
    (one / "results" / "records" / f"{SPECS[1].id}.parquet").unlink()
    assert differences(one, sweep("whole")) == (3, 0, 0)


def test_a_trial_that_was_stopped_early_must_say_so_and_leave_nothing_but_its_curves(sweep, tmp_path):
    curves = [{"epoch": epoch, "metric": "loss", "value": epoch / 3} for epoch in range(3)]
    whole, pruned = sweep("whole", curves=curves), tmp_path / "pruned"
    for last, tables, wrong in (
        (1, {"curves": curves[:2]}, (0, 0, 0)),
        (1, {"curves": curves[:1]}, (1, 0, 0)),
        (1, {"curves": curves}, (0, 0, 1)),
        (1, {"curves": curves[:2], "scores": outcome().scores}, (0, 0, 2)),
    ):
        sweep("pruned")
        row = {"status": "pruned", "pruned_epoch": last}
        Store(pruned / "results").write(SPECS[0], row, **tables)
        found = compare(pruned / "results", whole / "results", prunes=True)
        assert (found.lost, found.doubled, found.wrong) == wrong, last
        assert differences(pruned, whole) != (0, 0, 0)
    (pruned / "results" / "trials" / f"{SPECS[1].id}.parquet").unlink()
    assert compare(pruned / "results", whole / "results", prunes=True).lost == 1


def test_files_left_over_are_found(sweep):
    one, other = sweep("one"), sweep("other")
    for root, stamp in ((one, "1"), (other, "2")):
        (root / "tensorboard").mkdir()
        (root / "tensorboard" / f"events.out.tfevents.{stamp}").touch()
    assert not leftovers(one, other)
    (one / "tensorboard" / "events.out.tfevents.3").touch()
    (one / "results" / "trials" / ".x.parquet.7.partial").touch()
    (one / ".tune" / "run").mkdir(parents=True)
    assert leftovers(one, other) == [".tune/run", "results/trials/.x.parquet.7.partial", "tensorboard/events"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damage_makes_a_trial_unfinished(sweep, damage):
    for seed, table in enumerate(("trials", "scores", "records", "curves")):
        root = sweep(table)
        damage(root / "results" / table / f"{SPECS[0].id}.parquet", random.Random(seed))
        assert Store(root / "results").finished() == {spec.id for spec in SPECS[1:3]}


def test_the_chosen_trial_misbehaves_once_and_no_other(monkeypatch, tmp_path):
    monkeypatch.setattr(fault_sweep, "execute", lambda spec: outcome())
    assert sum(map(fault_sweep.chosen, SPECS)) == 1
    limits = resource.getrlimit(resource.RLIMIT_AS)
    for kind, error in (("raise", RuntimeError), ("memory", MemoryError)):
        for spec in SPECS:
            if fault_sweep.chosen(spec):
                with pytest.raises(error):
                    fault_sweep.misbehaving(spec, kind=kind, notes=tmp_path / kind)
            assert fault_sweep.misbehaving(spec, kind=kind, notes=tmp_path / kind).scores[0]["value"] == 0.1
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
    (bad,) = filter(fault_sweep.chosen, SPECS)
    found = [fault_sweep.misbehaving(bad, kind="nan", notes=tmp_path / "nan") for _ in range(2)]
    assert [math.isnan(one.scores[0]["value"]) for one in found] == [True, False]


class Shell(Scene):
    """A scene whose command is a line of shell."""

    line = "exit 0"

    def start(self, **environment):
        process = subprocess.Popen(["sh", "-c", self.line], cwd=self.folder, start_new_session=True)
        self.sessions.append(process.pid)
        return process


@pytest.fixture
def shell(tmp_path):
    """Makes a scene whose command is a line of shell."""

    def make(line, limit=20.0):
        scene = Shell(tmp_path, (), None, 0.5, {}, limit)
        scene.line = line
        return scene

    return make


def test_the_command_is_given_until_it_ends_well(shell):
    scene = shell("test -e twice || { test -e once && touch twice; touch once; exit 3; }")
    assert scene.finish(6) and scene.codes == [3, 3, 0]
    scene = shell("exit 1")
    assert not scene.finish(4) and scene.codes == [1] * 4


def test_a_command_that_hangs_is_killed_and_complained_of(shell):
    scene = shell("sleep 60 & wait", limit=0.3)
    assert scene.wait(scene.start()) == HUNG and "hung" in scene.complaints[0]
    time.sleep(0.2)
    assert not [name for _, session, name in processes().values() if session in scene.sessions]


def test_processes_that_outlive_their_command_are_orphans(monkeypatch, shell):
    monkeypatch.setattr(fault_host, "PATIENCE", 0.2)
    scene = shell("sleep 60 >/dev/null 2>&1 &")
    assert scene.wait(scene.start()) == 0
    assert scene.orphans() == ["process sleep"]
    scene.end_session(*scene.sessions)
    assert scene.orphans() == []


def test_a_small_disk_is_full_when_it_is(tmp_path):
    try:
        with small_disk(tmp_path / "disk", 2**16):
            with pytest.raises(OSError, match="No space left"):
                (tmp_path / "disk" / "file").write_bytes(bytes(2**17))
            (tmp_path / "disk" / "file").unlink()
    except PermissionError as error:
        pytest.skip(str(error))
    assert not list((tmp_path / "disk").iterdir())


GOOD = faults.Round("driver", 0.5, "trials", True, [-9, 0], True, 0, 0, 0, [], [], [], 1.0)


@pytest.mark.parametrize(
    "change",
    [{"lost": 1}, {"doubled": 1}, {"wrong": 1}, {"leftovers": ["a"]}, {"complaints": ["b"]}, {"ended": False},
     {"happened": False}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_round_is_clean_only_if_nothing_is_amiss(change):
    assert GOOD.clean and not replace(GOOD, **change).clean


def test_the_table_has_a_row_a_fault_and_names_what_is_amiss(capsys):
    faults.show([GOOD, replace(GOOD, lost=7, leftovers=["x.partial"], codes=[-9, 1, 0])], Console(width=150))
    told = capsys.readouterr().out
    (row,) = (line for line in told.splitlines() if line.startswith("driver "))
    assert row.split() == ["driver", "2", "trials", "2", "7", "0", "0", "2x1", "3x1", "0", "1", "0"]
    assert "1 x driver: x.partial" in told


@pytest.mark.parametrize(
    "args", [["--faults", "flood"], ["--times", "-1"], ["--out", "rounds.csv"]], ids=lambda args: args[0]
)
def test_options_that_cannot_be_are_refused(args):
    with pytest.raises(InputError, match=args[0]):
        faults.main(args)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_is_disturbed_and_comes_to_the_same_end(tmp_path):
    out = tmp_path / "rounds.json"
    assert faults.main(["--faults", "driver", "corrupt", "--times", "1", "--small", "--out", str(out)]) == 0
    driver, corrupt = json.loads(out.read_text())["rounds"]
    assert driver["codes"][0] == -9 and driver["codes"][-1] == 0 and len(driver["codes"]) > 1
    assert corrupt["codes"][-1] == 0 and corrupt["fault"] == "corrupt"


def test_every_fault_is_offered_by_the_help(capsys):
    with pytest.raises(SystemExit):
        faults.main(["--help"])
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(name in told for name in FAULTS)
