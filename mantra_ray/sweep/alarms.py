"""Alarms: what must not be in a sweep, looked for in every one. A knob that does nothing, an evaluation that writes,
a split that leaks, a control that gains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow.dataset as ds
from scipy.stats import norm

from mantra_ray.config import ExperimentConfig
from mantra_ray.evaluation.statistics import Interval, holm, nested_gain
from mantra_ray.fields import flatten
from mantra_ray.sweep.leaks import Alarm, leaks
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.summary import DEFAULTS, PAIRED, value

__all__ = ["Alarm", "alarms", "dead_knobs", "leaks", "shuffled_gains"]

Row = dict[str, Any]  # of the table `trials`
Values = tuple[Any, ...]


def alarms(store: Store, trials: Sequence[Row]) -> list[Alarm]:
    """Alarms of a sweep's finished Nexus trials, rows of the table `trials`; the loud ones first."""
    rows = [row for row in trials if row["kind"] == "nexus" and row["status"] == "done"]
    found = written(rows) + dead_knobs(rows) + shuffled_gains(store, rows)
    return sorted(found, key=lambda alarm: not alarm.loud)


def written(rows: Iterable[Row]) -> list[Alarm]:
    """Trials whose memory was another one after judging than before."""
    changed = [row["trial"] for row in rows if row.get("memory_sha256") != row.get("judged_memory_sha256")]
    text = f"judging changed the memory of {len(changed)} trials; their scores depend on the order of reads"
    return [Alarm("evaluation wrote", text, tuple(changed))] if changed else []


# Where a knob can act at all, by the words for where it cannot. Knobs that stand in none of these can always act.
CONDITIONS: dict[str, tuple[str, Callable[[Row], bool]]] = {
    "training never beat its start on validation": (
        "nexus.hide_state nexus.hide_regulator nexus.language_weight nexus.language_share nexus.learning_rate "
        "nexus.weight_decay nexus.batch nexus.epochs nexus.dropout",
        lambda row: (row.get("epoch") or 0) > 0,
    ),
    "every read finds one record at most": ("nexus.query_alpha", lambda row: (row.get("read_entropy") or 0) > 0),
    "every read finds one record at most, or alpha 0 makes all keys of a bucket one": (
        "nexus.tau",
        lambda row: (row.get("read_entropy") or 0) > 0 and row["nexus.query_alpha"] > 0,
    ),
    "the learned share of transport is 0": ("nexus.transport", lambda row: (row.get("transport") or 0) != 0),
    "nothing was evicted": ("nexus.eviction", lambda row: (row.get("evictions") or 0) > 0),
    "nothing was evicted by priority": (
        "nexus.surprisal_weight nexus.rarity_weight nexus.novelty_weight",
        lambda row: (row.get("evictions") or 0) > 0 and row["nexus.eviction"] == "pss",
    ),
    "so low a gamma may admit all": (  # as that of the default does on easy data; what is above must keep something out
        "nexus.regret_gamma",
        lambda row: row["nexus.regret_gamma"] > DEFAULTS["nexus.regret_gamma"] or (row.get("write_density") or 1) < 1,
    ),
    "gamma admits all or none": ("nexus.gate_signal nexus.ema", lambda row: math.isfinite(row["nexus.regret_gamma"])),
    "gamma admits all": ("nexus.priming", lambda row: row["nexus.regret_gamma"] > -math.inf),
    "load sets the buckets": ("nexus.buckets", lambda row: not row["nexus.load"] > 0),
    "routing is not hash": ("nexus.hash_heads", lambda row: row["nexus.routing"] == "hash"),
    "routing is not levels": ("nexus.pathway_gamma", lambda row: row["nexus.routing"] == "levels"),
    "mode is not language": ("nexus.window nexus.language_epochs", lambda row: row["nexus.mode"] == "language"),
    "no energy was learned": (
        "manifold.energy manifold.penalty manifold.steps manifold.reach manifold.space manifold.components "
        "manifold.noise manifold.hidden manifold.updates manifold.cells",
        lambda row: row.get("energy_error") is not None,
    ),
}
ACTS = {name: (why, acts) for why, (names, acts) in CONDITIONS.items() for name in names.split()}


