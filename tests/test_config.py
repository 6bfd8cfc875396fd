"""Configurations keep what they are given through text, replacement and hashing."""

import dataclasses
import json
import math
import subprocess
import sys
from typing import get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.config import ExperimentConfig, NexusConfig
from mantra_ray.fields import digest, flatten, replace, unflatten

quick = settings(max_examples=60, deadline=None)
NAMES = sorted(flatten(ExperimentConfig()))


def values_of(hint) -> st.SearchStrategy:
    """Values that a field of this type may take."""
    if get_origin(hint) is tuple:
        return st.lists(values_of(get_args(hint)[0]), max_size=3).map(tuple)
    if get_args(hint):
        return st.sampled_from(get_args(hint))
    return {
        bool: st.booleans(),
        int: st.integers(-(2**31), 2**31),
        float: st.floats(allow_nan=False),
        str: st.text(max_size=8),
    }[hint]


def hint_of(cls: type, dotted: str):
    head, _, rest = dotted.partition(".")
    hint = get_type_hints(cls)[head]
    return hint_of(hint, rest) if rest else hint


@st.composite
def changes(draw, cls=ExperimentConfig, names=NAMES):
    chosen = draw(st.lists(st.sampled_from(names), max_size=6, unique=True))
    return {name: draw(values_of(hint_of(cls, name))) for name in chosen}


@quick
@given(changes())
def test_a_configuration_survives_text(change):
    config = replace(ExperimentConfig(), **change)
    values = json.loads(json.dumps(flatten(config)))
    again = unflatten(ExperimentConfig, values)
    assert again == config and digest(again) == digest(config)
    assert sorted(values) == NAMES
    for name, value in change.items():
        assert values[name] == (list(value) if isinstance(value, tuple) else value)


@quick
@given(changes())
def test_replacing_changes_those_fields_and_no_others_and_not_the_original(change):
    base = ExperimentConfig()
    before = flatten(base)
    after = flatten(replace(base, **change))
    assert flatten(base) == before
    expected = before | {name: list(v) if isinstance(v, tuple) else v for name, v in change.items()}
    assert after == expected


@quick
@given(changes(), changes())
def test_equal_configurations_and_they_alone_share_a_digest(one, other):
    first, second = replace(ExperimentConfig(), **one), replace(ExperimentConfig(), **other)
    assert (digest(first) == digest(second)) == (json.dumps(flatten(first)) == json.dumps(flatten(second)))


@quick
@given(st.dictionaries(st.text(max_size=5), st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)))
def test_a_digest_does_not_depend_on_the_order_of_names(values):
    turned = dict(reversed(values.items()))
    assert digest(values) == digest(turned)
    assert len(digest(values)) == 16 and int(digest(values), 16) >= 0


def test_every_field_moves_the_digest():
    base, seen = ExperimentConfig(), {digest(ExperimentConfig())}
    for name, value in flatten(base).items():
        other = {bool: lambda v: not v, str: lambda v: v + "x", list: lambda v: (*v, 1)}.get(
            type(value), lambda v: v + 1
        )
        seen.add(digest(replace(base, **{name: other(value)})))
    assert len(seen) == len(NAMES) + 1


def test_a_digest_is_the_same_in_another_process():
    imports = "from mantra_ray.config import ExperimentConfig; from mantra_ray.fields import digest"
    told = subprocess.run(
        [sys.executable, "-c", f"{imports}; print(digest(ExperimentConfig()))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == digest(ExperimentConfig())


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinities_survive(value):
    config = replace(ExperimentConfig(), **{"nexus.regret_gamma": value})
    assert unflatten(ExperimentConfig, json.loads(json.dumps(flatten(config)))).nexus.regret_gamma == value
    assert digest(config) not in (digest(ExperimentConfig()), digest(replace(config, **{"nexus.regret_gamma": -value})))


@pytest.mark.parametrize("name", ["nosuch", "nexus.nosuch", "data.simulation.nosuch", "nosuch.tau", ""])
def test_unknown_names_are_refused(name):
    with pytest.raises(KeyError, match=r"has no field '(nosuch)?'"):
        replace(ExperimentConfig(), **{name: 1})
    with pytest.raises(KeyError):
        unflatten(ExperimentConfig, {name: 1})


def test_fields_left_out_keep_their_defaults():
    assert unflatten(ExperimentConfig, {}) == ExperimentConfig()
    assert unflatten(NexusConfig, {"tau": 0.5}) == NexusConfig(tau=0.5)
    nexus = NexusConfig(slots=3)
    assert replace(ExperimentConfig(), nexus=nexus).nexus is nexus


def test_names_are_dotted_and_may_have_a_prefix():
    assert set(flatten(NexusConfig(), "nexus.")) == {name for name in NAMES if name.startswith("nexus.")}
    assert flatten(ExperimentConfig())["data.simulation.doses"] == [0.3, 0.6, 0.95]


def test_configurations_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ExperimentConfig().nexus.tau = 1.0
