"""Records on disk: what is written is read back, and nothing else is taken for it."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.data.records import PerturbationData, from_arrays
from mantra_ray.data.storage import read_npz, read_parquet, read_records, write_npz, write_parquet
from mantra_ray.errors import InputError

FORMS = {"npz": (read_npz, write_npz), "parquet": (read_parquet, write_parquet)}


def make(n: int, genes: int, seed: int, programs_only: bool = False) -> PerturbationData:
    rng = np.random.default_rng(seed)
    fields = {
        "regulator": rng.integers(3, size=n),
        "dose": rng.random(n),
        "state": rng.integers(2, size=n),
        "strategy": rng.integers(2, size=n),
        "group": rng.integers(5, size=n),
        "delta_program": rng.normal(size=(n, 2)),
        "delta_trait": rng.normal(size=(n, 1)),
        "regulator_names": ["A", "B", "é"],
        "state_names": ["s", "t"],
        "strategy_names": ["KO", "CE"],
        "trait_names": ["MCH"],
    }
    if not programs_only:
        fields |= {
            "delta_expression": rng.normal(size=(n, genes)),
            "delta_expression_se": rng.random((n, genes)) + 0.1,
            "n_cells": rng.integers(1, 90, size=n),
            "gene_names": [f"NA{i}" for i in range(genes)],
        }
    return from_arrays(fields)


def same(a: PerturbationData, b: PerturbationData) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(PerturbationData)]
    return all(
        x == y if isinstance(x, tuple) or x is None else x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs
    )


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 9), genes=st.integers(1, 5), seed=st.integers(0, 99), programs_only=st.booleans())
def test_written_records_are_read_back_exactly(tmp_path_factory, form, n, genes, seed, programs_only):
    read, write = FORMS[form]
    path = tmp_path_factory.mktemp("records") / f"screen.{form}"
    data = make(n, genes, seed, programs_only)
    write(data, path)
    assert same(read(path), data) and same(read_records(path), data)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("form", FORMS)
def test_truncated_or_foreign_files_are_refused(tmp_path, form):
    read, write = FORMS[form]
    path = tmp_path / f"screen.{form}"
    with pytest.raises(InputError, match="no such file"):
        read(path)
    write(make(50, 40, 0), path)
    whole = path.read_bytes()
    for share in (0.0, 0.01, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InputError, match="cannot be read"):
            read(path)
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF  # a flipped byte inside the data
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="cannot be read"):
        read(path)
    path.write_text("regulator,dose\n0,1\n")
    with pytest.raises(InputError, match="cannot be read"):
        read(path)


def test_users_npz_with_either_key_of_the_change(tmp_path):
    path = tmp_path / "screen.npz"
    base = {"reg_idx": np.array([0, 1], np.int32), "dose": np.array([0.5, 1.0]), "unrelated": np.zeros(3)}
    np.savez(path, **base, deltaE_obs=np.ones((2, 3), np.float16), gene_names=np.array([b"A", b"B", b"C"]).astype(str))
    data = read_npz(path)
    assert data.gene_names == ("A", "B", "C") and data.delta_expression.tolist() == [[1.0] * 3] * 2
    np.savez(path, **base, deltaE=np.zeros((2, 3)), deltaE_obs=np.ones((2, 3)))
    assert read_npz(path).delta_expression.max() == 1  # the observed change goes before the other
    np.savez(path, **base, deltaE_obs=np.array([[0, 1], [np.nan, 0]]))
    with pytest.raises(InputError, match=r"screen.npz: deltaE_obs: record 1, column 0"):
        read_npz(path)
    np.savez(path, dose=base["dose"], deltaE=np.zeros((2, 3)))
    with pytest.raises(InputError, match="reg_idx: is missing"):
        read_npz(path)


def test_pickles_are_never_loaded(tmp_path):
    path = tmp_path / "screen.npz"
    np.savez(path, reg_idx=[0], dose=[1.0], deltaE=np.ones((1, 1)), gene_names=np.array(["A"], dtype=object))
    with pytest.raises(InputError, match="dtype=str"):
        read_npz(path)
    np.save(tmp_path / "bare.npy", np.ones(3))
    (tmp_path / "bare.npy").rename(path)
    with pytest.raises(InputError, match="not an NPZ archive"):
        read_npz(path)


def test_parquet_of_another_maker(tmp_path):
    path = tmp_path / "screen.parquet"
    columns = {"regulator": [0, 1], "dose": [0.5, 1.0], "delta_program": [[1.0, 2.0], [3.0, 4.0]]}
    pq.write_table(pa.table(columns), path)
    assert read_parquet(path).delta_program.tolist() == [[1, 2], [3, 4]]
    for bad, problem in (
        ({"delta_program": [[1.0, 2.0], [3.0]]}, "record 1: has 1 values, not 2"),
        ({"delta_program": [[1.0, 2.0], [3.0, None]]}, "record 1, column 1: is missing"),
        ({"delta_program": [[1.0, 2.0], None]}, "record 1: is missing"),
        ({"dose": [0.5, None]}, "record 1: is missing"),
        ({"dose": ["a", "b"]}, "is not numeric"),
    ):
        pq.write_table(pa.table(columns | bad), path)
        with pytest.raises(InputError, match=problem):
            read_parquet(path)


def test_unknown_suffix(tmp_path):
    with pytest.raises(InputError, match=r"\.npz or \.parquet"):
        read_records(tmp_path / "screen.h5ad")
