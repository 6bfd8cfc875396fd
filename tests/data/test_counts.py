import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from mantra_ray.data import counts as module
from mantra_ray.data.counts import is_counts, read_counts
from mantra_ray.errors import InputError

MATRIX = np.random.default_rng(0).poisson(0.5, (11, 4))


def write_h5ad(path, genes=("A", "B", "C", "D"), form=sp.csr_matrix):
    matrix = form(MATRIX)
    with h5py.File(path, "w") as file:
        if sp.issparse(matrix):
            group = file.create_group("X")
            group.attrs.update({"encoding-type": f"{matrix.format}_matrix", "shape": matrix.shape})
            for name in ("data", "indices", "indptr"):
                group[name] = getattr(matrix, name)
        else:
            file["X"] = matrix
        for name, index in (("obs", [f"barcode{i}" for i in range(11)]), ("var", genes)):
            group = file.create_group(name)
            group.attrs["_index"] = "_index"
            group["_index"] = np.array(index, dtype="S")
    return path


def whole(counts):
    return np.concatenate([block.toarray() for block in counts.blocks()])


def test_every_form_gives_the_same_counts_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4)
    sp.save_npz(tmp_path / "c.npz", sp.csc_matrix(MATRIX))
    (tmp_path / "genes.txt").write_text("A\nB\nC\nD\n")
    forms = [
        read_counts(write_h5ad(tmp_path / "sparse.h5ad")),
        read_counts(write_h5ad(tmp_path / "dense.h5ad", form=np.asarray)),
        read_counts(tmp_path / "c.npz", tmp_path / "genes.txt"),
    ]
    for counts in forms:
        for _ in range(2):
            np.testing.assert_array_equal(whole(counts), MATRIX)
        assert counts.genes == ("A", "B", "C", "D") and len(counts.cells) == 11
        assert all(sp.issparse(block) and block.format == "csr" for block in counts.blocks())
    assert forms[0].cells[10] == "barcode10"
    assert len(list(forms[2].blocks())) == 3
    assert read_counts(tmp_path / "c.npz").genes == ("gene0", "gene1", "gene2", "gene3")


def test_counts_are_told_from_records(tmp_path):
    sp.save_npz(tmp_path / "c.npz", sp.csr_matrix(MATRIX))
    np.savez(tmp_path / "records.npz", reg_idx=np.arange(3), dose=np.ones(3))
    (tmp_path / "text.npz").write_text("no")
    found = {name: is_counts(tmp_path / name) for name in ("c.npz", "records.npz", "text.npz", "absent.npz", "x.h5ad")}
    assert found == {"c.npz": True, "records.npz": False, "text.npz": False, "absent.npz": False, "x.h5ad": True}
    assert not is_counts("sim") and not is_counts("records.parquet")


def test_unusable_counts_are_refused(tmp_path):
    sp.save_npz(tmp_path / "c.npz", sp.csr_matrix(MATRIX))
    (tmp_path / "few.txt").write_text("A\nB\n")
    with pytest.raises(InputError, match=r"4 names are wanted, one a line .found 2"):
        read_counts(tmp_path / "c.npz", tmp_path / "few.txt")
    (tmp_path / "twice.txt").write_text("A\nB\nA\nC\n")
    with pytest.raises(InputError, match=r"1 genes occur more than once .found 'A'"):
        read_counts(tmp_path / "c.npz", tmp_path / "twice.txt")
    with pytest.raises(InputError, match=r"few\.csv.*cannot be read"):
        read_counts(tmp_path / "c.npz", tmp_path / "few.csv")
    with pytest.raises(InputError, match=r"1 genes occur more than once .found 'B'"):
        read_counts(write_h5ad(tmp_path / "twice.h5ad", genes=("A", "B", "B", "D")))
    with pytest.raises(InputError, match="names of its own"):
        read_counts(write_h5ad(tmp_path / "c.h5ad"), tmp_path / "few.txt")
    with pytest.raises(InputError, match="no such file"):
        read_counts(tmp_path / "absent.npz")
    content = (tmp_path / "c.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot be read as a sparse matrix"):
        read_counts(tmp_path / "cut.npz")
    sp.save_npz(tmp_path / "empty.npz", sp.csr_matrix((0, 4)))
    with pytest.raises(InputError, match="there are no counts"):
        read_counts(tmp_path / "empty.npz")


def test_indices_outside_the_matrix_are_refused(tmp_path):
    matrix = sp.csr_matrix(MATRIX)
    parts = {name: getattr(matrix, name) for name in ("data", "indices", "indptr")}
    np.savez(tmp_path / "c.npz", format=b"csr", shape=(11, 2), **parts)
    with pytest.raises(InputError, match="cannot be read as a sparse matrix"):
        read_counts(tmp_path / "c.npz")
