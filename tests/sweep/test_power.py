"""What a sweep can find, told before its trials: from folds alone, and from earlier trials."""

import dataclasses

import numpy as np
import pytest

from mantra_ray.config import EvaluationConfig, ExperimentConfig
from mantra_ray.evaluation.power import Components, Design, detectable
from mantra_ray.evaluation.statistics import ratio_bootstrap
from mantra_ray.sweep.power import EARLIER, STAND_IN, Expectation, expected, lines, stand_in_differences
from mantra_ray.sweep.spec import SweepSpec
from mantra_ray.sweep.store import Store

JUDGED = EvaluationConfig()
LATER = {"provenance.code": "later"}


def folds(planted, seeds, kind="seen"):
    return [dataclasses.replace(fold, meta=fold.meta | {"kind": kind}) for fold in map(planted, range(seeds))]


def test_more_seeds_find_less_and_the_needed_ones_suffice(planted):
    few, many = (expected(folds(planted, seeds), JUDGED, 0.1, 0.8)[0] for seeds in (2, 6))
    assert (few.split, few.seeds, many.seeds) == ("seen", 2, 6)
    assert 0 < many.detectable < few.detectable
    assert many.assumption == STAND_IN and many.limit <= many.detectable
    wish = 1.1 * many.detectable
    (again,) = expected(folds(planted, 6), JUDGED, wish, 0.8)
    assert again.needed is not None and again.needed <= 6


def test_nothing_of_the_test_records_but_their_number_enters(planted):
    fold = planted()
    other = dataclasses.replace(fold, delta_program=fold.delta_program.copy())
    other.delta_program[fold.test] += 100.0
    assert expected([fold], JUDGED, 0.02, 0.8) == expected([other], JUDGED, 0.02, 0.8)


def test_stand_in_differences_by_hand(planted):
    fold = planted()
    gained, reference, regulator = stand_in_differences(fold)
    rows = np.concatenate([fold.train, fold.validation])
    assert reference == pytest.approx(np.square(fold.residual[rows]).mean(1), rel=1e-5)
    assert (regulator == fold.regulator[rows]).all()
    # the planted residual is the regulator's own, so its other records correct it
    assert gained.sum() > 0.1 * reference.sum()


def test_a_fold_of_another_network_counts_once(planted):
    fold = planted()
    assert expected([fold, fold], JUDGED, 0.02, 0.8) == expected([fold], JUDGED, 0.02, 0.8)


def test_many_comparisons_and_more_power_ask_for_more(planted):
    some = folds(planted, 3)
    plain, holm, sure = (expected(some, JUDGED, 0.02, *more)[0] for more in ((0.8,), (0.8, 20), (0.95,)))
    assert holm.detectable > plain.detectable and sure.detectable > plain.detectable
    assert "Holm over 20 comparisons" in holm.line() and "Holm" not in plain.line()


def test_earlier_trials_replace_the_stand_in(planted, tmp_path):
    rng, store, regulators = np.random.default_rng(0), Store(tmp_path), 400
    arms = tuple({"nexus.regret_gamma": gamma} for gamma in (ExperimentConfig().nexus.regret_gamma, 1.0))
    trials = SweepSpec("test", ExperimentConfig(), arms, (0, 1, 2), ("seen",)).trials("data", "code")
    some = [planted(seed, unseen=0) for seed in range(3)]  # each tests 20 regulators once
    assert expected(some, JUDGED, 0.02, 0.8, store=store)[0].assumption == STAND_IN
    for trial in (trial for trial in trials if trial.kind == "nexus"):
        rows = np.arange(regulators)
        moved = 0.01 * rng.normal(size=regulators) * (trial.config.nexus.regret_gamma == 1.0)
        columns = {"record": rows, "regulator": rows, "dose": rows / 100, "state": rows * 0}
        columns |= {"squared_error": 1 + moved, "reference_error": np.ones(regulators)}
        columns |= {"arm": np.full(regulators, "memory_on"), "part": np.full(regulators, "validation")}
        origin = {"provenance.data_sha256": "data", "provenance.code": "code"}
        store.write(trial, {"status": "done"} | origin, [], columns)
        if trial.config.seed == 0:  # run again by later code, and not the others yet
            store.write(dataclasses.replace(trial, code="later"), {"status": "done"} | origin | LATER, [], columns)
    (found,) = expected(some, JUDGED, 0.02, 0.8, store=store)
    assert found.assumption == EARLIER
    design = Design(1 / 20, 1 / 20, 1 / 20, 20)
    wanted = detectable(Components(0.0, 0.0, 0.0, 0.01**2), design, 3)
    assert found.detectable == pytest.approx(wanted, rel=0.2)


def test_the_promise_holds_for_differences_like_the_stand_ins(planted):
    # what the promised effect is for: experiments whose differences are those of the stand-in
    some = [planted(seed, unseen=0) for seed in range(3)]
    known = [stand_in_differences(fold) for fold in some]
    promised = expected(some, JUDGED, 0.02, 0.8)[0].detectable
    hits, runs, rng = 0, 150, np.random.default_rng(0)
    for run in range(runs):
        drawn, pieces = rng.integers(0, 20, 20), []  # as many regulators as are tested, alike in all seeds
        for gained, reference, regulator in known:
            who = [rng.choice(np.flatnonzero(regulator == r)) for r in drawn]
            effect = promised - gained.sum() / reference.sum()
            pieces.append((gained[who] + effect * reference[who], reference[who], np.arange(20)))
        gained, reference, regulator = map(np.concatenate, zip(*pieces, strict=True))
        seed = np.repeat(np.arange(3), 20)
        hits += ratio_bootstrap(gained[:, None], reference[:, None], regulator, seed, 400, run % 4).p_value() < 0.05
    assert 0.6 < hits / runs < 0.97


def test_what_is_said():
    known = dict(split="seen", seeds=3, regulators=60, detectable=0.021, limit=0.01, power=0.8, comparisons=1)
    some = Expectation(**known, effect=0.02, needed=4, assumption="that so it is")
    assert some.line() == (
        "On seen: a difference of 2.1 points is found with 80% power by 3 seeds; 2 points needs 4 seeds."
    )
    none = dataclasses.replace(some, effect=0.005, needed=None)
    assert "0.5 points is beyond any number of seeds: 60 tested regulators a seed leave 1 points" in none.line()
    few = dataclasses.replace(none, detectable=8.26, limit=1.5)
    assert "difference of more than 100 points" in few.line() and "leave more than 100 points" in few.line()
    assert lines([some, none])[-1] == "This assumes that so it is." and len(lines([some, none])) == 3
    one = dataclasses.replace(some, detectable=float("nan"))
    assert "one regulator" in one.line()
