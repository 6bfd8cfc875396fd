"""AnnData files read block by block: every encoding gives the same matrix and the same annotations."""

from itertools import pairwise

import h5py
import numpy as np
import pytest
from scipy import sparse

from mantra_ray.bench.cells import write_h5ad
from mantra_ray.data import h5ad
from mantra_ray.data.h5ad import opened
from mantra_ray.errors import InputError

COUNTS = np.random.default_rng(0).poisson(0.7, (40, 7)).astype(np.float32)
GENES = [f"g{i}" for i in range(7)]
LABEL = np.array(["b", "a", "é", ""] * 10, dtype=object)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "cells.h5ad"
    obs = {"label": LABEL, "batch": np.arange(40) % 3, "umi": np.linspace(0, 1, 40)}
    write_h5ad(path, [sparse.csr_array(COUNTS[:15]), sparse.csr_array(COUNTS[15:])], GENES, obs)
    return path


def whole(path, matrix="X"):
    with opened(path, matrix) as file:
        blocks = file.blocks()
        assert blocks[0][0] == 0 and blocks[-1][1] == file.shape[0]
        assert all(a[1] == b[0] for a, b in pairwise(blocks))
        return np.concatenate([file.rows(*block).toarray() for block in blocks]), len(blocks)


def test_blocks_make_up_the_matrix(path, monkeypatch):
    assert np.array_equal(whole(path)[0], COUNTS)
    monkeypatch.setattr(h5ad, "SPARSE_ENTRIES", 12)  # about three cells; a cell with more has a block of its own
    again, count = whole(path)
    assert np.array_equal(again, COUNTS) and count > 10
    monkeypatch.setattr(h5ad, "SPARSE_ENTRIES", 1)
    assert np.array_equal(whole(path)[0], COUNTS)


@pytest.mark.parametrize("chunks", [None, (8, 3)])
def test_dense_matrices_and_layers(path, monkeypatch, chunks):
    with h5py.File(path, "a") as file:
        file.create_dataset("layers/counts", data=COUNTS, chunks=chunks)
    monkeypatch.setattr(h5ad, "DENSE_VALUES", 7 * 11)
    matrix, count = whole(path, "layers/counts")
    assert np.array_equal(matrix, COUNTS)
    assert count == (5 if chunks else 4)  # blocks of whole chunks: 8 rows, not 11


def test_unordered_and_repeated_entries_are_put_right(path):
    with h5py.File(path, "a") as file:
        del file["X"]
        group = file.create_group("X")
        group.attrs.update({"h5sparse_format": b"csr", "h5sparse_shape": [40, 7]})  # names of 2018
        group["data"], group["indices"] = np.array([1, 2, 4, 8.0]), np.array([5, 2, 5, 0])
        group["indptr"] = np.concatenate([[0, 3], np.full(39, 4)])
    matrix, _ = whole(path)
    assert matrix[0].tolist() == [0, 0, 2, 0, 0, 5, 0] and matrix[1].tolist() == [8, 0, 0, 0, 0, 0, 0]


def test_labels_of_every_encoding(path):
    text = h5py.string_dtype()
    codes = np.array([1, 0, 2, -1] * 10, np.int8)
    with h5py.File(path, "a") as file:
        obs = file["obs"]
        obs.create_dataset("plain", data=LABEL, dtype=text)
        obs["old"] = codes
        obs.create_dataset("__categories/old", data=np.array(["a", "b", "é"], object), dtype=text)
        nullable = obs.create_group("nullable")
        nullable.create_dataset("values", data=LABEL, dtype=text)
        nullable["mask"] = np.array([False, False, False, True] * 10)
        table = np.zeros(40, [("index", "S4"), ("label", "S4"), ("umi", "f4")])
        table["label"], table["index"] = [name.encode() for name in LABEL], "c"
        del obs["_index"]
        with pytest.raises(InputError, match="obs: has no index"), opened(path):
            pass
        obs["_index"] = np.arange(40).astype("S4")
    wanted = [None if label == "" else label for label in LABEL]
    for column in ("label", "plain", "old", "nullable"):
        with opened(path) as file:
            found, names = file.labels(column)
        assert [None if code < 0 or names[code] == "" else names[code] for code in found] == wanted, column
    with h5py.File(path, "a") as file:
        del file["obs"]
        file["obs"] = table
    with opened(path) as file:
        found, names = file.labels("label")
        assert [names[code] if code >= 0 else None for code in found] == wanted
        assert file.obs_names() == ["c"] * 40 and file.obs_columns == ["index", "label", "umi"]


def test_numbers_are_also_labels(path):
    with opened(path) as file:
        codes, names = file.labels("batch")
        assert [names[code] for code in codes[:4]] == ["0", "1", "2", "0"]
        assert np.array_equal(file.numbers("umi"), np.linspace(0, 1, 40))
        assert file.gene_names() == GENES
        with pytest.raises(InputError, match=r"cells.h5ad: obs/label: is not a column of numbers \(found 'a'"):
            file.numbers("label")
        with pytest.raises(InputError, match=r"obs column: there is no such column, only .*label.*found 'gene'"):
            file.labels("gene")
        with pytest.raises(InputError, match="var column"):
            file.gene_names("symbol")


def test_truncated_and_foreign_files(path, tmp_path):
    bytes_ = path.read_bytes()
    for share in (0, 0.1, 0.5, 0.9, 0.99):
        path.write_bytes(bytes_[: int(share * len(bytes_))])
        with pytest.raises(InputError, match=r"cells.h5ad: file: cannot be read as \.h5ad"):
            whole(path)
    with pytest.raises(InputError, match="no such file"), opened(tmp_path / "absent.h5ad"):
        pass
    path.write_bytes(bytes_)
    with pytest.raises(InputError, match="layers/counts: the file has no such part"), opened(path, "layers/counts"):
        pass


def test_damage_inside_a_block(path):
    with h5py.File(path) as file:
        place = file["X/data"].id.get_chunk_info(0).byte_offset
    damaged = bytearray(path.read_bytes())
    damaged[place : place + 40] = b"\xff" * 40
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="cannot be read"):
        whole(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda x: x.attrs.update({"encoding-type": "csc_matrix"}), r"X: is stored by columns \(CSC\).*tocsr"),
        (lambda x: x.attrs.update({"encoding-type": "coo"}), "X: is neither a dense nor a CSR matrix"),
        (lambda x: x["indptr"].__setitem__(-1, 10**6), "X/indptr: does not fit"),
        (lambda x: x["indptr"].__setitem__(5, 10**6), "X/indptr: cell 5 ends too early"),
        (lambda x: x["indices"].__setitem__(3, 7), r"X/indices: a gene of cells .* lies outside 0 \.\. 6"),
        (lambda x: x.attrs.update({"shape": [40, 8]}), "var: has 7 rows, X wants 8"),
    ],
)
def test_matrices_that_contradict_themselves(path, change, problem):
    with h5py.File(path, "a") as file:
        change(file["X"])
    with pytest.raises(InputError, match=problem):
        whole(path)
