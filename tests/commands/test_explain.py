"""`mantra explain`: the parts add up to the prediction, and what is said of them is so."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mantra_ray.commands.explain import main
from mantra_ray.config import LAPTOP, ExperimentConfig, NexusConfig
from mantra_ray.errors import InputError
from mantra_ray.training import residual
from mantra_ray.training.checkpoint import save
from mantra_ray.training.nexus import train_nexus

SMALL = NexusConfig(**LAPTOP | {"d_model": 16}, heads=2, buckets=16, slots=8, epochs=2, top_programs=3)
CLASSES = ("alpha", "beta", "gamma")


@pytest.fixture
def make(planted, tmp_path, monkeypatch):
    """Makes a fold, a memory trained on it with transport 0.4, and its checkpoint in the folder `out`."""
    monkeypatch.setattr(residual, "chosen_epoch", lambda errors, *_: len(errors) - 1)

    def build(said="", transport=0.4, **changes):
        fold = planted(classes=3, manifold=changes.get("correct") != "genes")
        config = dataclasses.replace(SMALL, **changes)
        trained = train_nexus(fold, config, 0)
        with torch.no_grad():
            for reader in trained.model.readers:
                reader.transport.fill_(transport)
        if said:  # explanations see the setting, and need no networks
            config = dataclasses.replace(config, correction=said)
        save(tmp_path / "out" / "model.pt", trained, fold, ExperimentConfig(nexus=config), CLASSES)
        return fold, trained, tmp_path / "out"

    return build


def asked(fold, row) -> list[str]:
    regulator, state = fold.names["regulator"][fold.regulator[row]], fold.names["state"][fold.state[row]]
    return ["--regulator", regulator, "--dose", str(fold.dose[row]), "--state", state]


def explained(folder, *args):
    """The table that is written, and by kind the sums of what was added, in the order of the names."""
    assert main([str(folder), *args, "--out", str(folder / "parts.parquet")]) == 0
    table = pq.read_table(folder / "parts.parquet").to_pandas()
    return table, {kind: rows.groupby("name", sort=False)["added"].sum() for kind, rows in table.groupby("kind")}


@pytest.mark.parametrize("changes", ({}, {"correct": "genes"}, {"routing": "levels"}, {"routing": "hash"}))
def test_sums_are_the_predictions_change(make, capsys, changes):
    fold, trained, folder = make(**changes)
    prediction = trained.predict(fold)
    for row in (*fold.test[:3], fold.test[-1], fold.validation[0]):
        _, sums = explained(folder, *asked(fold, row))
        changed = prediction.program[row] - fold.base_program[row]
        expected = {"program": changed, "trait": changed @ fold.trait_weights}
        if changes.get("correct") == "genes":
            expected["gene"] = prediction.expression[row] - fold.base_expression[row]
        assert set(sums) == set(expected) and np.abs(changed).max() > 1e-3
        for kind, values in expected.items():
            assert list(sums[kind].index) == fold.names[kind]
            np.testing.assert_allclose(sums[kind], values, atol=2e-5 * max(1, np.abs(values).max()))
        printed = capsys.readouterr().out
        largest = np.abs(sums["program"]).idxmax()
        assert f"{largest} " in printed and f"{sums['program'][largest]:+.4g}" in printed


def test_slots_are_told_with_their_records(make, capsys):
    fold, _, folder = make()
    row = fold.test[0]
    table, _ = explained(folder, *asked(fold, row))
    assert set(table["record"]) <= set(fold.train)
    regulators, states = np.array(fold.names["regulator"]), np.array(fold.names["state"])
    assert (table["regulator"] == regulators[fold.regulator[table["record"]]]).all()
    assert (table["state"] == states[fold.state[table["record"]]]).all()
    np.testing.assert_array_equal(table["dose"], fold.dose[table["record"]])
    assert (table["read"] == "hard").all() and set(table["regulator"]) == {regulators[fold.regulator[row]]}
    each = table.drop_duplicates("record")
    assert np.isclose(each["weight"].sum(), 1) and each["similarity"].between(-1, 1.0001).all()
    printed = capsys.readouterr().out
    assert f"{len(each)} training records" in printed and "hard read" in printed
    assert all(f"\n{record:>6}   " in printed for record in each["record"])


def test_a_record_of_the_memory_is_in_sight_unless_hidden(make):
    fold, trained, folder = make()
    correction = trained.corrections() @ fold.lift
    for row in fold.train[:4]:
        table, seen = explained(folder, *asked(fold, row))
        assert row in set(table["record"])
        table, hidden = explained(folder, *asked(fold, row), "--hide-own")
        assert row not in set(table["record"])
        np.testing.assert_allclose(hidden["program"], correction[row], atol=1e-5)
        assert np.abs(seen["program"] - correction[row]).max() > 1e-3


def test_a_dose_without_a_record_takes_the_nearest_base(make, capsys):
    fold, _, folder = make()
    row = fold.test[0]
    _, there = explained(folder, *asked(fold, row))
    assert f"that of record {row}, the same regulator, dose and state" in capsys.readouterr().out
    beside = asked(fold, row)
    beside[3] = str(fold.dose[row] + 0.01)
    _, near = explained(folder, *beside)
    assert f"taken from the nearest, record {row} " in capsys.readouterr().out
    np.testing.assert_allclose(near["program"], there["program"], atol=0.05)
    _, _, folder = make(transport=0.0)
    explained(folder, *beside)
    assert "base prediction" not in capsys.readouterr().out  # it plays no part


def test_an_unseen_regulator_reads_what_its_bucket_holds(make, capsys):
    fold, _, folder = make()
    table, _ = explained(folder, *asked(fold, fold.test[-1]))  # r23, bucket 7 of 16: r7's
    assert set(table["regulator"]) == {"r7"} and (table["read"] == "soft").all()
    printed = capsys.readouterr().out
    assert "not in training: its token is unknown" in printed and "bucket 7 of 16" in printed
    assert "class gamma" in printed and "0 of r23; soft read" in printed
    fold, _, folder = make(routing="class")
    table, _ = explained(folder, *asked(fold, fold.test[-1]))
    assert {int(name[1:]) % 3 for name in set(table["regulator"])} == {23 % 3} and table["regulator"].nunique() > 2
    assert "(class gamma)" in capsys.readouterr().out


def test_nothing_recalled_is_said(make, capsys):
    fold, _, folder = make(regret_gamma=float("inf"), priming=0)
    table, sums = explained(folder, *asked(fold, fold.test[0]))
    assert not len(table) and not sums
    printed = capsys.readouterr().out
    assert "Nothing was recalled: the correction is exactly 0" in printed and "holds 0 records" in printed


def test_of_a_recursive_correction_what_goes_in_is_told(make, capsys):
    fold, trained, folder = make(said="recursive")
    row = fold.test[0]
    _, sums = explained(folder, *asked(fold, row))
    np.testing.assert_allclose(sums["program"], trained.corrections()[row], atol=1e-5)
    assert "enters the layers of the GNN, which transform it" in capsys.readouterr().out


def test_top_limits_what_is_printed(make, capsys):
    fold, _, folder = make()
    assert main([str(folder), *asked(fold, fold.test[0]), "--top", "2"]) == 0
    printed = capsys.readouterr().out
    assert "the largest 2" in printed and sum(line.startswith("p") for line in printed.splitlines()) == 3


def test_bad_input_is_named_with_what_was_meant(make, tmp_path):
    fold, _, folder = make()
    good = asked(fold, fold.test[0])
    bad = {
        "--regulator": (["--regulator", "R7x", *good[2:]], "did you mean r7"),
        "--state": ([*good[:4], "--state", "c"], "names are a, b"),
        "--dose": ([*good[:2], "--dose", "1.5", *good[4:]], "from 0 to 1"),
        "--top": ([*good, "--top", "0"], "at least 1"),
        "--out": ([*good, "--out", str(tmp_path)], "ends in .parquet"),
    }
    for field, (args, problem) in bad.items():
        with pytest.raises(InputError, match=problem) as caught:
            main([str(folder), *args])
        assert caught.value.field == field
    with pytest.raises(InputError, match="must be given: a, b"):
        main([str(folder), *good[:4]])
    with pytest.raises(InputError, match=r"nowhere.model\.pt.*is not there"):
        main([str(tmp_path / "nowhere"), *good])
    path = folder / "model.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.pt.*cannot be read"):
        main([str(folder), *good, "--out", str(folder / "parts.parquet")])
    assert [file.name for file in folder.iterdir()] == ["model.pt"]