def dead_knobs(rows: Sequence[Row]) -> list[Alarm]:
    """Knobs that change no prediction, judged by the trials' digests of the programs predicted for the judged rows.

    Two values of a knob are compared wherever two configurations differ in it alone, on each seed and split that
    both finished. Knobs that only ever vary together, such as a geometry's buckets and slots, are one. Where digests
    differ the knob is alive. Where they are equal that proves something only if the memory says anything there (its
    prediction is not the base's) and the knob could act (`CONDITIONS`: eviction only where something is evicted,
    training's knobs only where validation takes a trained epoch, ...).

    Loud: a knob with such proof and no two values that differ anywhere; and two named values (text or on/off) that
    are the same wherever they meet. Notes: two numbers that are the same wherever they meet while others differ, as
    thresholds do once all or nothing passes them; and a knob that made no difference since it could not act. On
    devices that do not repeat their sums bit for bit a dead knob may go unnoticed, and a live one never looks dead.
    """
    rows = [row for row in rows if row.get("prediction_sha256")]
    knobs, cells = _configurations(rows)
    factors = _factors(knobs, list(cells))
    found = []
    for factor in factors:
        met: dict[frozenset[Values], _Meeting] = {}
        others: dict[Values, list[Values]] = {}
        for setting in cells:
            rest = tuple(one for i, one in enumerate(setting) if i not in factor)
            others.setdefault(rest, []).append(setting)
        for one, other in (pair for group in others.values() for pair in combinations(group, 2)):
            pair = frozenset(tuple(setting[i] for i in factor) for setting in (one, other))
            meeting = met.setdefault(pair, _Meeting())
            for at in cells[one].keys() & cells[other].keys():
                meeting.add(cells[one][at], cells[other][at], [knobs[i] for i in factor])
        found += _verdicts([knobs[i] for i in factor], met)
    return found


@dataclass
class _Meeting:
    """Two values of a knob wherever they met."""

    differ: bool = False
    same: list[str] = field(default_factory=list)  # trials with equal predictions that prove something
    idle: list[str] = field(default_factory=list)  # trials with equal predictions where the knob could not act
    why: str = ""

    def add(self, one: Row, other: Row, knobs: Sequence[str]) -> None:
        trials = [one["trial"], other["trial"]]
        if one["prediction_sha256"] != other["prediction_sha256"]:
            self.differ = True
        elif one["prediction_sha256"] == one["base_sha256"]:
            pass  # a silent memory
        elif all(name in ACTS and not any(map(ACTS[name][1], (one, other))) for name in knobs):
            self.idle += trials
            self.why = ACTS[knobs[0]][0]
        else:
            self.same += trials


def _verdicts(knobs: Sequence[str], met: dict[frozenset[Values], _Meeting]) -> list[Alarm]:
    """What the meetings of a knob's values, or of several that vary together, amount to."""
    name = " and ".join(knobs)

    def told(pairs: Iterable[frozenset[Values]]) -> str:
        listed = sorted({one for pair in pairs for one in pair}, key=str)
        return ", ".join(" x ".join(map(str, values)) for values in listed)

    def alarm(pairs: list[frozenset[Values]], text: str, loud: bool) -> Alarm:
        trials = dict.fromkeys(trial for pair in pairs for trial in met[pair].same + met[pair].idle)
        return Alarm("dead knob", f"{name} {told(pairs)}: {text}", tuple(trials), loud)

    equal = [pair for pair, meeting in met.items() if meeting.same and not meeting.differ]
    alive = any(meeting.differ for meeting in met.values())
    if equal and not alive:
        return [alarm(equal, "identical predictions in every comparison; the knob does nothing", True)]
    found = []
    for pair in equal:
        spoken = any(isinstance(one, (str, bool)) for values in pair for one in values)
        found.append(alarm([pair], "identical predictions wherever the two meet", spoken))
    idle = [pair for pair, meeting in met.items() if meeting.idle]
    if idle and not alive and not equal:
        found.append(alarm(idle, f"no difference, and none to be expected: {met[idle[0]].why}", False))
    return found


