"""Malformed input of every format, through the command that a user would give: one line, exit code 2, nothing left."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy import sparse

from mantra_ray.bench.cells import write_h5ad
from mantra_ray.cli import main
from mantra_ray.config import LAPTOP, ExperimentConfig, NexusConfig
from mantra_ray.training.checkpoint import save
from mantra_ray.training.nexus import train_nexus

GENES, N = [f"g{i}" for i in range(6)], 24
GOOD = {
    "reg_idx": np.arange(N) % 6,
    "dose": np.tile([0.3, 0.9], N // 2),
    "state": np.arange(N) // 12,
    "deltaE": np.random.default_rng(0).normal(size=(N, 6)),
    "gene_names": np.array(GENES),
    "regulator_names": np.array(GENES),
}
TOKENS = "tokens build --data screen.npz --out out --programs.k 2"
BAD = "MALFORMED"
COMMANDS = {
    "data": f"tokens build --data {BAD} --out out",
    "graph": f"{TOKENS} --graph {BAD}",
    "loadings": f"{TOKENS} --loadings {BAD}",
    "trait": f"{TOKENS} --traits T={BAD}",
    "classes": f"{TOKENS} --classes {BAD}",
    "embedding": f"{TOKENS} --states kmeans --clusters 2 --control-embedding {BAD}",
    "controls": f"train --data screen.npz --out out --programs.k 2 --manifold.energy --manifold.controls {BAD}",
    "cells": f"data import {BAD} --regulator-column gene --control c --out out.npz",
    "counts": f"programs fit --data {BAD} --out out",
    "recipe": f"sweep {BAD} --out out --data screen.npz",
    "results": "results runs",
    "status": "status runs",
    "explain": "explain . --regulator r0 --dose 0.5 --state a",
    "predict": "predict . --regulator r0 --dose 0.5 --state a",
    "ask": f"predict . --records {BAD} --out out.parquet",
}


def npz(**changes):
    """The good screen with arrays replaced; None leaves one out."""
    arrays = {name: value for name, value in (GOOD | changes).items() if value is not None}
    return lambda path: np.savez(path, **arrays)


def records(metadata=None, **changes):
    """A Parquet file of records; `metadata` takes the names' place."""
    columns = {"regulator": GOOD["reg_idx"], "dose": GOOD["dose"], "delta_expression": GOOD["deltaE"].tolist()}
    kept = {name: value for name, value in (columns | changes).items() if value is not None}
    table = pa.table(kept).replace_schema_metadata({"mantra_ray": metadata} if metadata else None)
    return lambda path: pq.write_table(table, path)


def raw(content):
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def npy(array, **options):
    return lambda path: np.save(path, array, **options)


def npy_claims(shape):
    """An .npy file whose header promises more than there is."""
    handle = io.BytesIO()
    np.lib.format.write_array_header_1_0(handle, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return raw(handle.getvalue())


def torn(make, keep=0.6):
    """The first part of what another maker writes."""

    def cut(path):
        make(path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])

    return cut


class Evil:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def cnmf(pickled):
    """cnmf's archive of spectra, its names pickled."""

    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("index", "columns", "data"):
                handle = io.BytesIO()
                header = {"descr": "|O", "fortran_order": False, "shape": (1,)}
                np.lib.format.write_array_header_1_0(handle, header)
                archive.writestr(f"{name}.npy", handle.getvalue() + pickled)

    return write


def h5ad(change=lambda file: None):
    """A good file of cells, then changed."""

    def write(path):
        counts = sparse.csr_array(np.random.default_rng(0).poisson(3, (20, 6)).astype(np.float32))
        gene = np.array(["c", "g1"] * 10, object)
        write_h5ad(path, [counts], GENES, {"gene": gene})
        with h5py.File(path, "a") as file:
            change(file)

    return write


def put(place, value):
    """Replace a data set of an .h5ad."""

    def change(file):
        del file[place]
        file[place] = value

    return h5ad(change)


def wrong_codes(file):
    del file["obs/gene"]
    file["obs/gene/codes"], file["obs/gene/categories"] = np.full(20, 7), [b"c"]


def changed(names="", **parts):
    """The good checkpoint with parts replaced, or with a name too many of a kind."""

    def write(path):
        stored = torch.load(path, weights_only=True) | parts
        stored["names"].get(names, []).append("one more")
        torch.save(stored, path)

    return write


