"""Configurations proposed by Optuna's tree-structured Parzen estimator, for one objective or for several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mantra_ray.sweep.knobs import Knob, arm, short
from mantra_ray.sweep.measured import OBJECTIVES

STARTUP = 10  # configurations drawn at random before the estimator has something to go by, as Optuna has it
WAYS = {1: "maximize", -1: "minimize"}


class Proposer:
    """Asks for configurations and is told what they were worth.

    The sampler is TPE (Bergstra et al. 2011; Watanabe 2023), with several objectives its multi-objective form (Ozaki
    et al. 2022), seeded: the same answers bring the same proposals. Configurations of a generation are proposed
    together; a constant liar keeps them apart. Numbers are searched as ordered.
    """

    def __init__(self, knobs: Sequence[Knob], objectives: Sequence[str], seed: int):
        import optuna  # here, since it takes long to import and most commands never search

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.knobs, self.objectives = tuple(knobs), tuple(objectives)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True, constant_liar=True)
        ways = [WAYS[OBJECTIVES[name]] for name in objectives]
        self.study, self.states = optuna.create_study(directions=ways, sampler=sampler), optuna.trial.TrialState

    def ask(self) -> tuple[Any, dict[str, Any]]:
        """A proposal: what `tell` wants to have back, and its dotted overrides."""
        trial = self.study.ask()
        return trial, arm(self.knobs, [_suggest(trial, knob) for knob in self.knobs])

    def tell(self, trial: Any, outcome: Mapping[str, float] | None, pruned: bool = False) -> None:
        """What a proposal was worth, by objective; None: it failed, or was stopped early and hence is poor."""
        if outcome is not None:
            self.study.tell(trial, [outcome[name] for name in self.objectives])
        else:
            stopped = pruned and len(self.objectives) == 1  # Optuna knows no pruning with several objectives
            self.study.tell(trial, state=self.states.PRUNED if stopped else self.states.FAIL)


def _suggest(trial: Any, knob: Knob) -> Any:
    if knob.range is not None:
        return short(trial.suggest_float(knob.name, *knob.range, log=knob.log))
    if knob.ordered:  # by rank, so that infinite values are none to the estimator
        return sorted(knob.values)[trial.suggest_int(knob.name, 0, len(knob.values) - 1)]
    return knob.values[trial.suggest_categorical(knob.name, list(range(len(knob.values))))]
