"""No name in a file and no link leads a command out of the folders that it was given."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mantra_ray.cli import main
from mantra_ray.commands.retrain import winners
from mantra_ray.config import ExperimentConfig
from mantra_ray.data.sources import CATALOG
from mantra_ray.errors import InputError
from mantra_ray.files import atomic, clear_unfinished, unfinished
from mantra_ray.sweep import compact, seal
from mantra_ray.sweep.rowfiles import TRIALS_KEY
from mantra_ray.sweep.spec import SweepSpec
from mantra_ray.sweep.store import METADATA, Store
from mantra_ray.sweep.upload import upload
from mantra_ray.training.networks import networks_file

NAMES = ("../../escaped", "/escaped", "a/../../escaped", "..", "<script>alert(1)</script>")


def listing(folder: Path) -> dict[str, bytes | str | None]:
    """Everything under a folder: contents of files, targets of links."""
    found = {}
    for path in folder.rglob("*"):
        kind = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = kind
    return found


@pytest.fixture
def stand(tmp_path, monkeypatch):
    """Where a user stands, two folders below one whose other content must stay as it is."""
    here = tmp_path / "outer" / "inner" / "here"
    here.mkdir(parents=True)
    (tmp_path / "outer" / "kept.txt").write_text("kept")
    monkeypatch.chdir(here)
    return here


def rows(store: Store) -> list[str]:
    """Writes a small sweep: two trials of the memory and one of baselines on one split and seed."""
    arms = ({"nexus.regret_gamma": 0.0}, {"nexus.regret_gamma": 1.0})
    trials = SweepSpec("test", ExperimentConfig(), arms, (0,), ("seen",)).trials("data", "code")
    for trial in trials:
        arms = ["gnn", "zero"] if trial.kind == "baselines" else ["memory_off", "memory_shuffled", "memory_on"]
        where = {"split": "seen", "slice": "all", "metric": "program_mse_gain", "lower": 0.0, "upper": 1.0, "n": 4}
        scores = [where | {"arm": arm, "part": part, "value": 0.1} for arm in arms for part in ("validation", "test")]
        count = 8 * len(arms)
        errors = {"squared_error": np.ones(count), "reference_error": np.full(count, 2.0)}
        who = {"record": np.arange(count) % 8, "regulator": np.arange(count) % 4, "state": np.arange(count) % 2}
        part = np.tile(np.repeat(["validation", "test"], 4), len(arms))
        told = who | errors | {"arm": np.repeat(arms, 8), "part": part, "dose": np.full(count, 0.5, np.float32)}
        store.write(trial, {"status": "done", "seconds": 1.0}, scores, told)
    return [trial.id for trial in trials]


@pytest.fixture
def hostile(stand):
    """A sweep's folder from elsewhere: its rows are whole and sealed, and their trials and arms have NAMES."""
    root = stand / "hostile"
    ids = rows(Store(root / "results"))
    named = dict(zip(ids, NAMES, strict=False))
    for table in ("trials", "scores", "records", "curves"):
        stored = Store(root / "results").read(table)
        changed = {"trial": [named[trial] for trial in stored["trial"].to_pylist()]}
        if "arm" in stored.column_names:
            changed["arm"] = [NAMES[-1] if arm in ("zero", "gnn") else arm for arm in stored["arm"].to_pylist()]
        if table == "trials":
            changed |= {"error": [NAMES[-1]] * len(ids), "data.data": [NAMES[0]] * len(ids)}
        for name, values in changed.items():
            place = stored.column_names.index(name)
            stored = stored.set_column(place, name, pa.array(values, pa.string()).cast(stored.schema.field(name).type))
        shutil.rmtree(root / "results" / table)
        (root / "results" / table).mkdir()
        path = root / "results" / table / "compact-000001-0123abcd.parquet"
        with pq.ParquetWriter(path, stored.schema) as writer:
            writer.write_table(stored.sort_by("trial"))
            writer.add_key_value_metadata(METADATA | {TRIALS_KEY: json.dumps(sorted(named.values()))})
        seal.seal(path)
    (root / "sweep.json").write_text(json.dumps({"trials": list(named.values()), "timing": None}))
    assert Store(root / "results").finished() == set(named.values())
    return root


