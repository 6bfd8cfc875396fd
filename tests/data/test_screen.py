"""Loadings and classes: aligned by name, what is missing named."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mantra_ray.data.loadings import read_loadings
from mantra_ray.data.screen import read_classes
from mantra_ray.errors import InputError

GENES = ("A", "B", "C")
W = np.array([[1, 0], [0, 2], [3, 1]], np.float32)


def write(tmp_path, text, name="table.csv"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_loadings_of_every_form_agree(tmp_path):
    np.save(tmp_path / "w.npy", W)
    text = "gene,p,q\nC,3,1\nA,1,0\nX,9,9\nB,0,2\n"  # another order, and a gene that the data lacks
    pq.write_table(pa.table({"gene": ["C", "B", "A"], "p": [3, 0, 1], "q": [1, 2, 0]}), tmp_path / "w.parquet")
    for path in (tmp_path / "w.npy", write(tmp_path, text, "w.csv"), tmp_path / "w.parquet"):
        loadings, programs, notes = read_loadings(path, GENES)
        assert np.array_equal(loadings, W) and loadings.dtype == np.float32 and not notes
        assert programs == (("program0", "program1") if path.suffix == ".npy" else ("p", "q"))


def test_genes_without_loadings_count_zero_and_are_named(tmp_path):
    loadings, _, notes = read_loadings(write(tmp_path, "gene,p,q\nA,1,0\nB,0,2\n"), GENES)
    assert loadings[2].tolist() == [0, 0] and "1 genes have no loadings" in notes[0] and notes[0].endswith("C")


@pytest.mark.parametrize(
    ("matrix", "problem"),
    [
        (np.ones((2, 2)), "3 rows are wanted"),
        (np.ones(3), "a numeric matrix"),
        (np.array([[1, 0], [np.nan, 1], [0, 1]]), "row 1, column 0 is not finite"),
        (np.array([[1, 2], [2, 4], [3, 6]]), "linearly dependent"),
        (np.array([[1, 0], [2, 0], [3, 0]]), "has no gene of the data .found 'program1'"),
        (np.array([["a"] * 2] * 3), "a numeric matrix"),
    ],
)
def test_unusable_matrices_are_refused(tmp_path, matrix, problem):
    np.save(tmp_path / "w.npy", matrix)
    with pytest.raises(InputError, match=problem):
        read_loadings(tmp_path / "w.npy", GENES)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("gene,p\nX,1\nY,2\n", "no gene of the data: A, B, C .found 'X, Y'"),
        ("gene,p\nA,1\nA,2\n", "row 1: the gene occurs twice"),
        ("gene,p\nA,1\nB,\n", "p: row 1 is empty"),
        ("gene,p\nA,1\nB,much\n", "p: row 1 is not a number .found 'much'"),
        ("gene\nA\n", "a column a program"),
    ],
)
def test_unusable_loading_tables_are_refused(tmp_path, text, problem):
    with pytest.raises(InputError, match=problem):
        read_loadings(write(tmp_path, text), GENES)


def test_damaged_npy_is_refused(tmp_path):
    path = write(tmp_path, "no", "w.npy")
    for _ in range(2):
        with pytest.raises(InputError, match=r"cannot be read as \.npy|no such file"):
            read_loadings(path, GENES)
        path.unlink(missing_ok=True)


def test_classes_in_both_forms(tmp_path):
    plain = write(tmp_path, "regulator,class\nA,zinc\nB,box\nC,\n")
    lambert = write(tmp_path, "\ufeffID,Name,DBD,is_TF\nE1,A,zinc,Yes\nE2,B,box,Yes\nE3,C,Unknown,No\n", "lambert.csv")
    for path in (plain, lambert):
        index, names, notes = read_classes(path, ("A", "Z", "B", "C"))
        assert index.tolist() == [1, -1, 0, -1] and names == ("box", "zinc")
        assert notes[0].endswith("no class for 2 regulators: Z, C")


def test_unusable_classes_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"row 1: A is of class zinc above .found 'box'"):
        read_classes(write(tmp_path, "regulator,class\nA,zinc\nA,box\n"), ("A",))
    with pytest.raises(InputError, match="no regulator of the data: Z"):
        read_classes(write(tmp_path, "regulator,class\nA,zinc\n"), ("Z",))
    with pytest.raises(InputError, match="regulator: the table has no such column"):
        read_classes(write(tmp_path, "name,class\nA,zinc\n"), ("A",))
