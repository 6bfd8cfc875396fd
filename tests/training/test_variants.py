"""What each variant of the memory is for: gains on planted folds with intervals over seeds, and none by chance."""

import dataclasses

import numpy as np
import pytest

from mantra_ray.config import LAPTOP, NexusConfig
from mantra_ray.evaluation.statistics import Interval, nested_gain
from mantra_ray.training.nexus import train_nexus

SIZE = LAPTOP | {"d_model": 16, "heads": 2, "top_programs": 3, "batch": 32}
CONFIG = NexusConfig(**SIZE, buckets=32, slots=32, epochs=4, language_epochs=3)
SEEDS, CLASSES = range(5), 5


def gained(folds, config, rows, space="program", shuffled=False) -> Interval:
    """Gain over the base on rows(fold) of folds that differ in their seed, of programs or of genes (expression)."""
    pools = []
    for seed, fold in enumerate(folds):
        wrong = None
        if shuffled:  # residuals go to other training rows
            own = fold.delta_expression - fold.base_expression if config.correct == "genes" else fold.residual
            wrong = own.copy()
            wrong[fold.train] = wrong[np.random.default_rng(seed).permutation(fold.train)]
        predicted = getattr(train_nexus(fold, config, seed, residual=wrong).predict(fold), space)
        observed, base = (getattr(fold, f"{name}_{space}") for name in ("delta", "base"))
        at = rows(fold)
        error, reference = (np.square(observed[at] - guess[at]).mean(1) for guess in (predicted, base))
        pools.append((error, reference, fold.regulator[at], np.full(len(at), seed)))
    return nested_gain(*map(np.concatenate, zip(*pools, strict=True)), 1000, 0.95, rng_seed=0)


def seen(fold):
    return fold.test[fold.regulator[fold.test] < 20]


def unseen(fold):
    return fold.test[fold.regulator[fold.test] >= 20]


@pytest.fixture(scope="module")
def classed(planted):
    """Folds whose classes share most of a residual; 10 regulators are unseen."""
    return [planted(seed=seed, unseen=10, classes=CLASSES) for seed in SEEDS]


@pytest.mark.parametrize("routing", ["class", "levels"])
def test_classes_gain_on_unseen_regulators(classed, routing):
    config = dataclasses.replace(CONFIG, routing=routing)
    assert gained(classed, config, unseen).lower > 0.1
    assert gained(classed, config, seen).lower > 0.3


def test_a_bucket_of_ones_own_gains_nothing_on_unseen_regulators(classed):
    interval = gained(classed, CONFIG, unseen)
    assert interval.value == interval.lower == interval.upper == 0


@pytest.mark.parametrize("changes", [{"buckets": 8}, {"buckets": 28, "routing": "hash"}])
def test_a_bucket_shared_by_chance_gains_nothing_on_unseen_regulators(classed, changes):
    """By numbers of buckets (8; 13 and 11) that have nothing to do with the number of classes."""
    interval = gained(classed, dataclasses.replace(CONFIG, **changes), unseen)
    assert interval.lower <= 0 and interval.value < 0.05


@pytest.mark.parametrize("routing", ["class", "levels"])
def test_classes_that_share_nothing_gain_nothing_on_unseen_regulators(planted, classed, routing):
    config = dataclasses.replace(CONFIG, routing=routing)
    apart = [planted(seed=seed, unseen=10, classes=CLASSES, shared=0.0) for seed in SEEDS]
    interval = gained(apart, config, unseen)
    assert interval.lower <= 0 and interval.value < 0.05
    rng = np.random.default_rng(0)  # and what classes share is of no use by another's class
    wrong = [dataclasses.replace(fold, regulator_class=rng.permutation(fold.regulator_class)) for fold in classed]
    interval = gained(wrong, config, unseen)
    assert interval.lower <= 0 and interval.value < 0.05


@pytest.mark.parametrize("routing", ["class", "levels"])
def test_a_regulator_of_unknown_class_is_left_alone(classed, routing):
    fold = classed[0]
    kind = np.where(fold.regulator_class == 2, -1, fold.regulator_class)
    kind[:20] = fold.regulator_class[:20]
    nobody = dataclasses.replace(fold, regulator_class=kind)
    config = dataclasses.replace(CONFIG, routing=routing, buckets=64)  # no regulator shares one of the gene level's 32
    found = train_nexus(nobody, config, 0).corrections()
    without = (fold.regulator >= 20) & (kind[fold.regulator] < 0)
    assert without.any() and not found[without].any()
    assert (np.abs(found[(fold.regulator >= 20) & ~without]).max(1) > 0).all()


@pytest.fixture(scope="module")
def plain(planted):
    """Folds without a manifold, so that genes can be corrected too."""
    return [planted(seed=seed, classes=CLASSES, manifold=False) for seed in SEEDS]


VARIANTS = [
    {"routing": "class"},
    {"routing": "levels"},
    {"routing": "hash"},
    {"correct": "genes"},
    {"mode": "language"},
    {"mode": "language", "correct": "genes", "routing": "levels"},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: "-".join(changes.values()))
def test_programs_and_genes_are_both_gained(plain, changes):
    config = dataclasses.replace(CONFIG, **changes)
    for space in ("program", "expression"):
        assert gained(plain, config, seen, space).lower > 0.2


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: "-".join(changes.values()))
def test_shuffled_residuals_bring_no_gain(plain, changes):
    interval = gained(plain, dataclasses.replace(CONFIG, **changes), seen, shuffled=True)
    assert interval.lower <= 0 and interval.value < 0.05
