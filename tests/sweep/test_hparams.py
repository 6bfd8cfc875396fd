"""The columns of TensorBoard's HParams tab and the names of its runs."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.plugins.hparams import api_pb2 as api
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from mantra_ray.config import ExperimentConfig
from mantra_ray.fields import flatten, replace
from mantra_ray.sweep.hparams import FEW, FINAL, GEOMETRY, LONGEST, Columns, knobs, trial_summaries
from mantra_ray.sweep.options import Options
from mantra_ray.sweep.runner import columns
from mantra_ray.sweep.search import SearchPlan
from mantra_ray.sweep.spec import SweepSpec, TrialSpec

BASE = ExperimentConfig()
SHAPES = [{"nexus.buckets": b, "nexus.slots": s} for b, s in ((512, 32), (2048, 8))]
ARMS = [shape | {"nexus.regret_gamma": gamma, "nexus.tau": 0.1} for shape in SHAPES for gamma in (-2.0, math.inf)]


def trial(kind="nexus", **changes):
    return TrialSpec(kind, replace(BASE, **changes), "d", "c")


def infos(columns):
    """The columns as TensorBoard reads them, and the metrics' tags."""
    (value,) = columns.summary().value
    experiment = HParamsPluginData.FromString(value.metadata.plugin_data.content).experiment
    assert value.tag == "_hparams_/experiment" and value.metadata.plugin_data.plugin_name == "hparams"
    return list(experiment.hparam_infos), [metric.name.tag for metric in experiment.metric_infos]


def test_what_the_arms_differ_in_has_a_column_and_nothing_else():
    found, metrics = infos(Columns.of(ARMS, BASE))
    assert [info.display_name or info.name for info in found] == ["split", "geometry", "gamma", "seed"]
    assert sorted(info.name for info in found) == [info.name for info in found]  # TensorBoard sorts them by name
    assert all(info.differs for info in found) and metrics == [f"final/{name}" for name in FINAL]
    gamma = found[2]
    assert gamma.type == api.DATA_TYPE_STRING
    assert [value.string_value or value.number_value for value in gamma.domain_discrete.values] == [-2.0, "inf"]


def test_types_and_listed_values_are_those_of_the_trials():
    arms = [{"nexus.tau": tau, "manifold.smooth": tau > 0.3} for tau in (0.1, 0.2, 0.4)]
    by_name = {info.name: info for info in infos(Columns.of(arms, BASE))[0]}
    assert by_name["nexus.tau"].type == api.DATA_TYPE_FLOAT64
    assert [value.number_value for value in by_name["nexus.tau"].domain_discrete.values] == [0.1, 0.2, 0.4]
    assert by_name["manifold.smooth"].type == api.DATA_TYPE_BOOL
    many = infos(Columns.of([{"nexus.tau": 0.01 * i} for i in range(1, FEW + 2)], BASE))[0]
    assert not many[1].HasField("domain_discrete")  # a range is easier to choose from


def test_one_configuration_has_no_column_of_its_own():
    for arms in ([], [{}], [{"nexus.tau": 0.1}], [{"data.genes": 5}, {"data.genes": 6}]):
        assert [info.name for info in infos(Columns.of(arms, BASE))[0]] == ["fold.split", "seed"]


def test_what_a_search_turns_has_a_column_without_known_values():
    spec = SweepSpec("s", BASE, tuple(ARMS), (0,), ("seen",), search="tpe")
    plan = SearchPlan(spec, Options(search="tpe", seeds=1), "d", "c")
    found = columns(spec, plan)
    assert found.names == [GEOMETRY, "nexus.regret_gamma"] and not any(found.values.values())
    assert [info.type for info in infos(found)[0]][1:3] == [api.DATA_TYPE_STRING, api.DATA_TYPE_FLOAT64]


def test_settings_of_the_data_and_what_pairs_trials_are_no_columns():
    found = Columns.of(
        [{"data.clip": 1.0, "seed": 1}, {"data.clip": 2.0}], BASE, ["data.clip", "split.kind", "nexus.tau"]
    )
    assert found.names == ["nexus.tau"] and found.run(trial(**{"data.clip": 2.0})).startswith("seen_s0_")


def test_runs_are_named_by_what_they_are():
    found, seen = Columns.of(ARMS, BASE), {"seed": 3, "split.kind": "seen"}
    names = [found.run(trial(**seen, **arm)) for arm in ARMS]
    ids = [trial(**seen, **arm).id for arm in ARMS]
    assert names == [
        f"seen_s3_512x32_{ids[0]}",  # the base says nothing of itself
        f"seen_s3_512x32_gamma=inf_{ids[1]}",
        f"seen_s3_2048x8_{ids[2]}",
        f"seen_s3_2048x8_gamma=inf_{ids[3]}",
    ]
    baselines = trial("baselines", **seen)
    assert found.run(baselines) == f"seen_s3_baselines_{baselines.id}"
    assert Columns().run(baselines) == f"seen_s3_baselines_{baselines.id}"


@given(st.dictionaries(st.sampled_from(["manifold.controls", "data.data", "nexus.tau", "programs.method"]), st.text()))
@settings(max_examples=60, deadline=None)
def test_a_name_is_that_of_one_folder(changes):
    changes = {name: value for name, value in changes.items() if name != "nexus.tau"} | {"nexus.tau": 0.3}
    spec = TrialSpec("nexus", replace(BASE, **changes), "d", "c")
    name = Columns.of([changes, {}], BASE).run(spec)
    assert name.endswith(f"_{spec.id}") and len(name) <= LONGEST + 17
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.=+-") and name[0] != "."
    assert name.rpartition("_")[2] == spec.id


@pytest.mark.parametrize("value, kind", [(math.inf, "string_value"), (-2.0, "number_value")])
def test_a_trials_row_holds_every_knob_and_infinite_ones_as_text(value, kind):
    spec = trial(**{"nexus.regret_gamma": value, "seed": 3})
    start, end = (HParamsPluginData.FromString(s.value[0].metadata.plugin_data.content) for s in trial_summaries(spec))
    found = start.session_start_info.hparams
    assert set(found) == set(knobs(spec)) and end.session_end_info.status == api.STATUS_SUCCESS
    assert found["nexus.regret_gamma"].WhichOneof("kind") == kind
    assert found["fold.split"].string_value == "seen" and found["seed"].number_value == 3
    assert found[GEOMETRY].string_value == "512x32"
    assert found["manifold.smooth"].WhichOneof("kind") == "bool_value"


def test_every_knob_of_a_sweep_is_among_a_trials():
    turned = {n for n in flatten(BASE) if n.partition(".")[0] in ("grn", "manifold", "nexus", "programs")}
    assert turned | {"seed", "fold.split", GEOMETRY} <= knobs(trial()).keys()
    assert all(isinstance(value, (bool, int, float, str)) for value in knobs(trial()).values())
