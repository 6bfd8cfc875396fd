"""Population-based training: trials that differ in nuisance knobs alone take over each other's weights on the way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining

from mantra_ray.errors import InputError
from mantra_ray.fields import digest, flatten, identity
from mantra_ray.sweep.knobs import Knob
from mantra_ray.sweep.schedule import GAIN, GRACE, PASSES, Paired
from mantra_ray.sweep.spec import TrialSpec

# What may change in the middle of training: neither the model's shape nor its data nor the length of its schedule.
EXPLORED = tuple(
    f"nexus.{name}"
    for name in ("learning_rate", "weight_decay", "dropout", "hide_state", "hide_regulator", "language_weight")
)
INTERVAL = GRACE  # passes between two comparisons of a trial with its population


class Population(Paired):
    """Tune's asynchronous population-based training, one population for every configuration, seed and split.

    A population is what differs in the explored knobs alone, so that weights fit and a trial's row stays true in all
    else. A trial in the lowest quarter of its population takes over the state (weights, optimizer, generators,
    curves) and the knobs of one in the highest, and goes on with knobs changed by Tune's rules within their ranges.
    It keeps its own identity; what it took over, and when, is its history.

    In Tune, an exploiting trial also takes over the other's configuration whole, hence its identity: this scheduler
    gives it back. Asynchronous, since the synchronous form waits for ever for a trial that failed.
    """

    def __init__(self, space: Sequence[Knob]):
        self.knobs = {
            k.name: k for k in space if k.kind == "nuisance" and k.name in EXPLORED and k.fields() == {k.name}
        }
        if not self.knobs:
            problem = f"has nothing to explore: a nuisance knob must be among {', '.join(EXPLORED)}"
            raise InputError("options", "--scheduler", "pbt", problem)
        super().__init__(self._make)
        self.members: dict[Any, list[Trial]] = {}

    def _make(self) -> PopulationBasedTraining:
        return PopulationBasedTraining(
            time_attr=PASSES,
            metric=GAIN,
            mode="max",
            perturbation_interval=INTERVAL,
            hyperparam_mutations={"knobs": {name: distribution(knob) for name, knob in self.knobs.items()}},
            log_config=False,
            require_attrs=False,
        )

    def group(self, spec: TrialSpec) -> str | None:
        """All that the configuration says but for the explored knobs."""
        return None if spec.kind == "baselines" else population(spec, self.knobs)

    def remember(self, store: Any, trials: Mapping[str, TrialSpec]) -> None:
        """A trial that has ended takes no part in a population."""

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        spec = TrialSpec.from_json(trial.config["job"]["spec"])
        group = self.group(spec)
        members = self.members.setdefault(group, [])
        if trial not in members:
            members.append(trial)
        if group is not None:
            fields = flatten(spec.config)
            trial.config.setdefault("knobs", {name: fields[name] for name in self.knobs})
            trial.config.setdefault("history", [])
            trial.config["population"] = group
        super().on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        own = trial.config["job"]
        decision = super().on_trial_result(tune_controller, trial, result)
        taken = trial.config
        if taken["job"] != own:  # it exploits another
            other = TrialSpec.from_json(taken["job"]["spec"]).id
            knobs = {name: self._bounded(name, value) for name, value in taken["knobs"].items()}
            step = {"passes": result[PASSES], "from": other} | knobs
            trial.set_config(taken | {"job": own, "knobs": knobs, "history": [*taken["history"], step]})
        return decision

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The member that is furthest behind of the first population with one that waits; baselines before all."""
        if (waiting := super().choose_trial_to_run(_Members(tune_controller, self.members.get(None, ())))) is not None:
            return waiting
        for group, inner in self.inner.items():
            view = _Members(tune_controller, self.members[group])
            if (waiting := inner.choose_trial_to_run(view)) is not None:
                return waiting
        return None

    def within(self, tune_controller: Any, trial: Trial) -> Any:
        return _Members(tune_controller, self.members[self.groups[trial.trial_id]])

    def _bounded(self, name: str, value: Any) -> Any:
        limits = self.knobs[name].range
        return value if limits is None else min(max(value, limits[0]), limits[1])


class _Members:
    """Tune's controller as if a population were all its trials."""

    search_alg = None  # Tune's own rule wants none that proposes trials: ours gives those that the plan names

    def __init__(self, controller: Any, members: Sequence[Trial]):
        self.controller, self.members = controller, set(members)

    def get_trials(self) -> list[Trial]:
        return [trial for trial in self.controller.get_trials() if trial in self.members]

    def get_live_trials(self) -> list[Trial]:
        return [trial for trial in self.controller.get_live_trials() if trial in self.members]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.controller, name)


def population(spec: TrialSpec, explored: Mapping[str, Any]) -> str:
    """Digest of a trial but for its explored knobs; whose states its states may replace."""
    fields = {name: value for name, value in identity(spec.config).items() if name not in explored}
    return digest({"kind": spec.kind, "config": fields, "data": spec.data_sha256, "code": spec.code})


def distribution(knob: Knob) -> Any:
    """A knob as Tune explores it."""
    if knob.range is None:
        return list(knob.values)
    return (tune.loguniform if knob.log else tune.uniform)(*knob.range)


def history(config: Mapping[str, Any]) -> dict[str, str]:
    """Columns for the row of a trial that Tune gave `config`: what it took over from whom, and the knobs since."""
    return {"knob_history": json.dumps(config["history"])} if "history" in config else {}
