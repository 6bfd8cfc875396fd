"""`mantra data import`: presets, options, what is printed and what is left on disk."""

import h5py
import numpy as np
import pytest
from scipy import sparse

from mantra_ray.bench.cells import write_h5ad
from mantra_ray.commands.data_import import main, parse
from mantra_ray.data import h5ad
from mantra_ray.data.storage import read_records
from mantra_ray.errors import InputError

LENIENT = ["--min-umi", "1", "--min-genes", "1"]


@pytest.fixture
def cells(tmp_path):
    """A file with the columns of the K562 genome-wide screen; knock-down of g0 by `A` is planted."""
    rng = np.random.default_rng(0)
    gene = rng.choice(["A", "B", "non-targeting"], 300).astype(object)
    counts = rng.poisson(5, (300, 6)) * np.where((gene == "A")[:, None] & (np.arange(6) == 0), 0, 1)
    obs = {
        "gene": gene,
        "gem_group": rng.integers(1, 4, 300),
        "mitopercent": np.where(np.arange(300) < 9, 0.4, 0.05),
        "UMI_count": np.full(300, 3000.0),
    }
    symbols = np.array(["A", "X", "X", "B", "Y", "Z"], object)
    path, names = tmp_path / "cells.h5ad", [f"ENSG{i}" for i in range(6)]
    write_h5ad(path, [sparse.csr_array(counts.astype(np.float32))], names, obs, {"gene_name": symbols})
    return path


@pytest.fixture
def bulk(tmp_path):
    """Pseudo-bulks named as in the K562 screen: three controls, two guide sets of one gene, one of another."""
    names = [
        "10023_ZZZ3_P1P2_ENSG00000036549",
        "10751_non-targeting_non-targeting_non-targeting",
        "3_HLA-A_P1_ENSG00000206503",
        "10752_non-targeting_non-targeting_non-targeting",
        "4_HLA-A_P2_ENSG00000206503",
        "10753_non-targeting_non-targeting_non-targeting",
    ]
    x = np.array([[1, 2, 3], [0, 1, 0], [-1, 0, 4], [0, 2, 1], [5, 5, 5], [0, 3, 2]], np.float32)
    path = tmp_path / "bulk.h5ad"
    write_h5ad(path, [sparse.csr_array(x)], ["ENSG1", "ENSG2", "ENSG3"], {}, names=names)
    with h5py.File(path, "a") as file:
        del file["X"]
        file["X"] = x  # dense, as the original
    return path


def test_the_preset_reads_the_columns_of_the_genome_wide_screen(cells, tmp_path, capsys):
    out = tmp_path / "new" / "records.npz"
    assert main([str(cells), "--preset", "k562-gwps", "--out", str(out), *LENIENT]) == 0
    text = capsys.readouterr().out
    assert "9 cells with a mitochondrial share above 0.2 are left out" in text
    assert "2 records of" in text and "2 regulators, 1 states, 6 genes" in text
    data = read_records(out)
    assert data.gene_names == ("A", "X_ENSG1", "X_ENSG2", "B", "Y", "Z") and data.regulator_names == ("A", "B")
    assert data.delta_expression[0, 0] < -1 and np.abs(data.delta_expression[1]).max() < 0.5
    assert sorted(path.name for path in out.parent.iterdir()) == ["records.npz"]


def test_options_apply_on_top_of_a_preset_and_a_parquet_file_says_the_same(cells, tmp_path):
    preset = [str(cells), "--preset", "k562-gwps", *LENIENT]
    main([*preset, "--out", str(tmp_path / "a.npz"), "--max-mito", "0.5", "--state-column", "gem_group"])
    main([*preset, "--out", str(tmp_path / "b.parquet"), "--max-mito", "0.5", "--state-column", "gem_group"])
    a, b = read_records(tmp_path / "a.npz"), read_records(tmp_path / "b.parquet")
    assert a.state_names == ("1", "2", "3") and np.array_equal(a.delta_expression, b.delta_expression)
    options = parse([*preset, "--out", str(tmp_path / "a.npz"), "--gene-column", ""])
    assert options.cells.batch_column == "gem_group" and options.cells.gene_column == ""
    assert options.cells.thresholds.min_umi == 1 and options.cells.thresholds.min_cells == 10


def test_without_a_preset_columns_are_named(cells, tmp_path):
    columns = ["--regulator-column", "gene", "--batch-column", "gem_group", "--control", "B", *LENIENT]
    main([str(cells), "--out", str(tmp_path / "r.npz"), *columns])
    assert read_records(tmp_path / "r.npz").regulator_names == ("A", "non-targeting")


