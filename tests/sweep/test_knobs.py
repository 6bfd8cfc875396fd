import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.config import ExperimentConfig
from mantra_ray.errors import InputError
from mantra_ray.fields import flatten, replace
from mantra_ray.sweep.knobs import (
    NUISANCE,
    Knob,
    arm,
    check_space,
    nuisance_settings,
    product,
    space_of,
    unpinned,
    words,
)
from mantra_ray.sweep.spec import GEOMETRIES, grid

BASE = ExperimentConfig()
SHAPES = tuple({"nexus.buckets": buckets, "nexus.slots": slots} for buckets, slots in GEOMETRIES.values())


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 10), st.floats(1.1, 100), st.booleans(), st.floats(0, 1))
def test_a_range_is_kept_and_covered(low, factor, log, share):
    knob = Knob("nexus.tau", range=(low, low * factor), log=log)
    ends = knob.at(0.0), knob.at(1.0)
    assert ends == pytest.approx(knob.range, rel=5e-3)
    assert knob.range[0] * (1 - 5e-3) <= knob.at(share) <= knob.range[1] * (1 + 5e-3)
    middle = math.sqrt(low * low * factor) if log else low * (1 + factor) / 2
    assert knob.levels() == pytest.approx((low, middle, low * factor), rel=5e-3)


@pytest.mark.parametrize("kind", ["none", "both", "empty", "log", "infinite"])
def test_impossible_knobs(kind):
    given = {
        "none": {},
        "both": {"values": (1,), "range": (0.0, 1.0)},
        "empty": {"range": (1.0, 1.0)},
        "log": {"range": (0.0, 1.0), "log": True},
        "infinite": {"range": (0.0, math.inf)},
    }
    with pytest.raises(InputError, match=r"nexus\.tau"):
        Knob("nexus.tau", **given[kind])


def test_a_grid_turns_scientific_knobs_alone_and_sets_a_shape_whole():
    arms = product((Knob("geometry", SHAPES), Knob("nexus.tau", (0.1, 0.2)), *NUISANCE))
    assert len(arms) == 6 and all("nexus.learning_rate" not in one for one in arms)
    assert {(one["nexus.buckets"], one["nexus.slots"]) for one in arms} == set(GEOMETRIES.values())
    assert [one["nexus.tau"] for one in arms[:2]] == [0.1, 0.2]


def test_a_fixed_field_leaves_the_space():
    space = (Knob("geometry", SHAPES), Knob("nexus.tau", (0.1, 0.2)), *NUISANCE)
    assert unpinned(space, ["nexus.slots", "nexus.learning_rate"]) == space[1:2]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 20))
def test_nuisance_settings_are_distinct_and_start_with_none(count):
    knobs = (*NUISANCE, Knob("nexus.batch", (32, 64, 128), kind="nuisance"), Knob("nexus.tau", (0.1,)))
    found = nuisance_settings(knobs, count)
    assert found[0] == {} and len(found) == count == len({tuple(one.values()) for one in found})
    assert all(1e-3 <= one["nexus.learning_rate"] <= 6e-2 and one.keys() >= {"nexus.batch"} for one in found[1:])
    assert found == nuisance_settings(knobs, count + 3)[:count]
    assert nuisance_settings(knobs[2:], count) == [{}]


def test_the_space_of_arms_holds_every_arm():
    """Geometry is one knob, what does not vary is none, and an arm that leaves a field out has the base's value."""
    arms = [shape | knobs for shape in SHAPES for knobs in grid(**{"nexus.tau": (0.1, 0.3), "nexus.priming": (2,)})]
    arms += [shape | {"nexus.load": 4.0} for shape in SHAPES]
    space = space_of(arms, BASE)
    assert [sorted(knob.fields()) for knob in space] == [
        ["nexus.buckets", "nexus.slots"],
        ["nexus.tau"],
        ["nexus.load"],
    ]
    assert space[0].values == SHAPES and set(space[2].values) == {0.0, 4.0}
    reachable = [flatten(replace(BASE, **one)) for one in product(space)]
    assert all(flatten(replace(BASE, **one)) in reachable for one in arms)


def test_a_space_that_cannot_be_searched():
    with pytest.raises(InputError, match="gama"):
        check_space([Knob("nexus.gama", (1,))])
    with pytest.raises(InputError, match=r"grn\.weight_decay"):
        check_space([Knob("grn.weight_decay", range=(0.1, 0.2))])
    check_space([Knob("grn.hidden", (8, 16)), Knob("geometry", SHAPES), *NUISANCE])


def test_words_and_values():
    assert words({}) == "default"
    assert words({"nexus.tau": 0.123456, "grn.hidden": 8}) == "tau 0.123, grn.hidden 8"
    knobs = Knob("geometry", SHAPES), Knob("nexus.eviction", ("pss", "fifo"))
    assert arm(knobs, (SHAPES[1], "fifo")) == SHAPES[1] | {"nexus.eviction": "fifo"}
    assert Knob("nexus.tau", (0.1, math.inf)).ordered
    assert not knobs[0].ordered and not knobs[1].ordered and not Knob("grn.calibrate", (True, False)).ordered
