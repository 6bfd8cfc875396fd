import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from mantra_ray.cascade.count_programs import fit_count_programs, gene_statistics, over_dispersed, scaled_counts
from mantra_ray.config import ProgramsConfig
from mantra_ray.data.counts import Counts
from mantra_ray.errors import InputError

CONFIG = ProgramsConfig(k=4, restarts=5, iterations=1000, tolerance=1e-4)


def counts_of(matrix, block=64):
    matrix = sp.csr_array(matrix)
    cells, genes = (tuple(f"{kind}{i}" for i in range(size)) for kind, size in zip("cg", matrix.shape, strict=True))
    return Counts(
        "made", cells, genes, lambda: (matrix[start : start + block] for start in range(0, matrix.shape[0], block))
    )


def planted(cells=300, genes=120, programs=4, seed=0):
    """Poisson counts of cells that mix a few programs, and the programs."""
    rng = np.random.default_rng(seed)
    spectra = rng.gamma(0.3, 1, (programs, genes)) + 1e-3
    spectra /= spectra.sum(1, keepdims=True)
    usages = rng.dirichlet(0.2 * np.arange(1, programs + 1), cells)  # the last one is used most
    return rng.poisson(usages @ spectra * rng.lognormal(7, 0.3, (cells, 1))), spectra, usages


def cosines(found, wanted):
    """Of the best one-to-one matching of rows."""
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (found, wanted)]
    table = unit[0] @ unit[1].T
    return table[linear_sum_assignment(-table)]


def test_planted_programs_and_their_usages_are_found():
    matrix, spectra, usages = planted()
    found = fit_count_programs(counts_of(matrix), CONFIG, 80, seed=0)
    assert cosines(found.tpm, spectra).min() > 0.98
    assert cosines(found.usages.T, usages.T).min() > 0.97
    # A score tells how a program differs from the others, hence it follows the centred spectra.
    deviation = np.sqrt(gene_statistics(counts_of(matrix)).variance)
    centred = (spectra - spectra.mean(0)) / deviation
    assert cosines(found.score, centred).min() > 0.9
    assert found.score.shape == (4, 120) and found.spectra.shape == (4, 80) and not found.notes
    assert (np.diff((found.usages / found.usages.sum(1, keepdims=True)).sum(0)) < 0).all()  # strongest first


def test_blocks_of_any_size_give_the_same():
    matrix = planted()[0]
    one, many = (fit_count_programs(counts_of(matrix, block), CONFIG, 80, seed=0) for block in (1000, 7))
    for name in ("score", "tpm", "usages"):
        np.testing.assert_allclose(getattr(one, name), getattr(many, name), rtol=1e-4, atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 50))
def test_statistics_and_scaling_equal_their_dense_forms(seed, block):
    rng = np.random.default_rng(seed)
    matrix = rng.poisson(rng.gamma(0.5, 2, (1, 30)), (40, 30))
    counts = counts_of(matrix, block)
    found = gene_statistics(counts)
    scaled = matrix * 1e6 / np.maximum(matrix.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(found.mean, scaled.mean(0), rtol=1e-9)
    np.testing.assert_allclose(found.variance, scaled.var(0), rtol=1e-6)
    genes = over_dispersed(found, 0)
    np.testing.assert_array_equal(genes, np.flatnonzero(scaled.var(0) > 1e-9 * scaled.mean(0).max()))
    rows, kept = scaled_counts(counts, genes)
    dense = matrix[:, genes] / matrix[:, genes].std(0, ddof=1)
    np.testing.assert_array_equal(kept, np.flatnonzero(dense.any(1)))
    np.testing.assert_allclose(rows.toarray(), dense[kept], rtol=1e-5)


def test_over_dispersed_genes_are_those_that_vary_more_than_noise():
    rng = np.random.default_rng(0)
    level = rng.lognormal(1, 1, 200)
    rate = np.tile(level, (500, 1))
    varied = rng.choice(200, 20, replace=False)
    rate[:, varied] *= rng.gamma(0.5, 2, (500, 20))
    genes = over_dispersed(gene_statistics(counts_of(rng.poisson(rate))), 20)
    assert len(set(genes) & set(varied)) >= 18 and (np.diff(genes) > 0).all()


def test_cells_without_counts_have_no_usage_and_are_told():
    matrix = planted()[0]
    matrix[[3, 7]] = 0
    found = fit_count_programs(counts_of(matrix), CONFIG, 80, seed=0)
    np.testing.assert_array_equal(np.flatnonzero(~found.usages.any(1)), [3, 7])
    assert found.notes == ("2 cells have no count of the 80 over-dispersed genes",)


@pytest.mark.parametrize(("value", "shown"), [(-1.0, "-1.0"), (np.nan, "nan"), (np.inf, "inf")])
def test_counts_that_cannot_be_name_cell_and_gene(value, shown):
    matrix = planted()[0].astype(float)
    matrix[70, 5] = value
    with pytest.raises(InputError, match=rf"g5: cell c70: .*found {shown}"):
        fit_count_programs(counts_of(matrix), CONFIG, 80, seed=0)


def test_counts_too_few_for_k_or_without_variation():
    with pytest.raises(InputError, match=r"programs\.k: the counts allow 1 to 3"):
        fit_count_programs(counts_of(planted()[0]), CONFIG, 3, seed=0)
    with pytest.raises(InputError, match="no cell has a count"):
        fit_count_programs(counts_of(np.zeros((5, 4))), CONFIG, 0, seed=0)


def test_no_dense_copy_of_the_cells_is_made():
    cells, genes = 4000, 2000
    matrix = sp.random_array((cells, genes), density=0.01, format="csr", random_state=0, dtype=np.float64)
    matrix.data = np.ceil(matrix.data * 5)
    counts, config = counts_of(matrix, 500), ProgramsConfig(k=3, restarts=2, iterations=3)
    tracemalloc.start()
    fit_count_programs(counts, config, 0, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < cells * genes * 4 / 3  # bytes of a dense float32 copy
