"""`mantra tokens build`: what lies in the folder says what the data says, and nothing is left half-written."""

import dataclasses
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mantra_ray.commands.tokens import main
from mantra_ray.config import SimulationConfig, SplitConfig
from mantra_ray.data.simulate import simulate
from mantra_ray.data.splits import make_split
from mantra_ray.data.storage import write_npz
from mantra_ray.errors import InputError
from mantra_ray.nexus.tokens import Vocabulary

PARTS = ("train", "validation", "test")
FILES = {"vocab.json", "example_index.parquet", "loadings.parquet", *(f"tokens_{part}.pt" for part in PARTS)}


@pytest.fixture(scope="module")
def screen():
    return simulate(SimulationConfig(regulators=16, doses=(0.3, 0.6, 0.95), genes=40, programs=5))[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory, screen):
    """A user's files: a screen with expression, one with changes of programs alone, W and control embeddings."""
    folder = tmp_path_factory.mktemp("files")
    data = screen.data
    write_npz(dataclasses.replace(data, delta_trait=None, trait_names=()), folder / "screen.npz")
    who = {"reg_idx": data.regulator, "dose": data.dose, "state": data.state}
    np.savez(folder / "programs.npz", **who, deltaP_obs=data.delta_expression @ screen.loadings)
    np.savez(folder / "both.npz", **who, deltaP_obs=np.ones((len(data), 5)), deltaE=data.delta_expression)
    np.save(folder / "W.npy", screen.loadings)
    far = 10 * np.eye(3)[np.arange(len(data)) % 3]  # three groups of controls, far apart
    np.save(folder / "controls.npy", far + 0.1 * np.random.default_rng(0).normal(size=far.shape))
    return folder


def run(files, out, options):
    assert main(f"build --out {out} {options}".format(files).split()) == 0
    stored = {part: torch.load(out / f"tokens_{part}.pt", weights_only=True) for part in PARTS}
    return Vocabulary.load(out / "vocab.json"), stored, pq.read_table(out / "example_index.parquet").to_pandas()


GIVEN = "--data {0}/screen.npz --loadings {0}/W.npy --genes 0"
CASES = {
    "expression": GIVEN + " --nexus.top-programs 3 --nexus.top-genes 4",
    "programs": "--data {0}/programs.npz --nexus.top-programs 3",
    "both": "--data {0}/both.npz --loadings {0}/W.npy --genes 0 --nexus.top-programs 3",
}


@pytest.mark.parametrize("case", CASES)
def test_tokens_decode_to_the_changes_of_the_data(screen, files, tmp_path, case):
    vocabulary, stored, _ = run(files, tmp_path / "out", CASES[case] + " --split context --seed 3")
    data, genes = screen.data, 4 if case == "expression" else 0
    split = make_split(data, SplitConfig("context"), 3)
    expression = np.clip(data.delta_expression, -5, 5)
    program = expression @ screen.loadings
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES - (
        {"loadings.parquet"} if case == "programs" else set()
    )
    assert vocabulary.top_programs == 3 and vocabulary.top_genes == genes
    edges = np.quantile(np.abs(program[split.train]), np.linspace(0, 1, 10)[1:-1])  # of the training fold alone
    assert vocabulary.magnitude_edges == pytest.approx(edges, rel=1e-5)
    for part in PARTS:
        record, rows, stream = (stored[part][name] for name in ("record", "tokens", "stream"))
        assert record.tolist() == getattr(split, part).tolist() and rows.dtype == torch.int64
        assert rows.shape == (len(record), 3 + 3 + genes + 1)
        assert stream[0] == vocabulary.special("BOS") and stream[-1] == vocabulary.special("EOS")
        header = vocabulary.header(data.regulator, data.dose, data.state)[record]
        assert (rows[:, :3].numpy() == header).all()
        for i, changes in zip(record.tolist(), vocabulary.decode_content(rows.numpy()), strict=True):
            for kind, change, top, bins in (
                ("PROG", program[i], 3, vocabulary.magnitude_edges),
                ("GENE", expression[i], genes, vocabulary.gene_edges),
            ):
                told = [c for c in changes if c.kind == kind]
                sizes = [abs(change[c.index]) for c in told]
                assert len(told) == top and sizes == sorted(np.abs(change).tolist(), reverse=True)[:top]
                assert [c.sign for c in told] == [np.sign(change[c.index]) for c in told]
                assert [c.bin for c in told] == np.searchsorted(bins, sizes, side="right").tolist()


