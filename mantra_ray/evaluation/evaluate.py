"""Judges predictions on the validation and test rows of a fold: score rows with intervals, and errors of records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mantra_ray.config import EvaluationConfig
from mantra_ray.evaluation import metrics
from mantra_ray.evaluation.differential import DifferentialGenes
from mantra_ray.evaluation.pooled import Resamples, pooled_metrics
from mantra_ray.evaluation.slices import rare_programs, slice_masks
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


def evaluate(fold: Fold, predictions: Mapping[str, Prediction], config: EvaluationConfig, seed: int) -> Tables:
    """Scores of each arm by part, slice and metric, and squared errors of each record.

    predictions: arm to Prediction of all N rows, asked for once each. Gains are over the fold's base, arm `gnn`,
    whether or not it is among the predictions. Slices are of records (all, rare and outlier regulators), and
    `rare_programs` is all records on these programs alone. Intervals resample regulators with `seed`; all arms share
    the draws, so they are paired. An arm without programs is judged on traits alone. Where the observation noise is
    known, arm `noise_ceiling` is the score of the true mean. The records columns are arm, part, record, regulator,
    dose, state, training_records (the regulator's), rare, outlier, squared_error and reference_error.
    """
    judged = (("validation", fold.validation), ("test", fold.test))
    parts = [Part(fold, name, rows, config) for name, rows in judged if len(rows)]
    for arm in predictions:
        prediction = predictions[arm]
        for part in parts:
            part.add(arm, take(prediction, part.rows))
    tables, columns = Tables(), [found for part in parts for found in part.columns]
    for part in parts:
        tables.scores += part.scores(config, seed)
    if columns:
        tables.records = {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}
    return tables


def take(prediction: Prediction, rows: np.ndarray) -> Prediction:
    """The prediction of some rows."""
    arrays = (prediction.expression, prediction.program, prediction.trait)
    return Prediction(*(None if array is None else array[rows] for array in arrays))


class Programs:
    """Observed changes of some programs of the judged rows, the reference's error on them and their weights."""

    def __init__(self, fold: Fold, rows: np.ndarray, columns: np.ndarray):
        self.columns, train = columns, fold.train
        self.observed, self.noise = fold.delta_program[rows][:, columns], fold.program_noise[rows][:, columns]
        self.reference = metrics.squared_error(fold.base_program[rows][:, columns], self.observed)
        residual, noise = fold.residual[train][:, columns], fold.program_noise[train][:, columns]
        self.weights = metrics.error_weights(self.noise, residual, noise)

    def ratios(self, program: np.ndarray) -> Ratios:
        """Metrics of predicted changes of all programs [n, K], judged on these."""
        predicted, one = program[:, self.columns], np.ones(len(program))
        error = metrics.squared_error(predicted, self.observed)
        weighted = np.square(predicted - self.observed, dtype=np.float64) * self.weights
        return {
            "program_mse": (error, one),
            "program_mse_gain": (error, self.reference),
            "program_mse_weighted": (weighted.sum(1), self.weights.sum(1)),
            "program_cosine": (metrics.cosine(predicted, self.observed), one),
        }

    def ceiling(self) -> Ratios:
        """Expected error of the true mean: nothing but the noise of the observations."""
        floor = self.noise.mean(1, dtype=np.float64)
        return {"noise_floor_mse": (floor, np.ones(len(floor))), "program_mse_gain": (floor, self.reference)}


class Part:
    """The validation or the test rows: what was observed there, and what becomes of each arm."""

    def __init__(self, fold: Fold, name: str, rows: np.ndarray, config: EvaluationConfig):
        self.fold, self.name, self.rows = fold, name, rows
        self.masks = slice_masks(fold, rows, config)
        self.regulator, self.trait = fold.regulator[rows], fold.delta_trait[rows]
        self.program, self.rare = (Programs(fold, rows, c) for c in (np.arange(fold.programs), rare_programs(fold)))
        self.ratios: dict[str, Ratios] = {}
        self.rare_ratios: dict[str, Ratios] = {}
        self.predictions: dict[str, Prediction] = {}
        self.columns: list[dict[str, np.ndarray]] = []
        if np.any(self.program.noise > 0):
            self.ratios["noise_ceiling"], self.rare_ratios["noise_ceiling"] = (
                self.program.ceiling(),
                self.rare.ceiling(),
            )
        self.expression = None
        if fold.delta_expression is not None:
            self.expression = fold.delta_expression[rows]
            self.mean_effect = fold.delta_expression[fold.train].mean(0)
            self.centred = metrics.shift(self.expression, self.mean_effect)
            self.genes = DifferentialGenes(
                self.expression, None if fold.significant is None else fold.significant[rows]
            )

    def add(self, arm: str, predicted: Prediction) -> None:
        """Judge one arm's predictions of the part's rows."""
        self.ratios[arm] = ratios = {}
        if self.trait.shape[1]:
            ratios["trait_sign_accuracy"] = metrics.sign_hits(predicted.trait, self.trait)
        if predicted.program is not None:
            ratios |= self.program.ratios(predicted.program)
            ratios |= self._program_order(predicted.program)
            self.rare_ratios[arm] = self.rare.ratios(predicted.program)
            self.columns.append(self._records(arm, ratios["program_mse_gain"]))
        if self.expression is not None and predicted.expression is not None:
            ratios |= self._expression(predicted.expression)
        self.predictions[arm] = Prediction(None, predicted.program, predicted.trait)

    def _program_order(self, program: np.ndarray) -> Ratios:
        observed, one = self.program.observed, np.ones(len(self.rows))
        return {
            "program_spearman": (metrics.spearman(program, observed), one),
            "program_top_overlap": (metrics.top_overlap(program, observed), one),
            "discrimination": (metrics.discrimination(program, observed, self.regulator), one),
        }

    def _expression(self, expression: np.ndarray) -> Ratios:
        centred, one = metrics.shift(expression, self.mean_effect), np.ones(len(self.rows))
        return {
            "expression_pearson": (metrics.pearson(expression, self.expression), one),
            "expression_pearson_centred": (metrics.pearson(centred, self.centred), one),
            **self.genes.ratios(expression),
        }

    def _records(self, arm: str, errors: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
        """Columns of the records table for one arm."""
        trained = self.fold.regulator[self.fold.train]
        counts, none = np.bincount(trained, minlength=self.fold.regulator.max() + 1), np.zeros(len(self.rows), bool)
        return {
            "arm": np.full(len(self.rows), arm),
            "part": np.full(len(self.rows), self.name),
            "record": self.rows.astype(np.int64),
            "regulator": self.regulator,
            "dose": self.fold.dose[self.rows],
            "state": self.fold.state[self.rows],
            "training_records": counts[self.regulator],
            **{name: self.masks.get(name, none) for name in ("rare", "outlier")},
            "squared_error": errors[0],
            "reference_error": errors[1],
        }

    def scores(self, config: EvaluationConfig, seed: int) -> list[dict]:
        """Score rows of all arms added."""
        where = {"split": self.fold.meta["kind"], "part": self.name}
        scores = []
        for name, mask in self.masks.items():
            here = where | {"slice": name}
            scores += ratio_scores(self.ratios, mask, self.regulator, config, seed, here)
            scores += self._pooled(mask, config, seed, here)
        everything, here = np.ones(len(self.rows), bool), where | {"slice": "rare_programs"}
        return scores + ratio_scores(self.rare_ratios, everything, self.regulator, config, seed, here)

    def _pooled(self, mask: np.ndarray, config: EvaluationConfig, seed: int, where: dict) -> list[dict]:
        """Score rows of the metrics over all records of a slice at once."""
        resamples = Resamples(self.regulator[mask], config.bootstrap, config.confidence, seed)
        scores = []
        for arm, predicted in self.predictions.items():
            program = None if predicted.program is None else (predicted.program[mask], self.program.observed[mask])
            trait = predicted.trait[mask], self.trait[mask]
            found = pooled_metrics(program, trait, resamples, curve=where["slice"] == "all")
            scores += [score_row(arm, where, metric, limits, int(mask.sum())) for metric, limits in found.items()]
        return scores


def ratio_scores(
    ratios: dict[str, Ratios], mask: np.ndarray, regulator: np.ndarray, config: EvaluationConfig, seed: int, where: dict
) -> list[dict]:
    """Score rows of all arms' ratio metrics on one slice, from one set of resamples.

    A metric that none of the slice's records has (a denominator of 0) has no row.
    """
    names = [
        (arm, metric)
        for arm, by_metric in ratios.items()
        for metric, (_, denominator) in by_metric.items()
        if denominator[mask].any() or metric in COMPLEMENTS
    ]
    if not names:
        return []
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
            value, lower, upper = 1 - value, 1 - upper, float(np.minimum(1.0, 1 - lower))
        rows.append(score_row(arm, where, metric, (value, lower, upper), len(regulator)))
    return rows


def score_row(arm: str, where: dict, metric: str, limits: tuple[float, float, float], n: int) -> dict:
    """A row of the scores table."""
    value, lower, upper = limits
    return {"arm": arm, **where, "metric": metric, "value": value, "lower": lower, "upper": upper, "n": n}
