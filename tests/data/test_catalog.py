"""Data sets by name and by file: what a user's options add, what is left out and said so."""

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import pytest

from mantra_ray.config import DataConfig, SimulationConfig, TraitsConfig
from mantra_ray.data.catalog import load_screen, read_screen
from mantra_ray.data.fetch import hash_file
from mantra_ray.data.morphic import read_contrasts, unique_names
from mantra_ray.data.records import from_arrays
from mantra_ray.data.sources import CATALOG, FOLDER_VARIABLE
from mantra_ray.data.storage import write_npz, write_parquet
from mantra_ray.errors import InputError

GENES = ("A", "B", "C", "D")


def records(**changes):
    rng = np.random.default_rng(0)
    fields = {
        "regulator": np.repeat(np.arange(4), 4),
        "dose": np.tile([0.4, 0.9], 8),
        "state": np.tile([0, 0, 1, 1], 4),
        "delta_expression": rng.normal(size=(16, 4)),
        "gene_names": GENES,
        "regulator_names": ("A", "B", "X", "Y"),
    }
    return from_arrays({name: value for name, value in (fields | changes).items() if value is not None})


@pytest.fixture
def files(tmp_path):
    write_npz(records(), tmp_path / "screen.npz")
    (tmp_path / "edges.csv").write_text("source,target,weight\nA,B,1\nX,C,-1\n")
    np.save(tmp_path / "W.npy", np.eye(4)[:, :2])
    (tmp_path / "mch.csv").write_text("symbol,b,se\nA,1,0.1\nB,-1,0.1\nC,0,0.1\nD,2,0.5\n")
    (tmp_path / "families.csv").write_text("regulator,class\nA,zinc\nB,box\nX,box\nY,zinc\n")
    return tmp_path


def options(folder: Path, **changes) -> DataConfig:
    config = DataConfig(
        data=str(folder / "screen.npz"),
        graph=str(folder / "edges.csv"),
        loadings=str(folder / "W.npy"),
        traits=(f"MCH={folder / 'mch.csv'}",),
        classes=str(folder / "families.csv"),
    )
    return dataclasses.replace(config, **changes)


def test_users_file_with_every_option(files):
    screen = load_screen(options(files))
    assert screen.name == "screen" and screen.splits == ("seen", "strategy", "context", "unseen")
    assert np.array_equal(screen.loadings, np.eye(4)[:, :2]) and screen.program_names == ("program0", "program1")
    assert screen.traits["MCH"].b.tolist() == [1, -1, 0, 2] and screen.class_names == ("box", "zinc")
    assert screen.regulator_class.tolist() == [1, 0, 0, 1] and set(screen.graph.nodes) == {"A", "B", "C", "X"}
    edges, trait = screen.notes
    assert "1 genes have no edge: D" in edges and "4 of 4 genes have an effect on the trait" in trait


def test_records_alone_say_what_is_left_out(files):
    write_parquet(records(), files / "screen.parquet")
    plain = [load_screen(DataConfig(data=str(files / f"screen.{form}"))) for form in ("npz", "parquet")]
    for screen in plain:
        assert screen.graph is None and screen.loadings is None and not screen.traits
        assert (screen.regulator_class == -1).all() and len(screen.regulator_class) == 4
        text = "\n".join(screen.notes)
        for part in ("co-expression", "programs are fitted", "the trait part is left out", "no classes"):
            assert part in text
    assert np.array_equal(plain[0].data.delta_expression, plain[1].data.delta_expression)


def test_programs_alone_load_without_graph_and_expression(files):
    data = records(delta_expression=None, gene_names=None, delta_program=np.ones((16, 3)))
    write_npz(data, files / "screen.npz")
    screen = load_screen(options(files, classes=""))
    assert screen.data.delta_expression is None and screen.graph is None and screen.loadings is None
    assert screen.program_names == ("program0", "program1", "program2")
    for name in ("graph", "loadings", "traits"):
        assert f"{name} left out: it needs expression changes" in screen.notes