def shuffled_gains(store: Store, rows: Sequence[Row]) -> list[Alarm]:
    """Configurations whose control gains on test: the memory with the contents of its records exchanged.

    The lower limit of the pooled gain's interval (`evaluation.confidence`) must lie above 0 after Holm's correction
    over all configurations and splits. The p-values are normal tails at the interval's own width, so that many
    configurations need no more resamples.
    """
    groups: dict[tuple[Values, str], list[str]] = {}
    names, cells = _configurations(rows)
    for setting, by_pairing in cells.items():
        for (_, split), row in by_pairing.items():
            groups.setdefault((setting, split), []).append(row["trial"])
    errors = _control_errors(store, [row["trial"] for row in rows])
    gains = {key: _gain([errors[trial] for trial in members], rows[0]) for key, members in groups.items()}
    level = (1 - rows[0]["evaluation.confidence"]) / 2 if rows else 0.0
    adjusted = holm(np.array([_above_zero(gain, level) for gain in gains.values()]))
    found = []
    for ((setting, split), gain), p in zip(gains.items(), adjusted, strict=True):
        if p < level:
            said = (
                ", ".join(f"{name} {one}" for name, one in zip(names, setting, strict=True)) or "the one configuration"
            )
            size = f"{gain.value:.1%} [{gain.lower:.1%}, {gain.upper:.1%}]"
            text = f"shuffled contents gain {size} on {split} with {said}"
            text += "; the gain is not what the records hold"
            found.append(Alarm("shuffled gain", text, tuple(groups[setting, split])))
    return found


def _control_errors(store: Store, trials: Sequence[str]) -> dict[str, np.ndarray]:
    """Error, the GNN's error, regulator and seed [4, n] of the control's test records, by trial."""
    where = (ds.field("arm") == "memory_shuffled") & (ds.field("part") == "test")
    columns = ("squared_error", "reference_error", "regulator", "seed")
    table = store.read("records", trials, ["trial", *columns], where).combine_chunks()
    label = table["trial"].to_numpy()
    order = np.argsort(label, kind="stable")
    found, starts = np.unique(label[order], return_index=True)
    values = np.stack([table[name].to_numpy() for name in columns])[:, order]
    by_trial = dict(zip(found.tolist(), np.split(values, starts[1:], axis=1), strict=False))  # no records: one part
    return {trial: by_trial.get(trial, np.zeros((4, 0))) for trial in trials}


def _gain(errors: Sequence[np.ndarray], row: Row) -> Interval:
    """The pooled gain of the trials' records; its limits only where it is above 0, since nothing else can alarm."""
    error, reference, regulator, seed = np.concatenate(errors, axis=1)
    if not error.sum() < reference.sum():
        return Interval(0.0, math.nan, math.nan, len(error))
    settings = row["evaluation.bootstrap"], row["evaluation.confidence"]
    return nested_gain(error, reference, regulator.astype(int), seed.astype(int), *settings)


def _above_zero(gain: Interval, level: float) -> float:
    """One-sided p-value of no gain; below `level` if and only if the interval's lower limit is above 0."""
    if not gain.value > 0 or math.isnan(gain.lower):
        return 1.0
    spread = (gain.value - gain.lower) / norm.ppf(1 - level)
    return float(norm.sf(gain.value / spread)) if spread > 0 else 0.0


def _configurations(rows: Sequence[Row]) -> tuple[list[str], dict[Values, dict[tuple[int, str], Row]]]:
    """The fields in which trials differ, and by their values the trials by seed and split."""
    fields = [name for name in flatten(ExperimentConfig()) if name not in PAIRED]
    knobs = [name for name in fields if len({value(row, name) for row in rows}) > 1]
    cells: dict[Values, dict[tuple[int, str], Row]] = {}
    for row in rows:
        setting = tuple(value(row, name) for name in knobs)
        cells.setdefault(setting, {})[row["seed"], row["split.kind"]] = row
    return knobs, cells


def _factors(knobs: Sequence[str], settings: Sequence[Values]) -> list[tuple[int, ...]]:
    """Positions of knobs, those together whose values determine each other in all settings."""
    found: dict[tuple[int, ...], list[int]] = {}
    for i in range(len(knobs)):
        seen: dict[Any, int] = {}
        pattern = tuple(seen.setdefault(setting[i], len(seen)) for setting in settings)
        found.setdefault(pattern, []).append(i)
    return [tuple(places) for places in found.values()]
