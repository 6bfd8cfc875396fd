"""Agreement with the reference implementation of consensus NMF, the package cnmf; skipped where it is absent."""

import contextlib
import io
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import linear_sum_assignment

from mantra_ray.cascade.consensus import restarts, stability
from mantra_ray.cascade.count_programs import fit_count_programs, scaled_counts
from mantra_ray.config import ProgramsConfig
from mantra_ray.data.counts import read_counts
from mantra_ray.data.loadings import read_loadings

cnmf = pytest.importorskip("cnmf")
anndata = pytest.importorskip("anndata")

CELLS, GENES, KEPT, K, RESTARTS = 400, 500, 250, 6, 10


def cosines(found, wanted):
    """Of the best one-to-one matching of programs (rows)."""
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (found, wanted)]
    table = unit[0] @ unit[1].T
    return table[linear_sum_assignment(-table)]


@pytest.fixture(scope="module", params=[1000, 200], ids=lambda depth: f"{depth} counts a cell")
def counts_file(request, tmp_path_factory):
    """Sparse Poisson counts of cells that mix six programs."""
    rng = np.random.default_rng(0)
    spectra = rng.gamma(0.3, 1, (K, GENES)) * rng.lognormal(0, 1, GENES) + 1e-3
    usages = rng.dirichlet(np.full(K, 0.3), CELLS)
    mean = usages @ (spectra / spectra.sum(1, keepdims=True)) * request.param * rng.lognormal(0, 0.3, (CELLS, 1))
    path = tmp_path_factory.mktemp("counts") / "cells.h5ad"
    made = anndata.AnnData(sp.csr_matrix(rng.poisson(mean).astype(np.float32)))
    made.var_names = [f"gene{i}" for i in range(GENES)]
    made.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def reference(counts_file):
    """cnmf's run on them: its object, and its stability and error."""
    run = cnmf.cNMF(output_dir=str(counts_file.parent), name="run")
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.prepare(str(counts_file), components=[K], n_iter=RESTARTS, seed=1, num_highvar_genes=KEPT)
        run.factorize()
        run.combine()
        run.consensus(K, density_threshold=0.5, show_clustering=False)
        stats = run.consensus(K, skip_density_and_return_after_stats=True, show_clustering=False)["stats"]
    return run, stats


def test_programs_are_those_of_cnmf(counts_file, reference, record_property):
    run, stats = reference
    usages, score, tpm, _ = run.load_results(K, 0.5, norm_usage=False)
    config = ProgramsConfig(k=K, restarts=RESTARTS, iterations=1000, tolerance=1e-4)
    counts = read_counts(counts_file)
    ours = fit_count_programs(counts, config, KEPT, seed=0)
    chosen = (counts_file.parent / "run" / "run.overdispersed_genes.txt").read_text().split()
    assert [counts.genes[gene] for gene in ours.genes] == chosen
    spectra, _, _ = read_loadings(counts_file.parent / "run" / f"run.spectra.k_{K}.dt_0_5.consensus.txt", chosen)
    pairs = {
        "consensus": (ours.spectra, spectra.T),
        "tpm": (ours.tpm, tpm.T.to_numpy()),
        "score": (ours.score, score.T.to_numpy()),
        "usages": (ours.usages.T, usages.T.to_numpy()),
    }
    for name, (found, wanted) in pairs.items():
        least = cosines(found, wanted).min()
        record_property(name, least)
        print(f"{name}: least cosine {least:.6f}")
        assert least >= 0.98
    rows, _ = scaled_counts(counts, ours.genes)
    found = stability(rows, restarts(rows, [K], config, seed=0)[K], K, config, seed=0)
    assert found.silhouette == pytest.approx(stats["silhouette"], abs=0.02)
    assert found.error * np.square(rows.data).sum() == pytest.approx(stats["prediction_error"], rel=0.01)


def test_its_output_folder_loads_as_loadings(counts_file, reference):
    score = reference[0].load_results(K, 0.5)[1]
    folder = counts_file.parent / "run"
    genes = [*score.index[::-1], "unknown"]
    for path in (folder, next((folder / "cnmf_tmp").glob("*.gene_spectra_score.k_*.df.npz"))):
        loadings, programs, notes = read_loadings(path, genes)
        np.testing.assert_allclose(loadings[:-1], score.to_numpy()[::-1], rtol=1e-4, atol=1e-6)
        assert (
            len(programs) == K
            and not loadings[-1].any()
            and notes[0].endswith("1 genes have no loadings and count 0: unknown")
        )
