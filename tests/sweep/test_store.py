import json
import os
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray import files
from mantra_ray.config import ExperimentConfig
from mantra_ray.errors import InputError
from mantra_ray.fields import flatten, replace
from mantra_ray.sweep import schema
from mantra_ray.sweep.rowfiles import DamagedFile, decode
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.sweep.store import Store

SCORE = {"arm": "memory_on", "split": "seen", "part": "test", "slice": "all", "metric": "program_mse"}
SCORE |= {"value": 0.5, "lower": 0.4, "upper": 0.6, "n": 4}
CURVE = {"epoch": 1, "metric": "loss", "value": 0.25}
TABLES = tuple(schema.SCHEMAS)


def trial(seed=0):
    return TrialSpec("nexus", replace(ExperimentConfig(), seed=seed), "data", "code")


def fill(store, records, seeds=3):
    for seed in range(seeds):
        store.write(trial(seed), {"status": "done"}, [SCORE], records({"memory_on": 0.5}, seed), [CURVE])


def write_version_1(folder, spec, columns):
    """The files that the first version of the tables had: no metadata, git_commit and git_dirty."""
    pairing = {"trial": spec.id, "kind": spec.kind, "seed": spec.config.seed}
    config = {name: json.dumps(v) if isinstance(v, list) else v for name, v in flatten(spec.config).items()}
    origin = {"provenance.code": "code", "provenance.git_commit": "abc", "provenance.git_dirty": True}
    shared = pairing | {"split": "seen"}
    repeated = {name: [value] * len(columns["record"]) for name, value in shared.items()}
    before = pa.schema([field for field in schema.RECORDS if field.name not in schema.SLICES])
    tables = {
        "scores": pa.Table.from_pylist([pairing | SCORE], schema.SCORES),
        "records": pa.table(repeated | columns).select(before.names).cast(before),
        "curves": pa.Table.from_pylist([pairing | CURVE], schema.CURVES),
        "trials": pa.Table.from_pylist([pairing | config | {"status": "done", "error": None} | origin]),
    }
    for name, rows in tables.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, folder / name / f"{spec.id}.parquet", compression="zstd")


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path):
    """An address where results may lie."""
    return tmp_path / "results" if request.param == "local" else f"memory://{tmp_path.name}/results"


def test_rows_come_back(place, records):
    store, columns = Store(place), records({"memory_off": 1.0, "memory_on": 0.5})
    row = {"status": "done", "seconds": 1.5, "write_density": 0.3, "new_diagnostic": 2.0, "provenance.dirty": True}
    store.write(trial(), row | {"unknown": None}, [SCORE], columns, [CURVE])
    (read,) = store.read("trials").to_pylist()
    assert read["trial"] == trial().id and read["seed"] == 0 and read["error"] is None
    assert {name: read[name] for name in row} == row
    for name, value in flatten(ExperimentConfig()).items():
        assert name in read and (isinstance(value, list) or read[name] == value)
    assert read["data.simulation.doses"] == "[0.3, 0.6, 0.95]"
    pairing = {"trial": trial().id, "kind": "nexus", "seed": 0}
    assert store.read("scores").to_pylist() == [pairing | SCORE]
    assert store.read("curves").to_pylist() == [pairing | CURVE]
    stored = store.read("records")
    assert set(stored["split"].to_pylist()) == {"seen"}
    for name, values in columns.items():
        np.testing.assert_array_equal(np.asarray(stored[name].to_pylist()), values.tolist())
    assert store.finished() == {trial().id}


def test_rows_of_some_trials_where_something_holds(place, records):
    store = Store(place)
    fill(store, records, 20)
    wanted = [trial(3).id, trial(17).id, "0" * 16]
    where = (ds.field("part") == "test") & (ds.field("record") > 8)
    rows = store.read("records", wanted, ["seed", "record"], where).to_pylist()
    assert sorted((row["seed"], row["record"]) for row in rows) == [(s, r) for s in (3, 17) for r in (9, 10, 11)]
    assert store.read("trials", wanted, ["seed"], ds.field("kind") == "nexus").num_rows == 2
    assert [row["trial"] for row in store.read("trials").to_pylist()] == sorted(trial(s).id for s in range(20))