NO_FIELD = """from mantra_ray.sweep.spec import grid
def recipe(options):
    return options.sweep("mine", grid(**{"nexus.nothing": (1, 2)}))
"""
SPECTRA = "x.gene_spectra_score.k_2.dt_0_5"
NOTHING = {"regulator": np.zeros(0), "dose": np.zeros(0), "delta_expression": pa.array([], pa.list_(pa.float64()))}
RAGGED = [[1.0]] * (N - 1) + [[1.0, 2.0]]
SMR = "probeID\tGene\tb_SMR\tse_SMR\tp_SMR\tp_HEIDI\n"
H5 = "cells.h5ad"
CASES = {  # command, file, maker, what the line says
    "npz: empty": ("data", "s.npz", raw(b""), "file:"),
    "npz: torn": ("data", "s.npz", torn(npz()), "file:"),
    "npz: no dose": ("data", "s.npz", npz(dose=None), "dose: is missing"),
    "npz: a number": ("data", "s.npz", npz(reg_idx=np.array(3)), "reg_idx: .*shape"),
    "npz: two axes": ("data", "s.npz", npz(dose=np.ones((N, 1))), "dose: .*shape"),
    "npz: dose 1.2": ("data", "s.npz", npz(dose=np.full(N, 1.2)), "dose: record 0: lies outside .*1.2"),
    "npz: NaN": ("data", "s.npz", npz(deltaE=np.full((N, 6), np.nan)), "deltaE: record 0, column 0: .*nan"),
    "npz: fraction": ("data", "s.npz", npz(state=np.full(N, 0.5)), "state: record 0: is not a whole number .*0.5"),
    "npz: negative": ("data", "s.npz", npz(reg_idx=np.full(N, -1)), "reg_idx: record 0: .*-1"),
    "npz: huge index": ("data", "s.npz", npz(state=np.full(N, 2**40)), "state: so large an index"),
    "npz: complex": ("data", "s.npz", npz(dose=np.ones(N, complex)), "dose: is not numeric .*complex"),
    "npz: pickled": ("data", "s.npz", npz(gene_names=np.array([Evil()] * 6, object)), "file: cannot be read as NPZ"),
    "npz: names twice": ("data", "s.npz", npz(gene_names=np.array(["g"] * 6)), "gene_names: .*occurs twice .*'g'"),
    "npz: se 0": ("data", "s.npz", npz(deltaE_se=np.zeros((N, 6))), "deltaE_se: .*above 0 .*0.0"),
    "parquet: torn": ("data", "s.parquet", torn(records()), "file:"),
    "parquet: no rows": ("data", "s.parquet", records(**NOTHING), "regulator: there are no records"),
    "parquet: null": ("data", "s.parquet", records(dose=[None] + [1] * (N - 1)), "dose: record 0: is missing"),
    "parquet: ragged": ("data", "s.parquet", records(delta_expression=RAGGED), "delta_expression: record 23: has 2 "),
    "parquet: text": ("data", "s.parquet", records(dose=["much"] * N), "dose: is not numeric"),
    "parquet: nested": ("data", "s.parquet", records(delta_expression=[[[1.0]]] * N), "delta_expression: "),
    "parquet: struct": ("data", "s.parquet", records(dose=[{"a": 1}] * N), "dose: is not numeric"),
    "parquet: names are no JSON": ("data", "s.parquet", records(b"{"), "file:"),
    "parquet: names are no lists": ("data", "s.parquet", records(b'{"gene_names": 3}'), "metadata mantra_ray: "),
    "parquet: names in lists": ("data", "s.parquet", records(b'{"gene_names": [["a"], []]}'), "metadata mantra_ray: "),
    "data: a folder": ("data", "s.npz", lambda path: path.mkdir(), "file: there is no such file"),
    "edges: empty": ("graph", "e.csv", raw(""), "file:"),
    "edges: no target": ("graph", "e.csv", raw("source,goal\ng0,g1\n"), "target: the table has no such column"),
    "edges: weight": ("graph", "e.csv", raw("source,target,weight\ng0,g1,hi\n"), "weight: row 0 is not a number .*hi"),
    "edges: ragged": ("graph", "e.csv", raw("source,target\ng0,g1,7\n"), "file: cannot be read"),
    "edges: bytes": ("graph", "e.csv", raw(b"source,target\n\xff\xfe,g1\n"), "e.csv: "),
    "edges: gzip": ("graph", "e.csv.gz", raw(b"\x1f\x8b broken"), "file: cannot be read"),
    "edges: others": ("graph", "e.tsv", raw("source\ttarget\nx\ty\n"), "target: no gene of the data"),
    "edges: parquet": ("graph", "e.parquet", records(source=[["a"]] * N, target=["b"] * N), "source: .* not text"),
    "loadings: zip": ("loadings", "w.npy", raw(b"PK\x03\x04 broken"), "file:"),
    "loadings: claims": ("loadings", "w.npy", npy_claims((10**14, 6)), "file:"),
    "loadings: shape": ("loadings", "w.npy", npy(np.ones((5, 2))), r"loadings: 6 rows .*\(5, 2\)"),
    "loadings: objects": ("loadings", "w.npy", npy(np.array([[Evil()]]), allow_pickle=True), "file: cannot be read"),
    "loadings: cell": ("loadings", "w.csv", raw("gene,p\ng0,\n"), "p: row 0 is empty"),
    "cnmf: text": ("loadings", SPECTRA + ".txt", raw("\tg0\tg1\n1\t0.5\n"), "file: .*program 1 has 1 values"),
    "cnmf: evil": ("loadings", SPECTRA + ".df.npz", cnmf(pickle.dumps(Evil())), "file: .*it holds posix.mkdir"),
    "cnmf: pickle": ("loadings", SPECTRA + ".df.npz", cnmf(b"\x80\x04]\x94e."), "file:"),
    "controls: shape": ("controls", "c.npy", npy(np.ones((20, 5))), "cells: 6 columns"),
    "controls: state": ("controls", "c.csv", raw("g0,state\n" + "1,nowhere\n" * 9), "state: row 0: .*nowhere"),
    "classes: two": ("classes", "k.csv", raw("regulator,class\ng0,a\ng0,b\n"), "class: row 1: .*'b'"),
    "SMR: se": ("trait", "t.smr.txt", raw(SMR + "p\tg0\t0.1\t-1\t0.5\t0.5\n"), "se_SMR: row 0: .*-1"),
    "SMR: p": ("trait", "t.smr.txt", raw(SMR + "p\tg0\t0.1\t1\t0.5\t1.5\n"), "p_HEIDI: row 0: .*1.5"),
    "SMR: text": ("trait", "t.smr.txt", raw(SMR + "p\tg0\tbig\t1\t0.5\t0.5\n"), "b_SMR: row 0 is not a number .*big"),
    "SMR: twice": ("trait", "t.smr.txt", raw(SMR + "p\tg0\t1\t1\t0\t1\n" * 2), "Gene: row 1: the gene occurs twice"),
    "SMR: infinite": ("trait", "t.csv", raw("symbol,b,se\ng0,inf,1\n"), "b: row 0 is infinite"),
    "embedding: rows": ("embedding", "m.npy", npy(np.ones((3, 2))), r"--control-embedding: .*\(3, 2\)"),
    "embedding: zip": ("embedding", "m.npy", raw(b"PK\x03\x04 broken"), "--control-embedding:"),
    "h5ad: torn": ("cells", H5, torn(h5ad()), "file:"),
    "h5ad: no matrix": ("cells", H5, h5ad(lambda file: file.__delitem__("X")), "X: the file has no such part"),
    "h5ad: no column": ("cells", H5, h5ad(lambda file: file["obs"].__delitem__("gene")), "obs column: .*'gene'"),
    "h5ad: CSC": ("cells", H5, h5ad(lambda file: file["X"].attrs.update({"encoding-type": "csc"})), "X: is stored by"),
    "h5ad: shape": ("cells", H5, h5ad(lambda file: file["X"].attrs.update({"shape": 5})), "X: "),
    "h5ad: gene outside": ("cells", H5, put("X/indices", np.full(10**4, 99, np.int32)), "X/ind"),
    "h5ad: no ends": ("cells", H5, put("X/indptr", np.zeros(0, np.int64)), "X/indptr: "),
    "h5ad: text matrix": ("cells", H5, put("X", np.full((20, 6), b"x")), "X: "),
    "h5ad: cube": ("cells", H5, put("X", np.ones((20, 6, 2))), "X: is not a matrix"),
    "h5ad: obs": ("cells", H5, put("obs", np.arange(20)), "obs: "),
    "h5ad: codes": ("cells", H5, h5ad(wrong_codes), "obs/gene: row 0 has a code of no category .*7"),
    "h5ad: short": ("cells", H5, put("obs/gene", [b"c"] * 7), r"obs/gene: 20 entries are wanted.*\(7,\)"),
    "counts: torn": ("counts", "m.npz", torn(npz()), "file:"),
    "recipe: syntax": ("recipe", "mine.py", raw("def recipe(options:\n"), "recipe: line 1"),
    "recipe: no spec": ("recipe", "mine.py", raw("def recipe(options):\n    return 3\n"), "recipe: .*Spec .*'int'"),
    "recipe: no field": ("recipe", "mine.py", raw(NO_FIELD), "arms: NexusConfig has no field 'nothing'"),
    "sweep.json: JSON": ("results", "runs/sweep.json", raw("{"), "sweep.json: is no folder of a sweep"),
    "sweep.json: list": ("status", "runs/sweep.json", raw("[]"), "sweep.json: does not list the trials"),
    "sweep.json: trials": ("results", "runs/sweep.json", raw('{"trials": [{"a": 1}]}'), "sweep.json: "),
    "checkpoint: torn": ("predict", "model.pt", torn(lambda path: None), "checkpoint: cannot be read"),
    "checkpoint: text": ("explain", "model.pt", raw("hello"), "checkpoint: cannot be read"),
    "checkpoint: pickle": ("predict", "model.pt", lambda path: torch.save(Evil(), path), "checkpoint: cannot be read"),
    "checkpoint: list": ("explain", "model.pt", lambda path: torch.save([1], path), "checkpoint: cannot be read"),
    "checkpoint: format": ("predict", "model.pt", changed(format=1), "format: this version reads .*found 1"),
    "checkpoint: no format": ("explain", "model.pt", changed(format=None), "format: .*found None"),
    "checkpoint: more": ("explain", "model.pt", changed(more=1), "checkpoint: cannot be read"),
    "checkpoint: genes": ("predict", "model.pt", changed("gene"), "number of names, gene: "),
    "checkpoint: programs": ("explain", "model.pt", changed("program"), "number of names, program: "),
    "checkpoint: regulators": ("predict", "model.pt", changed("regulator"), "number of names, regulator: "),
    "checkpoint: setting": ("predict", "model.pt", changed(config={"nexus.no": 1}), "checkpoint: cannot be read"),
    "checkpoint: networks": ("predict", "model.pt", changed(), "networks: holds none"),
    "vocab.json: JSON": ("predict", "vocab.json", raw("{"), "vocabulary: cannot be read"),
    "vocab.json: list": ("explain", "vocab.json", raw("[1]"), "vocabulary: cannot be read"),
    "vocab.json: fields": ("explain", "vocab.json", raw('{"regulators": 1}'), "vocabulary: cannot be read"),
    "queries: dose": ("ask", "q.csv", raw("regulator,dose,state\nr0,2,a\n"), "dose: row 0: .*2.0"),
    "queries: column": ("ask", "q.csv", raw("regulator,dose\nr0,0.2\n"), "state: the table has no such column"),
    "queries: name": ("ask", "q.csv", raw("regulator,dose,state\nr0,1,a\nr1x,1,a\n"), "regulator: row 1: .*mean r1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(planted, tmp_path_factory):
    """A checkpoint and its vocabulary, as bytes."""
    fold = planted(classes=3)
    nexus = NexusConfig(**LAPTOP | {"d_model": 16}, heads=2, buckets=8, slots=8, epochs=1, top_programs=3)
    trained, folder = train_nexus(fold, nexus, 0), tmp_path_factory.mktemp("good")
    save(folder / "model.pt", trained, fold, ExperimentConfig(nexus=nexus), ("x", "y", "z"))
    trained.model.vocabulary.save(folder / "vocab.json")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def folder(good, tmp_path, monkeypatch):
    """Where a user stands: beside a screen and a training that are in order."""
    monkeypatch.chdir(tmp_path)
    npz()(tmp_path / "screen.npz")
    for name, content in good.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_it_is_told_in_one_line_and_nothing_is_left(folder, capsys, case):
    command, name, make, says = CASES[case]
    (folder / name).parent.mkdir(exist_ok=True)
    make(folder / name)
    before = listing(folder)
    code = main(COMMANDS[command].replace(BAD, name).split())
    error = capsys.readouterr().err
    assert (code, error.count("\n"), error[:7]) == (2, 1, "error: "), error
    assert name.split("/")[0] in error and re.search(says, error), error
    assert listing(folder) == before


def test_the_good_files_pass(folder):
    """What the cases change is all that is wrong with them."""
    h5ad()(folder / H5)
    assert main(TOKENS.split()) == 0 and main(COMMANDS["explain"].split()) == 0
    thresholds = "--min-umi 1 --min-genes 1 --max-mito 1 --min-cells 2 --min-cells-per-gene 0"
    assert main(f"{COMMANDS['cells'].replace(BAD, H5)} {thresholds}".split()) == 0
