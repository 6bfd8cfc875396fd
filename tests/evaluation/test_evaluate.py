"""Tables of the evaluation: what rows there are, and that their numbers are right."""

import dataclasses

import numpy as np
import pytest

from mantra_ray.config import EvaluationConfig
from mantra_ray.evaluation.evaluate import evaluate
from mantra_ray.evaluation.pooled import CURVE
from mantra_ray.forward import Prediction, predict

CONFIG = EvaluationConfig(bootstrap=200)


def arms(fold):
    rows = np.arange(len(fold.dose))
    zero = Prediction(
        None if fold.delta_expression is None else np.zeros_like(fold.delta_expression),
        np.zeros_like(fold.delta_program),
        np.zeros_like(fold.delta_trait),
    )
    truth = Prediction(fold.delta_expression, fold.delta_program, fold.delta_trait)
    return {"gnn": predict(fold, rows), "memory_off": predict(fold, rows), "zero": zero, "truth": truth}


def table(tables, part="test", name="all"):
    rows = [row for row in tables.scores if (row["part"], row["slice"]) == (part, name)]
    return {(row["arm"], row["metric"]): row for row in rows}


def test_scores_of_known_predictions(fold):
    tables = evaluate(fold, arms(fold), CONFIG, seed=0)
    score = table(tables)
    expected = np.square(fold.residual[fold.test]).mean()
    assert score["gnn", "program_mse"]["value"] == pytest.approx(expected, rel=1e-5)
    assert score["gnn", "program_mse_gain"]["value"] == 0.0
    # the base halves the truth, so silence is worse and the truth is perfect
    assert score["zero", "program_mse_gain"]["upper"] < 0
    assert score["truth", "program_mse_gain"]["lower"] == 1.0
    for metric in ("program_cosine", "expression_pearson", "trait_sign_accuracy", "discrimination", "spread_ratio"):
        assert score["truth", metric]["value"] == pytest.approx(1.0, abs=1e-5)
    for metric, value in {
        "trait_sign_accuracy": 0.5,
        "discrimination": 0.5,
        "expression_pearson_centred": None,
    }.items():
        found = score["zero", metric]["value"]
        assert np.isfinite(found) and (value is None or found == pytest.approx(value, abs=0.02))
    assert {row["split"] for row in tables.scores} == {"seen"}
    assert {row["part"] for row in tables.scores} == {"validation", "test"}
    assert all(set(row) == set(tables.scores[0]) for row in tables.scores)


def test_silent_and_identical_arms_have_no_nan_and_no_gain(fold):
    score = table(evaluate(fold, arms(fold), CONFIG, seed=0))
    assert all(np.isfinite(row["value"]) for row in score.values())
    off = score["memory_off", "program_mse_gain"]
    assert (off["value"], off["lower"], off["upper"]) == (0.0, 0.0, 0.0)
    judged = {key for key, row in score.items() if np.isfinite(row["lower"])}
    needed = ("program_mse", "program_mse_gain", "program_cosine", "expression_pearson", "trait_sign_accuracy")
    assert {("zero", metric) for metric in needed} <= judged
    for key in judged:
        row = score[key]
        assert row["lower"] - 1e-9 <= row["value"] <= row["upper"] + 1e-9, key


def test_noise_ceiling_is_the_error_of_the_true_mean(fold):
    score = table(evaluate(fold, arms(fold), CONFIG, seed=0))
    floor = score["noise_ceiling", "noise_floor_mse"]["value"]
    assert floor == pytest.approx(fold.program_noise[fold.test].mean(), rel=1e-5)
    ceiling = score["noise_ceiling", "program_mse_gain"]["value"]
    assert ceiling == pytest.approx(1 - floor / score["gnn", "program_mse"]["value"])
    assert 0 < ceiling < 1


def test_weighted_error_trusts_precise_entries(fold):
    noise = fold.program_noise.copy()
    noise[:, 0] = 1e6
    wrong = fold.delta_program.copy()
    wrong[:, 0] += 1
    fold = dataclasses.replace(fold, program_noise=noise)
    prediction = Prediction(None, wrong, wrong @ fold.trait_weights)
    score = table(evaluate(fold, {"arm": prediction}, CONFIG, seed=0))
    assert score["arm", "program_mse"]["value"] == pytest.approx(1 / 6, rel=1e-4)
    assert score["arm", "program_mse_weighted"]["value"] < 1e-3


def test_data_without_expression_traits_or_noise(without_expression):
    tables = evaluate(without_expression, arms(without_expression), CONFIG, seed=0)
    metrics = {row["metric"] for row in tables.scores}
    assert "program_mse" in metrics and not any(part in m for m in metrics for part in ("expression", "trait", "de_"))
    assert "noise_ceiling" not in {row["arm"] for row in tables.scores}
    score = table(tables)
    assert score["gnn", "program_mse_weighted"]["value"] == pytest.approx(score["gnn", "program_mse"]["value"])


