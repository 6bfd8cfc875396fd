"""Agreement with the package cell-eval on the same predictions; skipped where it is absent.

It judges cells, so that every record becomes one cell beside a control cell. Two conventions differ: it divides the
rank of the true perturbation by all n perturbations and not by its n - 1 rivals, and scores the overlap of a record
without significant genes 0 where ours leaves it out.
"""

import numpy as np
import pytest

from mantra_ray.evaluation import differential, metrics
from mantra_ray.evaluation.differential import DifferentialGenes, significant_genes

cell_eval = pytest.importorskip("cell_eval")
anndata = pytest.importorskip("anndata")
polars = pytest.importorskip("polars")
theirs = pytest.importorskip("cell_eval.metrics")

RECORDS, GENES, PROGRAMS = 40, 300, 12
NAMES = [f"p{i:02d}" for i in range(RECORDS)]  # in alphabetical order, as cell-eval returns them


@pytest.fixture(scope="module")
def changes():
    """Observed and predicted changes, and standard errors, each [records, genes]."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(RECORDS, GENES)) * (rng.random((RECORDS, GENES)) < 0.3)
    observed = truth + 0.2 * rng.normal(size=truth.shape)
    return observed, 0.4 * truth + 0.3 * rng.normal(size=truth.shape), np.full(truth.shape, 0.2)


def pair(observed, predicted, loadings):
    """Both as cells, with changes of programs beside them."""
    control = np.random.default_rng(1).uniform(0, 3, GENES)

    def cells(change):
        data = anndata.AnnData(np.vstack([control, control + change]))
        data.obs["target"] = ["non-targeting", *NAMES]
        data.obsm["programs"] = np.vstack([np.zeros(PROGRAMS), change @ loadings])
        return data

    return cell_eval.PerturbationAnndataPair(cells(observed), cells(predicted), "target", "non-targeting")


def comparison(observed, predicted, significant):
    """Both as tables of differential expression; a prediction's genes all count, as it has no cells to test."""

    def table(change, fdr):
        rows, columns = (index.ravel() for index in np.indices(change.shape))
        return polars.DataFrame({
            "target": [NAMES[i] for i in rows],
            "feature": [f"g{j}" for j in columns],
            "log2_fold_change": change.ravel(),
            "p_value": fdr.ravel(),
            "fdr": fdr.ravel(),
        })  # fmt: skip

    tables = table(observed, np.where(significant, 0.0, 1.0)), table(predicted, np.zeros(observed.shape))
    return cell_eval.initialize_de_comparison(*tables)


def in_order(found):
    return np.array([found[name] for name in NAMES])


def test_pearson_of_changes(changes):
    observed, predicted, _ = changes
    found = in_order(theirs.pearson_delta(pair(observed, predicted, np.ones((GENES, PROGRAMS)))))
    assert metrics.pearson(predicted, observed) == pytest.approx(found, abs=1e-9)


def test_discrimination_of_programs_and_of_genes(changes):
    observed, predicted, _ = changes
    loadings = np.random.default_rng(2).normal(size=(GENES, PROGRAMS))
    cells = pair(observed, predicted, loadings)
    for key, projection in (("programs", loadings), (None, np.eye(GENES))):
        found = in_order(theirs.discrimination_score(cells, metric="l2", embed_key=key))
        share = metrics.discrimination(predicted @ projection, observed @ projection, np.arange(RECORDS))
        assert found == pytest.approx(1 - (1 - share) * (RECORDS - 1) / RECORDS)
        assert share.mean() > 0.8


def test_overlap_direction_and_rank_correlation_of_significant_genes(changes, monkeypatch):
    observed, predicted, se = changes
    significant = significant_genes(observed, se)
    significant[-1] = False
    assert significant[:-1].any(1).all()
    cells = comparison(observed, predicted, significant)
    monkeypatch.setattr(differential, "TOP", 20)  # fewer than are significant, mostly
    assert np.median(significant.sum(1)) > 20
    ours = DifferentialGenes(observed, significant).ratios(predicted)
    wanted = {
        "de_overlap": theirs.de_overlap_metric(cells, k=None),
        "de_overlap_50": theirs.de_overlap_metric(cells, k=20),
        "de_direction": theirs.DEDirectionMatch()(cells),
        "de_spearman": theirs.DESpearmanLFC()(cells),
    }
    assert ours.keys() == wanted.keys()
    for name, (value, judged) in ours.items():
        assert judged.tolist() == [1.0] * (RECORDS - 1) + [0.0]
        found = in_order({NAMES[-1]: 0.0} | wanted[name])
        assert found[-1] == 0.0
        assert value == pytest.approx(found, abs=1e-6), name
        assert 0.1 < value[:-1].mean() < 1


def test_overlap_of_all_genes_where_errors_are_unknown(changes):
    observed, predicted, _ = changes
    found = theirs.de_overlap_metric(comparison(observed, predicted, np.ones(observed.shape, bool)), k=differential.TOP)
    value, _ = DifferentialGenes(observed, None).ratios(predicted)["de_overlap_50"]
    assert value == pytest.approx(in_order(found))
