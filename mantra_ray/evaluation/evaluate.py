"""Judges predictions on the validation and test rows of a fold: score rows with intervals, and errors of records."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mantra_ray.config import EvaluationConfig
from mantra_ray.evaluation import metrics
from mantra_ray.evaluation.slices import slice_masks
from mantra_ray.evaluation.statistics import ratio_intervals
from mantra_ray.forward import Fold, Prediction

# Metrics that are one minus a ratio of sums.
COMPLEMENTS = ("program_mse_gain",)


@dataclass
class Tables:
    """Rows of the `scores` table and columns of the `records` table."""

    scores: list[dict] = field(default_factory=list)
    records: dict[str, np.ndarray] = field(default_factory=dict)


# A metric's numerator and denominator for each record; its value is the ratio of their sums.
Ratios = dict[str, tuple[np.ndarray, np.ndarray]]


def evaluate(fold: Fold, predictions: dict[str, Prediction], config: EvaluationConfig, seed: int) -> Tables:
    """Scores of each arm by part, slice and metric, and squared errors of each record.

    predictions: arm to Prediction of all N rows. Gains are over the fold's base, arm `gnn`, whether or not it is
    among the predictions. Intervals resample regulators with `seed`; all arms share the draws, so they are paired.
    Where the observation noise is known, arm `noise_ceiling` is the score of the true mean. The records columns
    are arm, part, record, regulator, dose, state, squared_error and reference_error.
    """
    tables, columns = Tables(), []
    for part, rows in (("validation", fold.validation), ("test", fold.test)):
        if not len(rows):
            continue
        observed = Observed(fold, rows)
        ratios = {arm: record_ratios(observed, take(prediction, rows)) for arm, prediction in predictions.items()}
        if np.any(fold.program_noise[rows] > 0):
            ratios["noise_ceiling"] = observed.ceiling()
        for name, mask in slice_masks(fold, rows, config).items():
            where = {"split": fold.meta["kind"], "part": part, "slice": name}
            tables.scores += ratio_scores(ratios, mask, observed.regulator, config, seed, where)
            tables.scores += plain_scores(fold, predictions, rows[mask], where)
        for arm in predictions:
            columns.append(record_columns(fold, arm, part, rows, ratios[arm]["program_mse_gain"]))
    if columns:
        tables.records = {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}
    return tables


def take(prediction: Prediction, rows: np.ndarray) -> Prediction:
    """The prediction of some rows."""
    expression = None if prediction.expression is None else prediction.expression[rows]
    return Prediction(expression, prediction.program[rows], prediction.trait[rows])


class Observed:
    """What is the same for all arms: observations of the judged rows, the reference's error and the weights."""

    def __init__(self, fold: Fold, rows: np.ndarray):
        train = fold.train
        self.regulator, self.program, self.trait = (
            fold.regulator[rows],
            fold.delta_program[rows],
            fold.delta_trait[rows],
        )
        self.noise, self.reference = (
            fold.program_noise[rows],
            metrics.squared_error(fold.base_program[rows], self.program),
        )
        self.weights = metrics.error_weights(self.noise, fold.residual[train], fold.program_noise[train])
        self.expression = None
        if fold.delta_expression is not None:
            self.expression = fold.delta_expression[rows]
            self.mean_effect = fold.delta_expression[train].mean(0)
            self.centred = metrics.shift(self.expression, self.mean_effect)

    def ceiling(self) -> Ratios:
        """Expected error of the true mean: nothing but the noise of the observations."""
        floor = self.noise.mean(1, dtype=np.float64)
        return {"noise_floor_mse": (floor, np.ones(len(floor))), "program_mse_gain": (floor, self.reference)}


def record_ratios(observed: Observed, predicted: Prediction) -> Ratios:
    """Metrics of one arm that are ratios of sums over records."""
    error, one = metrics.squared_error(predicted.program, observed.program), np.ones(len(observed.regulator))
    weighted = np.square(predicted.program - observed.program, dtype=np.float64) * observed.weights
    ratios = {
        "program_mse": (error, one),
        "program_mse_gain": (error, observed.reference),
        "program_mse_weighted": (weighted.sum(1), observed.weights.sum(1)),
        "program_cosine": (metrics.cosine(predicted.program, observed.program), one),
        "program_spearman": (metrics.spearman(predicted.program, observed.program), one),
        "program_top_overlap": (metrics.top_overlap(predicted.program, observed.program), one),
        "discrimination": (metrics.discrimination(predicted.program, observed.program, observed.regulator), one),
    }
    if observed.trait.shape[1]:
        ratios["trait_sign_accuracy"] = metrics.sign_hits(predicted.trait, observed.trait)
    if observed.expression is not None and predicted.expression is not None:
        centred = metrics.shift(predicted.expression, observed.mean_effect)
        ratios["expression_pearson"] = (metrics.pearson(predicted.expression, observed.expression), one)
        ratios["expression_pearson_centred"] = (metrics.pearson(centred, observed.centred), one)
    return ratios


def ratio_scores(
    ratios: dict[str, Ratios], mask: np.ndarray, regulator: np.ndarray, config: EvaluationConfig, seed: int, where: dict
) -> list[dict]:
    """Score rows of all arms' ratio metrics on one slice, from one set of resamples."""
    names = [(arm, metric) for arm, by_metric in ratios.items() for metric in by_metric]
    numerator, denominator = (
        np.stack([ratios[arm][metric][side][mask] for arm, metric in names], axis=1) for side in (0, 1)
    )
    regulator = regulator[mask]
    limits = ratio_intervals(
        numerator, denominator, regulator, np.zeros_like(regulator), config.bootstrap, config.confidence, seed
    )
    rows = []
    for (arm, metric), value, lower, upper in zip(names, *(limit.tolist() for limit in limits), strict=True):
        if metric in COMPLEMENTS:
            value, lower, upper = 1 - value, 1 - upper, 1 - lower
        rows.append(
            {"arm": arm, **where, "metric": metric, "value": value, "lower": lower, "upper": upper, "n": len(regulator)}
        )
    return rows


def plain_scores(fold: Fold, predictions: dict[str, Prediction], rows: np.ndarray, where: dict) -> list[dict]:
    """Score rows of metrics over all records of a slice at once, without intervals (lower and upper are NaN)."""
    scores = []
    for arm, prediction in predictions.items():
        values = {"spread_ratio": metrics.spread_ratio(prediction.program[rows], fold.delta_program[rows])}
        if fold.delta_trait.shape[1]:
            values["trait_correlation"] = metrics.column_correlation(prediction.trait[rows], fold.delta_trait[rows])
        for metric, value in values.items():
            limits = {"value": value, "lower": float("nan"), "upper": float("nan"), "n": len(rows)}
            scores.append({"arm": arm, **where, "metric": metric, **limits})
    return scores


def record_columns(
    fold: Fold, arm: str, part: str, rows: np.ndarray, errors: tuple[np.ndarray, np.ndarray]
) -> dict[str, np.ndarray]:
    """Columns of the records table for one arm and part."""
    return {
        "arm": np.full(len(rows), arm),
        "part": np.full(len(rows), part),
        "record": rows.astype(np.int64),
        "regulator": fold.regulator[rows],
        "dose": fold.dose[rows],
        "state": fold.state[rows],
        "squared_error": errors[0],
        "reference_error": errors[1],
    }
