"""Which knobs the gain on validation depends on: Optuna's functional ANOVA over the sweep's configurations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mantra_ray.config import ExperimentConfig
from mantra_ray.report.drawing import PALETTE, Picture, label, panels
from mantra_ray.report.findings import Findings
from mantra_ray.report.page import Section, absent
from mantra_ray.sweep.knobs import Knob, space_of
from mantra_ray.sweep.summary import TIE, Configuration

TITLE = "Knob importance"
LEAST = 10  # configurations, below which a forest only fits noise
FORESTS = 5
EVALUATOR = "Optuna's FanovaImportanceEvaluator (functional ANOVA on random forests; Hutter et al. 2014)"
TOP = 12  # knobs that are shown


def section(findings: Findings) -> Section:
    """The importance of each knob, or why it cannot be told."""
    found = judged(findings.found, findings.splits)
    knobs = space_of([item.knobs for item in found], ExperimentConfig()) if found else ()
    if len(found) < LEAST:
        why = f"It takes {LEAST} configurations with a gain on validation of every split; {len(found)} are there."
        return Section(TITLE, [absent(why)])
    if len(knobs) < 2:
        return Section(TITLE, [absent("Only one knob varies.")])
    gains = [worth(item, findings.splits) for item in found]
    if max(gains) - min(gains) <= TIE:
        return Section(TITLE, [absent("All configurations gain the same on validation.")])
    return Section(TITLE, [picture(findings, importances(found, knobs, gains), len(found))])


def judged(found: Sequence[Configuration], splits: Sequence[str]) -> list[Configuration]:
    """Configurations with a gain on validation of every split."""
    return [
        item for item in found if all(s in item.results and np.isfinite(item.results[s].validation) for s in splits)
    ]


def worth(item: Configuration, splits: Sequence[str]) -> float:
    """Gain on validation, mean over the splits: what a search maximises."""
    return float(np.mean([item.results[split].validation for split in splits]))


def study_of(found: Sequence[Configuration], knobs: Sequence[Knob], gains: Sequence[float]) -> Any:
    """The configurations as finished trials of an Optuna study; numbers go in by their rank, so that ∞ is none."""
    import optuna  # here, since it takes long to import

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    kinds = {}
    levels = {knob.name: [repr(knob.set(value)) for value in ordered(knob)] for knob in knobs}
    for knob in knobs:
        count = len(levels[knob.name])
        kinds[knob.name] = (
            optuna.distributions.IntDistribution(0, count - 1)
            if knob.ordered
            else optuna.distributions.CategoricalDistribution(tuple(range(count)))
        )
    for item, gain in zip(found, gains, strict=True):
        params = {
            knob.name: levels[knob.name].index(repr({name: item.knobs[name] for name in knob.set(knob.values[0])}))
            for knob in knobs
        }
        study.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, value=gain))
    return study


def ordered(knob: Knob) -> list[Any]:
    """A knob's values, numbers by size."""
    return sorted(knob.values) if knob.ordered else list(knob.values)


def importances(
    found: Sequence[Configuration], knobs: Sequence[Knob], gains: Sequence[float]
) -> dict[str, list[float]]:
    """Share of the gain's variance over the configurations that each knob explains, by several forests."""
    import optuna

    study, by_knob = study_of(found, knobs, gains), {knob.name: [] for knob in knobs}
    for seed in range(FORESTS):
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
        for name, share in optuna.importance.get_param_importances(study, evaluator=evaluator).items():
            by_knob[name].append(float(share))
    return dict(sorted(by_knob.items(), key=lambda item: -np.mean(item[1])))


def picture(findings: Findings, shares: dict[str, list[float]], count: int) -> Picture:
    """A bar a knob, the most important first."""
    shown = dict(list(shares.items())[:TOP])
    figure, axes = panels(1, 1, 0.3 * len(shown) + 0.8)
    place = axes[0, 0]
    for i, values in enumerate(shown.values()):
        place.barh(i, 100 * np.mean(values), color=PALETTE[5], edgecolor=PALETTE[0], hatch="//", height=0.6)
        place.hlines(i, 100 * min(values), 100 * max(values), color=PALETTE[6], linewidth=1.5)
    names = [", ".join(part.removeprefix("nexus.") for part in name.split()) for name in shown]
    place.set_yticks(range(len(shown)), names, fontsize=8)
    place.invert_yaxis()
    place.set_xlim(0, None)
    label(place, x="share of the explained variance, %")
    rest = f" The first {TOP} of {len(shares)} knobs." if len(shares) > TOP else ""
    caption = (
        f"Importance of each knob for the gain on validation, mean over {', '.join(findings.splits)}, by {EVALUATOR}. "
        f"Shares sum to 100 %; n = {count} configurations, seeds pooled. The line spans {FORESTS} forests: it shows "
        f"what their chance does, not what other data would say. Knobs of few values can only show few effects.{rest}"
    )
    told = ", ".join(f"{name} {np.mean(values):.0%}" for name, values in zip(names, shown.values(), strict=True))
    return Picture("importance", figure, caption, f"Bars of knob importance: {told}.")
