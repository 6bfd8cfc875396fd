"""Gene effects on traits: forms of table, alignment, thresholds, signs, and what is refused."""

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.config import TraitsConfig
from mantra_ray.data.traits import read_trait, stable_id, trait_files
from mantra_ray.errors import InputError

GENES = ("A", "B", "C")


def write(tmp_path, text, name="table.csv"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_traits_align_by_the_better_key(tmp_path):
    path = write(tmp_path, "ensg,symbol,b,se\nE3,C,0.3,0.1\nE1,A,-0.5,0.2\nE9,X,1,1\n")
    for genes, key in ((GENES, "symbol"), (("E1", "E2", "E3"), "ensg")):
        table, notes = read_trait(path, genes)
        assert table.b.dtype == np.float32 and np.isnan(table.b[1]) and np.isnan(table.se[1])
        np.testing.assert_allclose(table.b[[0, 2]], [-0.5, 0.3])
        np.testing.assert_allclose(table.se[[0, 2]], [0.2, 0.1])
        assert notes == [
            f"{path}: 2 of 3 genes have an effect on the trait, found by {key} among 3 rows; none for {genes[1]}"
        ]
    turned, notes = read_trait(path, GENES, loss=True)
    np.testing.assert_allclose(turned.b[[0, 2]], [0.5, -0.3])
    np.testing.assert_allclose(turned.se[[0, 2]], [0.2, 0.1])
    assert "signs turned" in notes[0]


def test_versions_of_ensembl_ids_do_not_count(tmp_path):
    path = write(tmp_path, "ensg,b,se\nENSG00000000003.15,1,1\nENSMUSG00000000005,2,1\n")
    table, _ = read_trait(path, ("ENSMUSG00000000005.2", "ENSG00000000003.4", "ENSG00000000001"))
    assert table.b[:2].tolist() == [2, 1] and np.isnan(table.b[2])
    assert stable_id("NKX2.1") == "NKX2.1" and stable_id("ENSG00000000003.15") == "ENSG00000000003"


SMR = (
    "probeID\tProbeChr\tGene\tb_GWAS\tse_GWAS\tb_SMR\tse_SMR\tp_SMR\tp_HEIDI\tnsnp_HEIDI\n"
    "ENSG00000000001\t1\tA\t9\t9\t1\t0.5\t0.04\t0.5\t20\n"
    "ENSG00000000002\t1\tB\t9\t9\t2\t0.1\t1e-9\t0.001\t20\n"
    "ENSG00000000003\t1\tC\t9\t9\t3\t0.2\t1e-9\tNA\tNA\n"
)


def test_tables_of_smr(tmp_path):
    path = write(tmp_path, SMR, "smr.tsv")
    for genes in (GENES, tuple(f"ENSG0000000000{i}.7" for i in (1, 2, 3))):
        table, notes = read_trait(path, genes)
        np.testing.assert_allclose(table.b, [1, np.nan, 3])
        np.testing.assert_allclose(table.se, [0.5, np.nan, 0.2])
        assert "1 rows fail the HEIDI test (p < 0.01), left out" in notes[0]
    table, _ = read_trait(path, GENES, settings=TraitsConfig(heidi=0.0))
    assert table.b.tolist() == [1, 2, 3]
    table, notes = read_trait(path, GENES, settings=TraitsConfig(p_smr=0.01))
    np.testing.assert_allclose(table.b, [np.nan, np.nan, 3])
    assert "1 rows fail the SMR test (p > 0.01), left out" in notes[1]
    with pytest.raises(InputError, match="no usable gene"):
        read_trait(path, ("A",), settings=TraitsConfig(p_smr=0.01))


def test_a_gene_with_no_p_of_smr_does_not_pass_a_threshold_on_it(tmp_path):
    path = write(tmp_path, "symbol,b,se,p_SMR\nA,1,1,\nB,1,1,0.01\n")
    assert np.isfinite(read_trait(path, GENES)[0].b).tolist() == [True, True, False]
    assert np.isfinite(read_trait(path, GENES, settings=TraitsConfig(p_smr=0.1))[0].b).tolist() == [False, True, False]


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.integers(1, 9), st.booleans()), min_size=1, max_size=12))
@settings(max_examples=30, deadline=None)
def test_of_several_probes_the_most_precise_usable_one_counts(tmp_path_factory, rows):
    lines = [f"{gene},p{i},{i},{0.1 * se:.1f},{0.5 if good else 0.0}" for i, (gene, se, good) in enumerate(rows)]
    path = write(tmp_path_factory.mktemp("t"), "\n".join(["Gene,ProbeID,b_SMR,se_SMR,p_HEIDI", *lines]))
    usable = {g: [(se, i) for i, (gene, se, good) in enumerate(rows) if good and gene == g] for g in GENES}
    if not any(usable.values()):
        with pytest.raises(InputError, match="no usable gene"):
            read_trait(path, GENES)
        return
    table, notes = read_trait(path, GENES)
    for found, candidates in zip(table.b, usable.values(), strict=True):
        assert found == min(candidates)[1] if candidates else np.isnan(found)
    several = sum(len(candidates) - 1 for candidates in usable.values() if candidates)
    assert (f"({several} rows give way to a more precise one" in notes[-1]) == (several > 0)


