"""`mantra predict`: what it says is what the training predicted, with honest intervals, from the folder alone."""

import contextlib
import dataclasses
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray import cli
from mantra_ray.commands import train
from mantra_ray.commands.predict import SCHEMA, PredictOptions, main
from mantra_ray.commands.train import TrainOptions
from mantra_ray.errors import InputError
from mantra_ray.fields import replace
from mantra_ray.forward import Fold
from mantra_ray.training import stages
from mantra_ray.training.checkpoint import load_folder
from mantra_ray.training.distributed import save_unit
from mantra_ray.training.ensemble import Ensemble, half_width
from mantra_ray.training.predictor import Predictor

SMALL = (
    "--simulation.regulators 16 --simulation.genes 40 --simulation.programs 5 --split context "
    "--grn.epochs 1 --grn.folds 2 --grn.hidden 8 --grn.layers 2 --nexus.epochs 1 --nexus.d-model 16 "
    "--nexus.heads 2 --nexus.buckets 16 --nexus.slots 8 --evaluation.bootstrap 20 --programs.restarts 1 "
    "--manifold.updates 20 --manifold.hidden 8 --manifold.cells 100 "
)
CASES = {
    "seed3": "--seed 3 --genes 35",
    "seed4": "--seed 4 --genes 35",
    "genes": "--seed 3 --correct genes",
    "recursive": "--seed 3 --correction recursive --manifold.smooth",
    "energy": "--seed 3 --manifold.smooth --manifold.energy",
    "unseen": "--seed 3 --split unseen",
    "programs": "--seed 3 --data {0}/programs.npz --split seen",
}


@contextlib.contextmanager
def no_ray(address):
    yield {"CPU": 1.0, "GPU": 0.0}


