"""Significant genes against a plain Benjamini-Hochberg, and overlaps worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from mantra_ray.evaluation import differential
from mantra_ray.evaluation.differential import DifferentialGenes, overlap, significant_genes


def test_significance_is_benjamini_and_hochbergs():
    rng = np.random.default_rng(0)
    changes, se = rng.normal(size=(5, 40)) * 2, rng.uniform(0.2, 1, (5, 40))
    for change, error, found in zip(changes, se, significant_genes(changes, se), strict=True):
        p = 2 * stats.norm.sf(np.abs(change / error))
        order = np.argsort(p)
        passing = np.flatnonzero(p[order] <= 0.05 * np.arange(1, 41) / 40)
        expected = np.zeros(40, bool)
        expected[order[: passing.max(initial=-1) + 1]] = True
        assert found.tolist() == expected.tolist()


def test_genes_without_a_standard_error_are_not_significant(monkeypatch):
    changes, se = np.full((3, 4), 9.0), np.array([[1.0, 0, np.nan, 1]] * 3)
    assert significant_genes(changes, se).tolist() == [[True, False, False, True]] * 3
    monkeypatch.setattr(differential, "BLOCK", 4)
    assert significant_genes(changes, se).tolist() == [[True, False, False, True]] * 3


def test_noise_alone_is_rarely_significant():
    changes = np.random.default_rng(0).normal(size=(400, 50))
    assert significant_genes(changes, np.ones_like(changes)).any(1).mean() < 0.1


def test_overlap_by_hand():
    size = np.array([5.0, 4, 3, 2, 1])
    assert overlap(size, np.array([0, 1])) == 1.0 and overlap(size, np.array([0, 4])) == 0.5
    # two places for five tied genes: chance
    assert overlap(np.ones(5), np.array([1, 3])) == pytest.approx(0.4)
    # one place is certain, two genes tie for the other
    assert overlap(np.array([9.0, 1, 1, 0]), np.array([0, 1])) == pytest.approx(0.75)


def means(ratios):
    return {name: top.sum() / bottom.sum() for name, (top, bottom) in ratios.items()}


def test_metrics_by_hand(monkeypatch):
    monkeypatch.setattr(differential, "TOP", 1)
    observed = np.array([[3.0, -2, 0.1, 0], [1, 1, 1, 1]])
    significant = np.array([[True, True, False, False], [False] * 4])
    predicted = np.array([[1.0, 2, 0, 0], [7, 7, 7, 7]])
    ratios = DifferentialGenes(observed, significant).ratios(predicted)
    assert means(ratios) == {"de_overlap_50": 0.0, "de_overlap": 1.0, "de_direction": 0.5, "de_spearman": -1.0}
    assert all(bottom.tolist() == [1, 0] for _, bottom in ratios.values())  # the second record has no such genes


def test_without_significance_all_genes_are_candidates():
    observed = np.random.default_rng(0).normal(size=(4, 60))
    ratios = DifferentialGenes(observed, None).ratios(-observed)
    assert means(ratios) == {"de_overlap_50": 1.0}
    assert DifferentialGenes(observed[:, :50], None).ratios(observed[:, :50]) == {}


def test_ranks_of_ties_are_scipys():
    for values in (np.array([3.0, 1, 2]), np.array([1.0, 1, 0, 5, 5, 5])):
        assert differential.ranks(values) == pytest.approx(stats.rankdata(values) - (len(values) + 1) / 2)