def test_the_index_points_at_the_right_records(screen, files, tmp_path):
    vocabulary, stored, index = run(files, tmp_path, GIVEN + " --split unseen")
    data = screen.data
    assert sorted(index["record"]) == list(range(len(data)))
    for row in index.itertuples():
        own = stored[row.split]["record"].tolist().index(row.record)
        found = stored[row.split]["stream"][row.offset : row.offset + vocabulary.length]
        assert torch.equal(found, stored[row.split]["tokens"][own]) and found[-1] == vocabulary.special("ENDREC")
        assert (row.regulator, row.state) == (data.regulator[row.record], data.state[row.record])
        assert row.dose == data.dose[row.record]
        assert (row.regulator_name, row.state_name) == (
            data.regulator_names[row.regulator],
            data.state_names[row.state],
        )
        assert (
            found[:3].tolist() == vocabulary.header(*np.array([[row.regulator], [row.dose], [row.state]])).tolist()[0]
        )
        assert row.known == (row.split == "train")  # each regulator lies in one part, the split says
    assert set(index["split"]) == set(PARTS)


def test_fitted_programs_come_back_through_the_loadings_file(files, tmp_path):
    fitted = "--data {0}/screen.npz --genes 25 --programs.k 4 --nexus.top-genes 2"
    vocabulary, stored, _ = run(files, tmp_path / "fitted", fitted)
    written = tmp_path / "fitted" / "loadings.parquet"
    table = pq.read_table(written)
    assert table.num_rows == 25 == vocabulary.genes and table.column_names[1:] == [f"program{i}" for i in range(4)]
    again, same, _ = run(files, tmp_path / "given", f"{fitted} --loadings {written}")
    assert again == vocabulary
    assert all(torch.equal(stored[part]["tokens"], same[part]["tokens"]) for part in PARTS)


def test_states_are_those_of_the_data_clusters_or_none(screen, files, tmp_path):
    def states(options):
        vocabulary, _, index = run(files, tmp_path, f"{GIVEN} {options}")
        return vocabulary.states, index.sort_values("record")["state"].to_numpy()

    count, given = states("--states given")
    assert count == 2 and (given == screen.data.state).all()
    count, none = states("--states none")
    assert count == 1 and not none.any()
    count, clusters = states("--states kmeans --clusters 3 --control-embedding {0}/controls.npy")
    groups = np.arange(len(clusters)) % 3
    assert count == 3 and len(set(zip(groups, clusters, strict=True))) == 3 == len(set(clusters))


def test_clusters_are_learned_on_the_training_fold_alone(screen, files, tmp_path):
    """Held-out records far from all others would be a cluster of their own, were they seen."""
    split = make_split(screen.data, SplitConfig("seen"), 0)
    controls = np.load(files / "controls.npy")
    controls[np.concatenate([split.validation, split.test])] += 1000
    np.save(tmp_path / "far.npy", controls)
    options = f"{GIVEN} --split seen --states kmeans --clusters 3 --control-embedding {tmp_path}/far.npy"
    _, _, index = run(files, tmp_path / "out", options)
    assert set(index[index["split"] == "train"]["state"]) == {0, 1, 2}


def test_the_split_is_the_first_that_makes_sense_unless_another_is_named(screen, files, tmp_path):
    for options, kind in (("", "seen"), ("--split unseen", "unseen")):
        _, stored, _ = run(files, tmp_path, f"{GIVEN} {options} --test-fraction 0.3")
        expected = make_split(screen.data, SplitConfig(kind, test_fraction=0.3), 0)
        assert stored["test"]["record"].tolist() == expected.test.tolist()