def test_a_column_that_no_trial_has_is_an_input_error(tmp_path, records):
    store = Store(tmp_path)
    fill(store, records, 1)
    with pytest.raises(InputError, match="no_such"):
        store.read("trials", columns=["no_such"])


def test_trials_may_differ_in_their_columns(tmp_path):
    store = Store(tmp_path)
    store.write(trial(0), {"status": "done", "one": 1.0})
    store.write(trial(1), {"status": "done", "other": "text"})
    rows = {row["seed"]: row for row in store.read("trials").to_pylist()}
    assert (rows[0]["one"], rows[0]["other"], rows[1]["one"], rows[1]["other"]) == (1.0, None, None, "text")
    assert store.read("trials", columns=["seed", "one"], where=ds.field("other") == "text").to_pylist() == [
        {"seed": 1, "one": None}
    ]


def test_failed_and_pruned_trials_are_kept_but_not_finished(tmp_path):
    store = Store(tmp_path)
    for seed, status in enumerate(("failed", "done", "pruned")):
        store.write(trial(seed), {"status": status})
    assert store.finished() == {trial(1).id}
    assert store.ended() == {trial(0).id: "failed", trial(1).id: "done", trial(2).id: "pruned"}
    store.write(trial(0), {"status": "done"})  # seen by a store that has looked before
    assert store.finished() == {trial(0).id, trial(1).id}
    assert store.read("trials").num_rows == 3


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
def test_trial_counts_only_when_all_tables_are_there(tmp_path, monkeypatch, fails_at):
    calls = []

    def replace_until(source, target):
        calls.append(target)
        if len(calls) == fails_at:
            raise OSError("disk full")
        os.rename(source, target)

    monkeypatch.setattr(files.os, "replace", replace_until)
    store = Store(tmp_path)
    with pytest.raises(OSError, match="disk full"):
        store.write(trial(), {"status": "done"}, [SCORE])
    assert store.finished() == set()
    assert store.read("trials").num_rows == 0


def test_files_of_a_table_share_one_schema(tmp_path, records):
    store = Store(tmp_path)
    store.write(trial(0), {"status": "failed", "error": "no"})
    store.write(trial(1), {"status": "done", "load": 0.5}, [SCORE], records({"memory_on": 1.0}), [CURVE])
    for table in TABLES:
        first, second = (pq.read_schema(path) for path in sorted((tmp_path / table).glob("*.parquet")))
        assert first.equals(second)
        assert Store(tmp_path).read(table).schema.equals(schema.SCHEMAS[table])


def test_empty_store(place):
    store = Store(place)
    assert store.finished() == set()
    assert store.read("scores", columns=["arm", "value"]).to_pylist() == []


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("harm", ["truncated", "empty", "one bit", "text", "gone", "another trial's"])
def test_a_damaged_file_counts_as_not_there(tmp_path, records, table, harm):
    store = Store(tmp_path)
    fill(store, records)
    assert len(store.finished()) == 3
    broken, kept = trial(1).id, {trial(0).id, trial(2).id}
    path = tmp_path / table / f"{broken}.parquet"
    whole = path.read_bytes()
    if harm == "gone":
        path.unlink()
    elif harm == "another trial's":
        path.write_bytes((tmp_path / table / f"{trial(0).id}.parquet").read_bytes())
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]
        path.write_bytes({"truncated": whole[:-20], "empty": b"", "one bit": flipped, "text": b"hello"}[harm])
    for look in (store, Store(tmp_path)):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert look.finished() == kept
            seen = set(look.read(table).column("trial").to_pylist())
        assert seen == kept
        if harm != "gone":
            assert any(broken in str(warning.message) and warning.category is DamagedFile for warning in told)
    store.write(trial(1), {"status": "done"}, [SCORE], records({"memory_on": 0.5}, 1), [CURVE])
    assert len(store.finished()) == 3 and path.read_bytes() == whole