def test_records_rebuild_the_scores(fold):
    tables = evaluate(fold, arms(fold), CONFIG, seed=0)
    records = tables.records
    assert set(records) == {
        "arm", "part", "record", "regulator", "dose", "state", "training_records", "rare", "outlier", "squared_error",
        "reference_error",
    }  # fmt: skip
    assert len(records["arm"]) == 4 * (len(fold.test) + len(fold.validation))
    chosen = (records["arm"] == "zero") & (records["part"] == "test")
    assert records["record"][chosen].tolist() == fold.test.tolist()
    assert (records["regulator"][chosen] == fold.regulator[fold.test]).all()
    counts = [(fold.regulator[fold.train] == regulator).sum() for regulator in fold.regulator[fold.test]]
    assert records["training_records"][chosen].tolist() == counts
    for name in ("rare", "outlier"):
        inside = chosen & records[name]
        gain = 1 - records["squared_error"][inside].sum() / records["reference_error"][inside].sum()
        (row,) = (
            row
            for row in tables.scores
            if (row["arm"], row["part"], row["slice"], row["metric"]) == ("zero", "test", name, "program_mse_gain")
        )
        assert row["n"] == inside.sum() and row["value"] == pytest.approx(gain)
    gain = 1 - records["squared_error"][chosen].sum() / records["reference_error"][chosen].sum()
    assert gain == pytest.approx(table(tables)["zero", "program_mse_gain"]["value"])


def test_observations_outside_the_part_change_nothing(fold):
    """Test scores may use training rows (scales, slices) but never validation rows, and the other way round."""
    changed = fold.delta_program.copy()
    changed[fold.validation] += 9
    predictions = arms(fold)
    before = table(evaluate(fold, predictions, CONFIG, 0))
    after = table(evaluate(dataclasses.replace(fold, delta_program=changed), predictions, CONFIG, 0))
    assert {k: row["value"] for k, row in before.items()} == {k: row["value"] for k, row in after.items()}


def test_an_empty_part_has_no_rows(fold):
    fold = dataclasses.replace(fold, validation=np.array([], int))
    assert {row["part"] for row in evaluate(fold, arms(fold), CONFIG, 0).scores} == {"test"}


def test_an_arm_on_traits_is_judged_on_traits_alone(fold):
    predictions = arms(fold) | {"trait_genes": Prediction(None, None, fold.delta_trait)}
    tables = evaluate(fold, predictions, CONFIG, seed=0)
    assert "trait_genes" not in tables.records["arm"]
    rows = {metric: row["value"] for (arm, metric), row in table(tables).items() if arm == "trait_genes"}
    metrics = {"trait_sign_accuracy", "trait_correlation", "trait_calibration_slope", "trait_auroc"}
    assert rows.keys() == metrics | set(CURVE) and list(rows.values()) == pytest.approx([1.0] * len(rows))
    curves = {(row["part"], row["slice"]) for row in tables.scores if row["metric"] in CURVE}
    assert curves == {("validation", "all"), ("test", "all")}  # slices have the area alone
    assert {row["slice"] for row in tables.scores if row["arm"] == "trait_genes"} >= {"all", "outlier"}


def test_rare_programs_are_judged_on_their_columns(fold):
    program = fold.delta_program.copy()
    program[:, 4] = 5.0 * (fold.regulator == fold.regulator[fold.train[0]])
    fold = dataclasses.replace(fold, delta_program=program)
    score = table(evaluate(fold, arms(fold), CONFIG, seed=0), name="rare_programs")
    expected = np.square(fold.residual[fold.test, 4]).mean()
    assert score["gnn", "program_mse"]["value"] == pytest.approx(expected, rel=1e-5)
    assert {metric for _, metric in score} == {
        "program_mse", "program_mse_gain", "program_mse_weighted", "program_cosine", "noise_floor_mse",
    }  # fmt: skip
    assert score["truth", "program_mse_gain"]["value"] == 1.0


def test_significant_genes_are_judged_where_they_are_known(fold):
    significant = np.zeros(fold.delta_expression.shape, bool)
    significant[fold.test[:9], 3:8] = True
    tables = evaluate(dataclasses.replace(fold, significant=significant), arms(fold), CONFIG, seed=0)
    score = table(tables)
    for metric in ("de_overlap", "de_direction", "de_spearman"):
        assert score["truth", metric]["lower"] <= score["truth", metric]["value"] <= 1
        assert ("gnn", metric) not in table(tables, part="validation")  # no significant genes there
    assert score["truth", "de_direction"]["value"] == score["truth", "de_spearman"]["value"] == 1.0
    assert score["zero", "de_direction"]["value"] == 0.5 and score["zero", "de_spearman"]["value"] == 0.0


def test_every_prediction_is_made_once(fold):
    """Arms make expression of all rows when they are asked for it."""
    asked = []

    class Lazy(dict):
        def __getitem__(self, name):
            asked.append(name)
            return super().__getitem__(name)

    evaluate(fold, Lazy(arms(fold)), CONFIG, seed=0)
    assert asked == list(arms(fold))