def test_hash_follows_every_input(files):
    hashes = {load_screen(options(files)).sha256}
    for name in ("edges.csv", "mch.csv", "families.csv"):
        with (files / name).open("a") as handle:
            handle.write({"e": "B,C,1\n", "m": "Z,1,1\n", "f": "Z,box\n"}[name[0]])
        hashes.add(load_screen(options(files)).sha256)
    np.save(files / "W.npy", 2 * np.eye(4)[:, :2])
    hashes.add(load_screen(options(files)).sha256)
    hashes.add(load_screen(options(files, graph="")).sha256)
    write_npz(records(dose=np.full(16, 0.5)), files / "screen.npz")
    hashes.add(load_screen(options(files)).sha256)
    assert len(hashes) == 7 and all(len(value) == 64 for value in hashes)
    assert load_screen(options(files)).sha256 in hashes  # and it is stable


def test_observed_traits_take_the_names_of_the_tables(files):
    write_npz(records(delta_trait=np.arange(32.0).reshape(16, 2), trait_names=None), files / "screen.npz")
    two = tuple(f"{name}={files / 'mch.csv'}" for name in ("MCH", "LYM"))
    assert load_screen(options(files, traits=two)).data.trait_names == ("MCH", "LYM")
    with pytest.raises(InputError, match="changes of 2 traits"):
        load_screen(options(files))
    write_npz(records(delta_trait=np.arange(32.0).reshape(16, 2), trait_names=["LYM", "MCH"]), files / "screen.npz")
    data = load_screen(options(files, traits=two)).data
    assert data.trait_names == ("MCH", "LYM") and data.delta_trait[0].tolist() == [1, 0]
    write_npz(records(delta_trait=np.ones((16, 2)), trait_names=["LYM", "RDW"]), files / "screen.npz")
    with pytest.raises(InputError, match="calls its traits LYM, RDW"):
        load_screen(options(files, traits=two))


def test_impossible_splits_are_left_out_and_said_so(files):
    write_npz(records(state=np.zeros(16, int)), files / "screen.npz")
    screen = load_screen(options(files))
    assert screen.splits == ("seen", "unseen")
    strategy, context = screen.notes[-2:]
    assert strategy == "split 'strategy' is left out: for these records it is 'seen'"  # as there is one state
    assert "split 'context' is left out" in context and "two states" in context
    one = {"regulator": [0], "dose": [1.0], "delta_expression": np.ones((1, 4)), "gene_names": GENES}
    write_npz(from_arrays(one), files / "screen.npz")
    with pytest.raises(InputError, match="no split is possible"):
        load_screen(DataConfig(data=str(files / "screen.npz")))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"data": "morphik"}, r"neither a file .* nor one of sim, morphic, .* .found 'morphik'"),
        ({"data": "none.npz"}, "no such file"),
        ({"data": "records.h5ad"}, "from .npz or .parquet"),
        ({"graph": "none.csv"}, "no such file"),
        ({"traits": ("MCH",)}, "NAME=FILE is wanted, or NAME=FILE:loss .found 'MCH'"),
        ({"traits": ("M=mch.csv", "M=mch.csv")}, "the trait is named twice"),
    ],
)
def test_bad_options_are_refused(files, monkeypatch, changes, problem):
    monkeypatch.chdir(files)
    with pytest.raises(InputError, match=problem):
        load_screen(options(files, **changes))


def test_graph_and_loadings_must_fit_the_data(files):
    (files / "edges.csv").write_text("source,target\nENSG1,ENSG2\n")
    with pytest.raises(InputError, match=r"no gene of the data: A, B, C, D .found 'ENSG1, ENSG2'"):
        load_screen(options(files))
    write_npz(records(delta_program=np.ones((16, 3))), files / "screen.npz")
    with pytest.raises(InputError, match=r"changes of 3 programs .found 2"):
        load_screen(options(files, graph=""))