def test_rows_without_numbers_are_left_out_and_counted(tmp_path):
    table, notes = read_trait(write(tmp_path, "symbol,b,se\nA,NA,1\nB,1,\nC,3,1\n,5,1\n,6,1\n"), (*GENES, ""))
    assert np.isnan(table.b[:2]).all() and table.b[2] == 3 and np.isnan(table.b[3])
    assert "2 rows without b or se are left out" in notes[0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("symbol,b,se\nA,1,0\n", "se: row 0: a standard error must be above 0 .found 0.0"),
        ("symbol,b,se\nA,1,-2\n", "found -2.0"),
        ("symbol,b,se\nA,nan,1\nB,NaN,1\n", "no usable gene"),
        ("symbol,b,se\nA,inf,1\n", "b: row 0 is infinite"),
        ("symbol,b,se\nA,much,1\n", "b: row 0 is not a number .found 'much'"),
        ("symbol,b,se\nA,1,1\nB,1,1\nA,2,1\n", "row 2: the gene occurs twice.* .found 'A'"),
        ("ensg,b,se\nENSG01.1,1,1\nENSG01.2,2,1\n", "row 1: the gene occurs twice.* .found 'ENSG01'"),
        ("Gene,ProbeID,b_SMR,se_SMR\nA,p,1,1\nA,p,2,1\n", "row 1: the gene occurs twice.* .found 'A p'"),
        ("symbol,b\nA,1\n", "se: the table has no such column"),
        ("symbol,b_SMR,se\nA,1,1\n", "se_smr: the table has no such column"),
        ("symbol,beta,se\nA,1,1\n", "b: the table has no such column"),
        ("name,b,se\nA,1,1\n", "symbol or ensg"),
        ("symbol,b,se\nX,1,1\n", "no usable gene of the data: A, B, C .found 'X'"),
        ("symbol,b,se\nA,,1\n", "no usable gene"),
        ("symbol,b,se,p_HEIDI\nA,1,1,1.5\n", "p_HEIDI: row 0: a probability lies in .0, 1. .found 1.5"),
        ("symbol,b,se,p_HEIDI\nA,1,1,-0.1\n", "found -0.1"),
        ("symbol,b,se,p_SMR\nA,1,1,2\n", "p_SMR: row 0: a probability lies in .0, 1. .found 2.0"),
    ],
)
def test_unusable_traits_are_refused(tmp_path, text, problem):
    with pytest.raises(InputError, match=problem):
        read_trait(write(tmp_path, text), GENES)


def test_truncated_gzip_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    lines = [f"G{i},{rng.normal()},{rng.uniform(0.1, 1)}" for i in range(20_000)]
    whole = gzip.compress("\n".join(["symbol,b,se", *lines]).encode())
    (tmp_path / "whole.csv.gz").write_bytes(whole)
    assert np.isfinite(read_trait(tmp_path / "whole.csv.gz", ("G0", "G19999"))[0].b).all()
    for share in (0.2, 0.5, 0.99):
        (tmp_path / "cut.csv.gz").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InputError, match="cannot be read as a table"):
            read_trait(tmp_path / "cut.csv.gz", ("G0", "G19999"))


def test_options_name_file_and_sign():
    options = ["MCH=a=b.csv", "LYM=c.csv:loss", "RDW=d:e.csv:gain"]
    assert trait_files(options) == {"MCH": ("a=b.csv", False), "LYM": ("c.csv", True), "RDW": ("d:e.csv", False)}
    for bad in (["MCH"], ["=a.csv"], ["MCH="], ["MCH=:loss"]):
        with pytest.raises(InputError, match="NAME=FILE"):
            trait_files(bad)
    with pytest.raises(InputError, match="named twice"):
        trait_files(["A=a.csv", "A=b.csv:loss"])