def test_pseudobulks_by_the_names_of_their_rows(bulk, tmp_path, capsys):
    out = tmp_path / "bulk.parquet"
    assert main([str(bulk), "--preset", "k562-bulk", "--out", str(out)]) == 0
    data = read_records(out)
    assert data.regulator_names == ("HLA-A", "ZZZ3") and data.strategy_names == ("P1", "P1P2", "P2")
    named = [
        (data.regulator_names[r], data.strategy_names[s]) for r, s in zip(data.regulator, data.strategy, strict=True)
    ]
    assert named == [("ZZZ3", "P1P2"), ("HLA-A", "P1"), ("HLA-A", "P2")]
    np.testing.assert_allclose(data.delta_expression, [[1, 0, 2], [-1, -2, 3], [5, 3, 4]], atol=1e-6)
    # Controls spread by 1 in the last two genes: se^2 = 1 + 1 / 3; the first does not vary at all.
    np.testing.assert_allclose(data.delta_expression_se[:, 1:], np.sqrt(4 / 3), rtol=1e-6)
    assert (data.delta_expression_se[:, 0] == np.float32(1e-3)).all() and data.n_cells is None
    assert "3 control rows" in capsys.readouterr().out


def test_pseudobulks_of_many_cells_are_less_noisy(bulk, tmp_path):
    with h5py.File(bulk, "a") as file:
        file["obs/num_cells_filtered"] = np.array([400, 100, 25, 100, 100, 100.0])
    main([str(bulk), "--preset", "k562-bulk", "--out", str(tmp_path / "r.npz")])
    data = read_records(tmp_path / "r.npz")
    assert data.n_cells.tolist() == [400, 25, 100]
    # a = sum of n (x - mean)^2 / 2 = 100 a cell; se^2 = 100 / n + 100 / 300.
    np.testing.assert_allclose(data.delta_expression_se[:, 1], np.sqrt(100 / data.n_cells + 1 / 3), rtol=1e-6)


def test_means_of_counts_are_logged_where_asked(bulk, tmp_path):
    arguments = [str(bulk), "--preset", "k562-bulk", "--log-means", "--out", str(tmp_path / "r.npz")]
    with pytest.raises(InputError, match="X: row 2, gene 0: is negative"):
        main(arguments)
    with h5py.File(bulk, "a") as file:
        file["X"][2] = [0, 0, 7]
    main(arguments)
    change = read_records(tmp_path / "r.npz").delta_expression
    np.testing.assert_allclose(change[:, 2], [2 - np.log2(6) / 3, 3 - np.log2(6) / 3, np.log2(6) * 2 / 3], rtol=1e-5)


def test_a_few_genes_of_a_pseudobulk_may_be_broken_not_many(bulk, tmp_path, monkeypatch, capsys):
    arguments = [str(bulk), "--preset", "k562-bulk", "--out", str(tmp_path / "r.npz")]
    with h5py.File(bulk, "a") as file:
        file["X"][4, 1] = np.inf
    with pytest.raises(InputError, match=r"X: row 4, gene 1: is not finite, nor are values of 33% of the genes"):
        main(arguments)
    monkeypatch.setattr("mantra_ray.data.pseudobulk.BAD_GENES", 0.5)
    main(arguments)
    assert read_records(tmp_path / "r.npz").gene_names == ("ENSG1", "ENSG3")
    assert "1 genes with values that are not finite are left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--out", "records.csv"], r"--out: must end in \.npz or \.parquet"),
        (["--out", "records.npz", "--log-means"], "--log-means: is for pseudo-bulks alone"),
        (["--out", "records.npz", "--preset", "k562-bulk", "--state-column", "s"], "--state-column: is of no use"),
        (["--out", "records.npz", "--preset", "k562-bulk"], r"obs index: row 0 is not named|control: names of two"),
        (["--out", "records.npz", "--batch-column", "well"], "obs column: there is no such column"),
        (["--out", "records.npz", "--min-umi", "0"], "--min-umi: must be at least 1"),
        (["--out", "records.npz", "--min-umi", "inf"], "UMIs: no cell has inf"),
        (["--out", "records.npz"], "UMIs: no cell has 500"),
    ],
)
def test_bad_input_leaves_nothing_behind(cells, tmp_path, monkeypatch, arguments, problem):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=problem):
        main([cells.name, *arguments])
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]


def test_rows_of_a_pseudobulk_must_be_named_as_agreed(bulk, tmp_path):
    with h5py.File(bulk, "a") as file:
        file["obs/_index"][2] = "HLA-A"
    with pytest.raises(InputError, match=r"obs index: row 2 is not named NUMBER_GENE_GUIDES_IDENTIFIER"):
        main([str(bulk), "--preset", "k562-bulk", "--out", str(tmp_path / "r.npz")])


def test_a_damaged_file_leaves_nothing_behind(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(h5ad, "SPARSE_ENTRIES", 100)
    whole = cells.read_bytes()
    cells.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(InputError, match="cannot be read as"):
        main([str(cells), "--preset", "k562-gwps", "--out", str(tmp_path / "r.npz")])
    assert [path.name for path in tmp_path.iterdir()] == ["cells.h5ad"]