def test_rows_from_elsewhere_lead_no_command_out(hostile, stand, tmp_path, capsys):
    rows(Store(stand / "good" / "results"))
    (stand / "good" / "sweep.json").write_text((hostile / "sweep.json").read_text())
    before = listing(tmp_path)
    commands = ("status hostile", "results hostile", "results hostile --metrics", "merge hostile good --out out/both")
    commands += ("report hostile --out out/report", "report out/both --out out/again", "compact hostile")
    commands += (
        "predict hostile --regulator r --dose 1 --state s",
        "results hostile --table scores --csv out/rows.csv",
    )
    for command in commands:
        code = main(command.split())
        told = capsys.readouterr()
        assert code in (0, 2) and "Traceback" not in told.err, (command, told)
        assert code == 0 or command.startswith("predict"), (command, told)
    new = {name for name in listing(tmp_path) if name not in before}
    inside = "outer/inner/here/"
    assert new and all(
        name.startswith((f"{inside}out/", f"{inside}hostile/results/")) or name == f"{inside}out" for name in new
    )
    assert listing(tmp_path)["outer/kept.txt"] == b"kept"
    for page in ("report", "again"):
        text = (stand / "out" / page / "report.html").read_text()
        assert "<script" not in text and "&lt;script&gt;" in text
    with pytest.raises(InputError, match="is no trial's id"):
        winners(hostile)


@pytest.mark.parametrize("name", [*NAMES[:4], "a/b"])
def test_a_recipe_names_a_sweep_within_the_folder_of_sweeps(stand, tmp_path, capsys, name):
    (stand / "r.py").write_text(f"def recipe(options):\n    return options.sweep({name!r}, [{{}}])\n")
    before = listing(tmp_path)
    assert main(["sweep", "r.py", "--smoke", "--out", "runs"]) == 2
    assert "recipe: name: must be a plain name" in capsys.readouterr().err and listing(tmp_path) == before
    assert main(["sweep", "r.py", "--out", "runs", "--name", name]) == 2 and listing(tmp_path) == before


@pytest.mark.parametrize("name", NAMES[:4])
def test_a_fold_names_networks_beside_itself(tmp_path, name):
    with pytest.raises(InputError, match="must be the name of a file beside the fold"):
        networks_file(tmp_path, {"networks": name})
    assert networks_file(tmp_path, {"networks": "grn_a.pt"}) == tmp_path / "grn_a.pt"


def test_names_of_genes_regulators_and_states_become_no_paths(stand, tmp_path, capsys):
    who = {"reg_idx": np.arange(24) % 5, "dose": np.tile([0.3, 0.9], 12), "state": np.arange(24) % 2}
    names = {"gene_names": NAMES, "regulator_names": NAMES, "state_names": NAMES[:2], "strategy_names": NAMES[2:3]}
    names = {name: np.array(values) for name, values in names.items()}
    np.savez("screen.npz", **who, **names, deltaE=np.random.default_rng(0).normal(size=(24, 5)))
    before = listing(tmp_path)
    for command in ("tokens build --data screen.npz --out out --programs.k 2", "data describe screen.npz"):
        assert main(command.split()) == 0, capsys.readouterr().err
    new = {name.removeprefix("outer/inner/here/") for name in listing(tmp_path) if name not in before}
    assert new and all(name == "screen.png" or name.partition("/")[0] == "out" for name in new)
    stored = json.loads((stand / "out" / "vocab.json").read_text())
    assert not [name for name in NAMES if name in json.dumps(stored)]


def test_catalogued_files_have_plain_names():
    files = [file for entry in CATALOG.values() for file in entry.files]
    assert len(files) > 5 and all(Path(file.name).name == file.name and file.name[0] != "." for file in files)


def test_a_file_takes_the_place_of_a_link_and_what_it_points_to_stays(tmp_path):
    (tmp_path / "kept").write_text("kept")
    for link in (tmp_path / "a", unfinished(tmp_path / "b")):
        link.symlink_to(tmp_path / "kept")
    for name in ("a", "b"):
        with atomic(tmp_path / name) as partial:
            partial.write_text("new")
        assert (tmp_path / name).read_text() == "new" and not (tmp_path / name).is_symlink()
    assert (tmp_path / "kept").read_text() == "kept" and len(list(tmp_path.iterdir())) == 3


def test_clearing_up_does_not_follow_links(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "runs").mkdir()
    dead = unfinished(tmp_path / "runs" / "x").name.rpartition("-")[0] + "-999999999.partial"
    (tmp_path / "runs" / dead).symlink_to(tmp_path / "kept")
    clear_unfinished(tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir()) and (tmp_path / "kept" / "file").exists()


def test_compacting_and_copying_follow_no_links(tmp_path):
    store = Store(tmp_path / "one" / "results")
    trial = rows(store)[0]
    (tmp_path / "one" / "sweep.json").write_text("{}")
    path, elsewhere = tmp_path / "one" / "results" / "scores" / f"{trial}.parquet", tmp_path / "rows.parquet"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    content = elsewhere.read_bytes()
    with pytest.raises(InputError, match="is a link"):
        upload(tmp_path / "one", tmp_path / "copy")
    assert not list((tmp_path / "copy").rglob(f"scores/{trial}.parquet"))
    compact.compact(store)
    assert elsewhere.read_bytes() == content and not path.is_symlink()
    upload(tmp_path / "one", tmp_path / "copy")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "sweep.json").symlink_to(tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="is a link"):
        upload(tmp_path / "two", tmp_path / "other")
