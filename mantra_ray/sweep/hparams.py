"""What TensorBoard compares a sweep's trials by: the columns of its HParams tab, and the names of its runs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tensorboard.plugins.hparams import api_pb2 as api
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata

from mantra_ray.config import ExperimentConfig
from mantra_ray.fields import flatten
from mantra_ray.sweep.spec import TrialSpec

# Final numbers, the most asked for first, since the tab shows five; a trial has most of them.
FINAL = (
    *("validation_gain", "test_gain", "write_density", "occupancy", "records_per_second", "gate_mean"),
    *("hard_hit_rate", "sim_max_mean", "read_entropy", "transport", "gated_density", "evictions", "collisions"),
    *("load", "memory_bytes", "training_seconds"),
)
UNTUNED = ("data.", "evaluation.")  # sections that no sweep turns; the text has them
PAIRED = ("split.kind", "seed")  # have columns of their own
SPLIT, SEED = "fold.split", "seed"  # the tab sorts columns by name: what is held out comes first, the seed last
SHAPE, GEOMETRY = ("nexus.buckets", "nexus.slots"), "nexus.geometry"  # two settings that only make sense together
LONGEST = 100  # characters of a run's name, its trial's id apart
FEW = 12  # values that the tab lists one by one


@dataclass(frozen=True)
class Columns:
    """The settings that a sweep's trials differ in: the values that are known beforehand, and those of its base."""

    values: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # by dotted name; empty where a search proposes
    base: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(arms: Sequence[Mapping[str, Any]], base: ExperimentConfig, searched: Iterable[str] = ()) -> Columns:
        """Those of a recipe's arms, and those that a search turns besides, in which trials may differ."""
        default, searched, values = flatten(base), set(searched), dict[str, Sequence[Any]]()
        for name in dict.fromkeys([*(name for arm in arms for name in arm), *default]):
            if name.startswith(UNTUNED) or name in PAIRED:
                continue
            known = {json.dumps(value): value for value in (arm.get(name, default[name]) for arm in arms)}
            if name in searched or len(known) > 1:
                values[name] = () if name in searched else [*known.values()]
        return Columns(values, default)

    @property
    def names(self) -> list[str]:
        """The columns, a geometry as one."""
        both = all(name in self.values for name in SHAPE)
        return [GEOMETRY, *(n for n in self.values if n not in SHAPE)] if both else list(self.values)

    def run(self, spec: TrialSpec) -> str:
        """A trial's name among TensorBoard's runs, fit for a folder: what it is, in short, and its id."""
        told, settings = [spec.config.split.kind, f"s{spec.config.seed}"], knobs(spec)
        if spec.kind == "baselines":
            told.append("baselines")
        else:
            for name in self.names:
                if name == GEOMETRY:
                    told.append(settings[name])
                elif settings[name] != plain(self.base[name]):
                    told.append(f"{short(name)}={text(settings[name])}")
        return re.sub(r"[^\w.=+-]", "", "_".join(told), flags=re.ASCII)[:LONGEST] + f"_{spec.id}"

    def summary(self) -> Summary:
        """The tab's columns: split, the settings that differ, seed; and the final numbers."""
        split = api.HParamInfo(name=SPLIT, display_name="split", type=api.DATA_TYPE_STRING, differs=True)
        seed = api.HParamInfo(name=SEED, type=api.DATA_TYPE_FLOAT64, differs=True)
        metrics = [api.MetricInfo(name={"tag": f"final/{n}"}, display_name=n.replace("_", " ")) for n in FINAL]
        columns = [split, *map(self._info, self.names), seed]
        experiment = api.Experiment(hparam_infos=columns, metric_infos=metrics)
        return _summary("experiment", HParamsPluginData(experiment=experiment))

    def _info(self, name: str) -> api.HParamInfo:
        if name == GEOMETRY:
            return api.HParamInfo(name=name, display_name=short(name), type=api.DATA_TYPE_STRING, differs=True)
        known = [plain(value) for value in self.values[name]]
        kinds = {type(value) for value in known or [plain(self.base[name])]}
        number = api.DATA_TYPE_BOOL if kinds == {bool} else api.DATA_TYPE_FLOAT64
        kind = api.DATA_TYPE_STRING if str in kinds else number
        info = api.HParamInfo(name=name, display_name=short(name), type=kind, differs=True)
        if 0 < len(known) <= FEW:
            info.domain_discrete.extend(sorted(known, key=lambda value: (isinstance(value, str), value)))
        return info


def trial_summaries(spec: TrialSpec) -> list[Summary]:
    """A trial's row in the tab: that it ended well, and with which settings."""
    started = SessionStartInfo()
    for name, value in knobs(spec).items():
        kind = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
        setattr(started.hparams[name], kind, value)
    ended = SessionEndInfo(status=api.STATUS_SUCCESS)
    return [
        _summary("session_start_info", HParamsPluginData(session_start_info=started)),
        _summary("session_end_info", HParamsPluginData(session_end_info=ended)),
    ]


def knobs(spec: TrialSpec) -> dict[str, Any]:
    """What the tab compares trials by: seed, split and every setting that a sweep may turn."""
    flat = {name: value for name, value in flatten(spec.config).items() if not name.startswith(UNTUNED)}
    split = flat.pop("split.kind")
    geometry = "x".join(str(flat[name]) for name in SHAPE)
    return {name: plain(value) for name, value in flat.items()} | {SPLIT: split, GEOMETRY: geometry}


def plain(value: Any) -> Any:
    """A setting as the tab can show it; a number that is infinite would be left out there."""
    if isinstance(value, (list, tuple)):
        return json.dumps(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def short(name: str) -> str:
    """A setting's name in a column."""
    return {"nexus.regret_gamma": "gamma", "nexus.query_alpha": "alpha"}.get(name, name.removeprefix("nexus."))


def text(value: Any) -> str:
    """A setting's value in a name."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _summary(tag: str, content: HParamsPluginData) -> Summary:
    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content.SerializeToString())
    return Summary(value=[Summary.Value(tag=f"_hparams_/{tag}", metadata=SummaryMetadata(plugin_data=plugin))])