def test_simulation_is_the_default_and_takes_options_too(files):
    small = SimulationConfig(regulators=20, genes=100, programs=4)
    screen = load_screen(DataConfig(simulation=small))
    assert screen.name == "sim" and screen.splits == ("seen", "unseen") and not screen.notes
    (files / "sim_edges.csv").write_text("source,target\nG00001,G00002\n")
    other = load_screen(DataConfig(simulation=small, graph=str(files / "sim_edges.csv")))
    assert len(other.graph.source) == 1 and other.sha256 != screen.sha256 and other.splits == screen.splits


def test_absent_or_altered_catalogued_files_are_refused_with_advice(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    with pytest.raises(InputError, match=r"--data-dir or MANTRA_DATA_DIR; get it from https://github.com/morphic-bio"):
        load_screen(DataConfig(data="morphic"))
    with pytest.raises(InputError, match=r"no such file; get it from https://.* and put it in") as caught:
        load_screen(DataConfig(data="morphic", data_dir=str(tmp_path)))
    assert caught.value.file == str(tmp_path / "morphic_ko.npz")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    for content, field in ((b"other", "size"), (bytes(CATALOG["morphic"].files[0].size), "sha256")):
        (tmp_path / "morphic_ko.npz").write_bytes(content)
        with pytest.raises(InputError, match=f"{field}: is not the catalogued file"):
            load_screen(DataConfig(data="morphic"))


def test_every_catalogue_entry_is_complete():
    for name, entry in CATALOG.items():
        assert entry.what and bool(entry.recipe) == (name not in ("sim", "morphic"))
        for file in entry.files:
            assert file.name and file.source and file.licence and file.citation and file.size > 0
            assert re.fullmatch("[0-9a-f]{64}", file.sha256) and re.fullmatch("([0-9a-f]{32})?", file.md5)
            assert not file.url or file.url.startswith("https://")
    assert all(CATALOG[name].files[0].url for name in ("k562_gwps", "k562_essential", "norman"))


def test_sets_that_hold_no_records_yet_say_how_to_make_them():
    with pytest.raises(
        InputError, match=r"K562_gwps\S+ holds no records yet: .*mantra data import FILE --preset k562-bulk"
    ):
        load_screen(DataConfig(data="k562_gwps"))


def test_sign_convention_of_traits_turns_effects_and_is_part_of_the_hash(files):
    plain, given, loss = (
        load_screen(options(files, traits=(f"MCH={files / 'mch.csv'}{sign}",))) for sign in ("", ":gain", ":loss")
    )
    assert np.array_equal(plain.traits["MCH"].b, given.traits["MCH"].b) and plain.sha256 == given.sha256
    assert np.array_equal(loss.traits["MCH"].b, -plain.traits["MCH"].b) and loss.sha256 != plain.sha256
    assert any("effects are those of losing the gene" in note for note in loss.notes)


def test_thresholds_of_traits_are_settings(files):
    (files / "mch.csv").write_text("symbol,b,se,p_HEIDI,p_SMR\nA,1,0.1,0.03,0.5\nB,-1,0.1,0.5,0.01\nC,0,0.1,1,1\n")
    for settings, kept in (
        (TraitsConfig(), [True, True, True, False]),
        (TraitsConfig(heidi=0.05), [False, True, True, False]),
        (TraitsConfig(p_smr=0.1), [False, True, False, False]),
    ):
        assert np.isfinite(load_screen(options(files, trait=settings)).traits["MCH"].b).tolist() == kept


def test_records_that_cannot_be_split_can_still_be_read(files):
    one = {"regulator": [0], "dose": [1.0], "delta_expression": np.ones((1, 4)), "gene_names": GENES}
    write_npz(from_arrays(one), files / "screen.npz")
    assert read_screen(DataConfig(data=str(files / "screen.npz"))).splits == ()


def contrasts(path, **changes):
    columns = {
        "regulator": ["A", "A", "B", "X", "X", "X"],
        "strategy": ["KO", "reverted", "KO", "KO", "CE", "PTC"],
        "system": ["S", "S", "S", "S", "S", "T"],
        "day": ["6"] * 6,
        "oxygen": ["nor"] * 6,
        "dataset": ["one", "one", "one", "two", "one", "one"],
        "symbol": ["A", "B", "twin", "twin"],
        "ensg": ["E1", "E2", "E3", "E4"],
        "log2fc": np.array([[-1, 0, 0, 0], [0] * 4, [0, -2, 0, 0], [0] * 4, [0] * 4, [9, 9, 9, -30]], np.float16),
        "lfcse": np.full((6, 4), 0.2, np.float16),
    }
    np.savez(path, **{name: np.array(value) for name, value in (columns | changes).items()})
    return path


def test_contrasts_become_records(tmp_path):
    data, ensembl, notes = read_contrasts(contrasts(tmp_path / "m.npz"))
    assert ensembl == ("E1", "E2", "E3", "E4") and data.gene_names == ("A", "B", "twin_E3", "twin_E4")
    assert len(data) == 5 and data.regulator_names == ("A", "B", "X")
    # Own gene where measured; the strategy's median (of 0.5 and 0.75); without any measured of it, the overall median.
    np.testing.assert_allclose(data.dose, [0.5, 0.75, 0.625, 0.625, 0.625], atol=1e-3)
    assert data.strategy_names == ("CE", "KO", "PTC") and data.strategy.tolist() == [1, 1, 1, 0, 2]
    assert data.state_names == ("S/6/nor", "T/6/nor") and data.state.tolist() == [0, 0, 0, 0, 1]
    assert data.group[0] == data.group[1] == data.group[3] and len(set(data.group)) == 3
    assert data.delta_expression.min() == -30  # clipping is left to the training fold
    assert notes[0].startswith("1 contrasts")


def test_unknown_standard_errors_count_as_the_largest_and_zero_gets_a_floor(tmp_path):
    se = np.full((6, 4), 0.25)
    se[0, 0], se[0, 1], se[0, 2] = np.nan, 0, 3
    data, _, _ = read_contrasts(contrasts(tmp_path / "m.npz", lfcse=se))
    np.testing.assert_allclose(data.delta_expression_se[0], [3, 0.01, 3, 0.25])


def test_symbols_that_repeat_get_the_ensembl_id():
    assert unique_names(["x", "y", "x"], ("E1", "E2", "E3")) == ("x_E1", "y", "x_E3")


FOLDER = Path(os.environ.get("MANTRA_DATA_DIR", ""))


@pytest.mark.skipif(not (FOLDER / "morphic_ko.npz").is_file(), reason="needs the catalogued files in MANTRA_DATA_DIR")
def test_real_contrasts():
    screen = load_screen(DataConfig(data="morphic"))
    data = screen.data
    assert len(data) == 141 and data.delta_expression.shape == (141, 13664) and len(data.regulator_names) == 56
    assert "reverted" not in data.strategy_names and len(data.state_names) == 18
    assert np.bincount(np.bincount(data.regulator))[1] == 31  # regulators with one contrast
    assert sum(name in screen.graph.nodes for name in data.regulator_names) >= 17
    assert set(np.round(np.abs(screen.graph.weight), 1)) <= {np.float32(w) for w in (1.0, 0.8, 0.6, 0.4)}
    lines = (line.split(",") for line in (FOLDER / "MCH_lof_burden.csv").read_text().splitlines()[1:])
    symbol, loss = next((line[1], float(line[2])) for line in lines if line[1] in data.gene_names)
    gain = screen.traits["MCH"].b[data.gene_names.index(symbol)]
    assert gain == pytest.approx(-loss, rel=1e-5)  # the file has the effect of losing the gene
    assert np.isfinite(screen.traits["MCH"].b).sum() > 12000
    assert screen.class_names and (screen.regulator_class >= 0).sum() == 52
    assert all(hash_file(FOLDER / entry.name) == entry.sha256 for entry in CATALOG["morphic"].files)