def units_here(records, units, *_):
    for unit in units:
        save_unit(unit, unit.train(records))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of each case's training."""
    root = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    who = {"reg_idx": np.arange(80) % 10, "dose": rng.random(80), "state": np.arange(80) // 40}
    np.savez(root / "programs.npz", **who, deltaP_obs=rng.normal(size=(80, 4)), deltaY_obs=rng.normal(size=(80, 2)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "connected", no_ray)
        patch.setattr(stages, "run_units", units_here)
        for case, options in CASES.items():
            assert train.main(f"{SMALL} {options.format(root)} --out {root / case}".split()) == 0
    return root


def fold_of(folder) -> Fold:
    return Fold.load(next((folder / "artifacts").glob("fold_*.npz")))


def asked(fold, row) -> list[str]:
    regulator, state = fold.names["regulator"][fold.regulator[row]], fold.names["state"][fold.state[row]]
    return ["--regulator", regulator, "--dose", str(fold.dose[row]), "--state", state]


@pytest.mark.parametrize("case", CASES)
def test_held_out_records_are_predicted_as_in_training(runs, case, tmp_path):
    """From the folder without its artifacts, in every mode: the arm `memory_on` of test and validation rows."""
    fold, folder = fold_of(runs / case), runs / case
    expected = load_folder(folder).trained(fold, folder / "artifacts").predict(fold)
    shutil.copy(folder / "model.pt", tmp_path)
    checkpoint = load_folder(tmp_path)
    rows = np.sort(np.concatenate([fold.test, fold.validation]))
    base, found, _ = Predictor(checkpoint, ()).predict(fold.regulator[rows], fold.dose[rows], fold.state[rows])
    for name in ("program", "trait", "expression"):
        wanted = getattr(expected, name)
        assert (wanted is None) == (getattr(found, name) is None) == (name == "expression" and case == "programs")
        if wanted is not None:
            size = np.abs(wanted).max(initial=0)
            np.testing.assert_allclose(getattr(found, name), wanted[rows], atol=2e-5 * max(size, 1e-6), rtol=1e-4)
    np.testing.assert_allclose(base.program, fold.base_program[rows], atol=1e-5, rtol=1e-4)
    assert (found.program != base.program).any() or case == "unseen"
    assert bool(checkpoint.before.get("descent")) == (case == "energy")


def test_a_file_of_records_gives_the_same_in_long_form(runs, tmp_path, monkeypatch):
    fold, folder = fold_of(runs / "seed3"), runs / "seed3"
    rows = fold.test[:5]
    names = (np.array(fold.names[kind])[getattr(fold, kind)[rows]] for kind in ("regulator", "state"))
    table = pa.table(dict(zip(("regulator", "state"), names, strict=True)) | {"dose": fold.dose[rows]})
    pq.write_table(table, tmp_path / "ask.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "ask.csv")
    monkeypatch.setattr("mantra_ray.commands.predict.BLOCK", 2)
    found = {}
    for kind in ("parquet", "csv"):
        ask, out = str(tmp_path / f"ask.{kind}"), tmp_path / f"{kind}.parquet"
        assert main([str(folder), "--records", ask, "--out", str(out)]) == 0
        found[kind] = pq.read_table(out)
    assert found["csv"].equals(found["parquet"])
    told = found["csv"].to_pandas()
    assert ",".join(told.columns) == "record,regulator,dose,state,kind,name,value,lower,upper,seeds"
    expected = load_folder(folder).trained(fold, folder / "artifacts").predict(fold)
    for kind, values in (("gene", expected.expression), ("program", expected.program), ("trait", expected.trait)):
        part = told[told["kind"] == kind]
        assert part["name"].tolist() == fold.names[kind] * 5 and (np.diff(part["record"]) >= 0).all()
        np.testing.assert_allclose(part["value"], values[rows].ravel(), atol=1e-4)
        np.testing.assert_allclose(part["dose"], np.repeat(fold.dose[rows], len(fold.names[kind])))
    assert told["lower"].isna().all() and told["upper"].isna().all() and set(told["seeds"]) == {1}


def test_two_seeds_give_means_and_students_interval(runs, tmp_path, capsys):
    folders = [runs / "seed3", runs / "seed4"]
    one = asked(fold_of(folders[0]), fold_of(folders[0]).test[0])
    assert main([*map(str, folders), *one, "--out", str(tmp_path / "both.parquet")]) == 0
    printed = capsys.readouterr().out
    assert "Mean over 2 seeds [95% interval" in printed and printed.count("Recalled by") == 2
    both = pq.read_table(tmp_path / "both.parquet").to_pandas().set_index(["kind", "name"])
    single = []
    for folder in folders:
        assert main([str(folder), *one, "--out", str(tmp_path / "one.parquet")]) == 0
        single.append(pq.read_table(tmp_path / "one.parquet").to_pandas().set_index(["kind", "name"])["value"])
    assert "One seed: no interval" in capsys.readouterr().out
    shared = single[0].index.intersection(single[1].index)
    shared = [key for key in shared if key[0] == "gene"]
    genes = [set(part.loc["gene"].index) for part in single]
    assert len(shared) == len(genes[0] & genes[1]) < len(genes[0] | genes[1])
    values = np.stack([part.loc[shared] for part in single])
    np.testing.assert_allclose(both.loc[shared, "value"], values.mean(0), rtol=1e-4, atol=1e-6)
    half = 12.7062 * values.std(0, ddof=1) / np.sqrt(2)  # Student's t at 0.975 with one degree of freedom
    np.testing.assert_allclose(both.loc[shared, "upper"] - both.loc[shared, "value"], half, rtol=1e-3, atol=1e-5)
    alone = [("gene", name) for name in genes[0] ^ genes[1]]
    assert (both.loc[alone, "seeds"] == 1).all() and both.loc[alone, "lower"].isna().all()
    assert (both.loc[shared, "seeds"] == 2).all() and both.loc[shared, "lower"].notna().all()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(0, 2**31), st.floats(0.5, 0.99))
def test_the_interval_scales_and_ignores_seeds_that_do_not_tell(seeds, draw, confidence):
    rng = np.random.default_rng(draw)
    values = rng.normal(size=(seeds, 3, 4))
    count = np.full(4, seeds)
    half = half_width(values, count, confidence)
    assert (half > 0).all()
    np.testing.assert_allclose(half_width(-3 * values + 7, count, confidence), 3 * half)
    padded = np.concatenate([values, np.full((1, 3, 4), np.nan)])
    np.testing.assert_allclose(half_width(padded, count, confidence), half)
    assert (half_width(values, count, (1 + confidence) / 2) > half).all()
    assert np.isnan(half_width(values[:1], np.ones(4, int), confidence)).all()


def test_programs_of_another_seed_are_told_by_the_first_ones_loadings(runs):
    one, other = (load_folder(runs / case) for case in ("recursive", "energy"))
    other = dataclasses.replace(other, config=replace(one.config, seed=9))  # both kept all genes
    ensemble = Ensemble([one, other], [])
    who = np.array([0, 1]), np.array([0.3, 0.6], np.float32), np.array([0, 1])
    parts = [
        predictor.predict(*who)[1].expression @ one.cascade["loadings"].numpy() for predictor in ensemble.predictors
    ]
    np.testing.assert_allclose(ensemble.predict(*who).value["program"], np.mean(parts, 0), atol=1e-5)
    assert set(ensemble.seeds["program"]) == {2}


def test_a_gene_that_was_never_perturbed_gets_the_networks_prediction(runs, capsys, tmp_path):
    folder = runs / "seed3"
    checkpoint = load_folder(folder)
    gene = next(name for name in checkpoint.names["gene"] if name not in checkpoint.names["regulator"])
    assert (
        main([str(folder), "--regulator", gene, "--dose", "0.8", "--state", "state0", "--out", f"{tmp_path}/g.parquet"])
        == 0
    )
    assert "the memory is silent" in capsys.readouterr().out
    told = pq.read_table(tmp_path / "g.parquet").to_pandas()
    own = told[(told["kind"] == "gene") & (told["name"] == gene)]["value"].item()
    assert own < -0.5 and own == told[told["kind"] == "gene"]["value"].min()  # dose 0.8 leaves a fifth of the gene
    predictor = Predictor(checkpoint, [gene])
    place, dose = np.array([predictor.place[gene], 0]), np.array([0.8, 0.8])
    alone, found, _ = predictor.predict(place, dose, np.array([0, 0]))
    assert np.array_equal(alone.expression[0], found.expression[0])
    other = Predictor(checkpoint, ()).predict(place[1:], dose[1:], np.array([0]))[1]
    np.testing.assert_allclose(found.expression[1], other.expression[0], atol=1e-5)  # the others stay


def test_a_genes_embedding_is_what_training_gives_an_untrained_regulator(runs):
    """Regulators of the test part are in no network's training: asked for as genes, they get the same embedding."""
    checkpoint = load_folder(runs / "unseen")
    names, records = checkpoint.names, checkpoint.records
    never = set(range(len(names["regulator"]))) - set(records["regulator"][records["train"]].tolist())
    untrained = [r for r in never if names["regulator"][r] in names["gene"]]
    predictor, nodes = Predictor(checkpoint, ()), [names["gene"].index(names["regulator"][r]) for r in untrained]
    for fold, network in enumerate(checkpoint.before["networks"]):
        more = predictor._with_genes(fold, network, nodes)
        assert more["inputs"]["regulator_node"][-len(nodes) :].tolist() == nodes
        own = network["weights"]["own"][untrained]
        assert own.any()
        torch.testing.assert_close(more["weights"]["own"][-len(nodes) :], own)


BAD = {
    "--dose": ("--dose 1.5 --regulator {r}", "from 0 to 1"),
    "--regulator": ("--dose 0.5 --regulator {r}x --state state0", "did you mean"),
    "--state": ("--dose 0.5 --regulator {r} --state stat", "did you mean state"),
    "--top": ("--dose 0.5 --regulator {r} --top 0", "at least 1"),
    "--out": ("--dose 0.5 --regulator {r} --out here.csv", "ends in .parquet"),
}


@pytest.mark.parametrize("field", BAD)
def test_bad_input_is_named(runs, field, capsys):
    folder = runs / "seed3"
    name = load_folder(folder).names["regulator"][2]
    assert cli.main(["predict", str(folder), *BAD[field][0].format(r=name).split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f": {field}: " in error and BAD[field][1] in error


ROWS = {
    "regulator": ("nobody,0.5,state0", "row 1: the data has no such regulator"),
    "dose": ("{r},1.01,state0", "row 1: must be from 0 to 1"),
    "state": ("{r},0.5,nowhere", "row 1: the data has no such state"),
}


@pytest.mark.parametrize("field", ROWS)
def test_bad_rows_are_named_and_nothing_is_written(runs, tmp_path, field, capsys):
    row, problem = ROWS[field]
    name = load_folder(runs / "seed3").names["regulator"][2]
    ask = tmp_path / "ask.csv"
    ask.write_text(f"regulator,dose,state\n{name},0.5,state1\n{row.format(r=name)}\n")
    assert cli.main(["predict", str(runs / "seed3"), "--records", str(ask), "--out", str(tmp_path / "p.parquet")]) == 2
    assert f"{ask}: {field}: {problem}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["ask.csv"]


def test_folders_that_are_no_seeds_of_one_training_are_refused(runs):
    one = asked(fold_of(runs / "seed3"), 0)
    for folders, field in (
        (("seed3", "seed3"), "seed"),
        (("seed3", "genes"), "data.genes"),
        (("seed3", "programs"), "data sha256"),
    ):
        with pytest.raises(InputError) as caught:
            main([*(str(runs / name) for name in folders), *one])
        assert caught.value.field == field and caught.value.file == str(runs / folders[1] / "model.pt")


def test_another_vocabulary_beside_the_checkpoint_is_refused(runs, tmp_path):
    shutil.copy(runs / "seed3" / "model.pt", tmp_path)
    shutil.copy(runs / "programs" / "vocab.json", tmp_path)
    with pytest.raises(InputError, match=r"vocab\.json: vocabulary: is not that of model\.pt"):
        load_folder(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(InputError, match=r"vocab\.json: vocabulary: cannot be read"):
        load_folder(tmp_path)


def test_networks_of_other_genes_or_states_are_refused(runs, tmp_path):
    for field, kind in (("genes", "gene"), ("states", "state")):
        stored = torch.load(runs / "seed3" / "model.pt", weights_only=True)
        stored["before"]["networks"][1]["inputs"][field] += 1
        torch.save(stored, tmp_path / "model.pt")
        with pytest.raises(InputError, match=f"number of names, {kind}: the part networks does not fit"):
            load_folder(tmp_path)


def test_the_commands_of_the_page_parse():
    page = (Path(__file__).parents[2] / "docs" / "prediction.md").read_text()
    found = [shlex.split(line) for line in page.splitlines() if line.startswith("    mantra ")]
    kinds = {"train": TrainOptions, "predict": PredictOptions}
    assert [words[1] for words in found] == ["train"] * 3 + ["predict"] * 3
    for _, command, *words in found:
        tyro.cli(kinds[command], args=words).check()
    assert all(f"`{name}`" in page for name in SCHEMA.names)