def test_stray_files_are_told_and_left_out(tmp_path, records):
    store = Store(tmp_path)
    fill(store, records, 1)
    whole = (tmp_path / "scores" / f"{trial(0).id}.parquet").read_bytes()
    (tmp_path / "scores" / "copy.parquet").write_bytes(whole)
    (tmp_path / "scores" / "notes.txt").write_text("x")
    (tmp_path / "scores" / "compact-000001-00000000.parquet").write_bytes(b"PAR1")
    with pytest.warns(DamagedFile) as told:
        assert store.read("scores").num_rows == 1 and store.finished() == {trial(0).id}
    assert {
        name for warning in told for name in ("copy", "compact-000001", "notes") if name in str(warning.message)
    } == {
        "copy",
        "compact-000001",
    }


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 7), st.sampled_from(TABLES))
def test_every_wrong_bit_is_found(tmp_path_factory, where, bit, table):
    folder = tmp_path_factory.getbasetemp() / "bits"
    path = folder / table / f"{trial().id}.parquet"
    if not path.exists():
        Store(folder).write(trial(), {"status": "done"}, [SCORE] * 3, None, [CURVE] * 3)
    data = bytearray(path.read_bytes())
    decode(bytes(data), table, path)
    data[where % len(data)] ^= 1 << bit
    with pytest.raises(Exception):  # noqa: B017  whatever a decoder says of wrong bytes
        decode(bytes(data), table, path)


def test_a_trial_is_read_while_files_vanish(tmp_path, records, monkeypatch):
    store = Store(tmp_path)
    fill(store, records, 2)
    path, find, calls = tmp_path / "scores" / f"{trial(0).id}.parquet", Store.files, []

    def vanishing(self, table):
        found = find(self, table)
        if table == "scores" and not calls:
            calls.append(path.unlink())  # as a compaction does, after the listing
        return found

    monkeypatch.setattr(Store, "files", vanishing)
    assert store.read("scores")["seed"].to_pylist() == [1] and calls == [None]


def test_version_1_is_read_as_today(tmp_path, records):
    columns = records({"memory_off": 1.0, "memory_on": 0.5})
    write_version_1(tmp_path, trial(0), columns)
    store = Store(tmp_path)
    store.write(trial(1), {"status": "done", "provenance.commit": "def"}, [SCORE], columns, [CURVE])
    rows = {row["seed"]: row for row in store.read("trials").to_pylist()}
    assert rows[0]["provenance.commit"] == "abc" and rows[0]["provenance.dirty"] is True
    assert rows[1]["provenance.commit"] == "def" and "provenance.git_commit" not in rows[0]
    assert rows[0]["write_density"] is None  # a column that file has not
    assert store.read("trials", columns=["provenance.commit"])["provenance.commit"].to_pylist() in (
        ["abc", "def"],
        ["def", "abc"],
    )
    old, new = (store.read("records", [trial(s).id]).drop_columns(["trial", "seed"]).to_pylist() for s in (0, 1))
    assert old == new and store.finished() == {trial(0).id, trial(1).id}
    path = tmp_path / "records" / f"{trial(0).id}.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.warns(DamagedFile):
        assert store.finished() == {trial(1).id}


def test_migrations_are_a_chain(monkeypatch):
    """From each version to the next, in order, up to today's."""
    assert sorted(schema.MIGRATIONS) == list(range(1, schema.VERSION))
    monkeypatch.setattr(schema, "VERSION", 4)
    steps = {n: lambda table, rows, n=n: rows.append_column(f"{table}{n}", pa.array([n])) for n in (1, 2, 3)}
    monkeypatch.setattr(schema, "MIGRATIONS", steps)
    assert schema.migrate("scores", pa.table({"a": [1]}), 2).column_names == ["a", "scores2", "scores3"]
    assert schema.migrate("scores", pa.table({"a": [1]}), 4).column_names == ["a"]


def test_later_versions_are_refused(tmp_path, records, monkeypatch):
    monkeypatch.setitem(Store.write.__globals__["METADATA"], schema.KEY, str(schema.VERSION + 1))
    store = Store(tmp_path)
    fill(store, records, 1)
    for read in (store.finished, lambda: store.read("scores")):
        with pytest.raises(InputError, match="newer mantra_ray"):
            read()


def test_addresses_of_no_known_kind_are_input_errors():
    for address in ("nope://bucket/runs", "s3+unknown://x"):
        with pytest.raises(InputError, match="Protocol not known"):
            Store(address)


def test_the_files_do_not_depend_on_chance(tmp_path, records):
    """Same rows, same bytes: what makes a folder of results comparable by hash."""
    for name in ("a", "b"):
        fill(Store(tmp_path / name), records, 1)
    for table in TABLES:
        first, second = ((tmp_path / name / table / f"{trial(0).id}.parquet").read_bytes() for name in "ab")
        assert first == second
