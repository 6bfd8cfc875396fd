"""Slices come from the training rows alone."""

import dataclasses

import numpy as np

from mantra_ray.config import EvaluationConfig
from mantra_ray.evaluation.slices import outlier_regulators, rare_programs, rare_regulators, slice_masks


def test_rare_regulators_have_few_training_records_but_some(fold):
    regulator = np.repeat([0, 1, 2, 3], [1, 2, 3, 90])
    fold = dataclasses.replace(fold, regulator=regulator, train=np.arange(0, 20), test=np.arange(20, 96))
    assert rare_regulators(fold, 2).tolist() == [0, 1]
    assert 4 not in rare_regulators(fold, 2)


def test_outliers_are_the_regulators_with_the_largest_training_error(fold):
    base = fold.delta_program.copy()
    train = np.isin(np.arange(len(base)), fold.train)
    base[(fold.regulator == 5) & train] += 10
    base[(fold.regulator == 7) & ~train] += 100  # errors outside training must not count
    fold = dataclasses.replace(fold, base_program=base)
    assert 5 in outlier_regulators(fold, 0.9) and 1 <= len(outlier_regulators(fold, 0.9)) <= 3
    assert 7 not in outlier_regulators(fold, 0.5)


def test_slices_do_not_change_with_what_is_judged(fold):
    before = slice_masks(fold, fold.test, EvaluationConfig())
    judged = fold.delta_program.copy()
    judged[fold.test] += 50
    after = slice_masks(dataclasses.replace(fold, delta_program=judged), fold.test, EvaluationConfig())
    assert before.keys() == after.keys() and all((before[k] == after[k]).all() for k in before)
    assert {"all", "outlier"} <= set(before)


def test_unseen_regulators_have_only_the_slice_of_all(fold):
    test = np.flatnonzero(fold.regulator >= 20)
    fold = dataclasses.replace(fold, train=np.flatnonzero(fold.regulator < 20), test=test)
    assert list(slice_masks(fold, fold.test, EvaluationConfig())) == ["all"]


def test_rare_programs_are_those_that_few_regulators_move(fold):
    program = np.random.default_rng(0).normal(size=fold.delta_program.shape)
    program[:, 4] = 5.0 * (fold.regulator == 3)
    program[np.isin(np.arange(len(program)), fold.test), 2] *= 100.0 * (fold.regulator[fold.test] == 7)
    fold = dataclasses.replace(fold, delta_program=program)
    assert rare_programs(fold).tolist() == [4]
    assert 4 in rare_programs(fold, 0.5) and len(rare_programs(fold, 0.5)) == 3