WRONG = {
    "--split": GIVEN + " --split other",
    "--states": GIVEN + " --states kmeans",
    "--clusters": GIVEN + " --states kmeans --clusters 97 --control-embedding {0}/controls.npy",
    "--control-embedding": GIVEN + " --states kmeans --control-embedding {0}/W.npy",
    "--nexus.top-genes": "--data {0}/programs.npz --nexus.top-genes 3",
    "--seed": GIVEN + " --seed -1",
    "programs.k": "--data {0}/screen.npz --programs.k 1000",
}


@pytest.mark.parametrize("field", WRONG)
def test_bad_input_is_named_and_leaves_nothing(files, tmp_path, field):
    with pytest.raises(InputError) as caught:
        main(f"build --out {tmp_path}/out {WRONG[field]}".format(files).split())
    assert caught.value.field == field and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stored", ["text", np.array([["a"]]), np.full((96, 2), np.nan), np.array(3.0)])
def test_an_embedding_that_is_none_is_refused(files, tmp_path, stored):
    path = tmp_path / "controls.npy"
    path.write_text(stored) if isinstance(stored, str) else np.save(path, stored)
    with pytest.raises(InputError, match="control-embedding"):
        main(f"build --out {tmp_path}/out {GIVEN} --states kmeans --control-embedding {path}".format(files).split())


@pytest.mark.parametrize("failing", ["save", "replace"])
def test_a_write_that_fails_leaves_no_index_of_half_a_build(files, tmp_path, monkeypatch, failing):
    def fail(*_):
        raise OSError("the disk is full")

    def later(source, target, replace=os.replace):
        if str(target).endswith("tokens_train.pt"):  # after others have taken their places
            fail()
        replace(source, target)

    run(files, tmp_path / "old", GIVEN)
    (tmp_path / "old" / "model.pt").write_text("another command's")
    index = (tmp_path / "old" / "example_index.parquet").read_bytes()
    for out in ("old", "new"):
        with monkeypatch.context() as patch:
            patch.setattr(*(torch, "save", fail) if failing == "save" else (os, "replace", later))
            with pytest.raises(OSError, match="full"):
                main(f"build --out {tmp_path}/{out} {GIVEN} --seed 1".format(files).split())
    assert not (tmp_path / "new").exists()
    left = {path.name for path in (tmp_path / "old").iterdir()}
    assert "model.pt" in left and not any(name.startswith(".") for name in left)
    if failing == "save":  # nothing was touched yet
        assert left == FILES | {"model.pt"} and (tmp_path / "old" / "example_index.parquet").read_bytes() == index
    else:
        assert "example_index.parquet" not in left


def test_another_build_replaces_the_first_and_nothing_else(files, tmp_path):
    run(files, tmp_path, GIVEN)
    (tmp_path / "model.pt").write_text("another command's")
    _, stored, _ = run(files, tmp_path, "--data {0}/programs.npz --nexus.top-programs 2")
    assert stored["train"]["tokens"].shape[1] == 6
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"loadings.parquet"} | {"model.pt"}


def test_the_summary_counts_records_and_tokens(files, tmp_path, capsys):
    vocabulary, stored, _ = run(files, tmp_path, GIVEN)
    printed = capsys.readouterr().out
    for part in PARTS:
        line = next(line for line in printed.splitlines() if f" {part} " in line)
        assert str(len(stored[part]["record"])) in line and str(len(stored[part]["stream"])) in line
    line = next(line for line in printed.splitlines() if " PROG " in line)
    assert str(5 * 2 * vocabulary.bins) in line and "5 a record" in line


def test_help_and_misuse(capsys):
    assert main(["--help"]) == 0 and "mantra tokens build" in capsys.readouterr().out
    assert main([]) == 2 and main(["make"]) == 2 and "usage" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["build", "--help"])
    assert caught.value.code == 0 and "--control-embedding" in capsys.readouterr().out
