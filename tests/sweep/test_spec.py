from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.config import ExperimentConfig, NexusConfig
from mantra_ray.fields import replace
from mantra_ray.sweep.spec import SweepSpec, TrialSpec, grid

BASE = ExperimentConfig()


def spec(arms, seeds=(0, 1), splits=("seen", "unseen")):
    return SweepSpec("test", BASE, tuple(arms), seeds, splits)


def test_grid_is_the_full_product():
    assert grid(a=(1, 2), b=("x", "y")) == [{"a": a, "b": b} for a, b in product((1, 2), ("x", "y"))]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(-2, 2, allow_nan=False), max_size=4),
    st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
)
def test_every_arm_runs_once_on_every_seed_and_split(gammas, seeds):
    trials = spec(grid(**{"nexus.regret_gamma": gammas}), tuple(seeds)).trials("data", "code")
    assert len({trial.id for trial in trials}) == len(trials)
    pairs = set(product(seeds, ("seen", "unseen")))
    for gamma in {float(gamma) for gamma in gammas}:
        of_arm = [t for t in trials if t.kind == "nexus" and t.config.nexus.regret_gamma == gamma]
        assert {(t.config.seed, t.config.split.kind) for t in of_arm} == pairs
    baselines = [t for t in trials if t.kind == "baselines"]
    assert sorted((t.config.seed, t.config.split.kind) for t in baselines) == sorted(pairs)


def test_id_follows_content_not_location():
    trial = TrialSpec("nexus", BASE, "data", "code")
    moved = TrialSpec("nexus", replace(BASE, **{"data.data_dir": "elsewhere"}), "data", "code")
    assert trial.id == moved.id
    others = [
        TrialSpec("baselines", BASE, "data", "code"),
        TrialSpec("nexus", replace(BASE, seed=1), "data", "code"),
        TrialSpec("nexus", BASE, "other data", "code"),
        TrialSpec("nexus", BASE, "data", "other code"),
    ]
    assert len({trial.id, *(other.id for other in others)}) == 5


def test_baselines_do_not_depend_on_the_memory():
    changed = SweepSpec("test", replace(BASE, nexus=NexusConfig(epochs=99)), ({},), (0,), ("seen",))
    assert spec([{}], (0,), ("seen",)).trials("d", "c")[0].id == changed.trials("d", "c")[0].id


@settings(max_examples=25, deadline=None)
@given(st.floats(allow_nan=False), st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_json_round_trip(gamma, doses):
    config = replace(BASE, **{"nexus.regret_gamma": gamma, "data.simulation.doses": tuple(doses)})
    trial = TrialSpec("nexus", config, "data", "code")
    assert TrialSpec.from_json(trial.to_json()) == trial


def test_pinned_knob_leaves_the_grid():
    arms = grid(**{"nexus.regret_gamma": (0.0, 1.0), "nexus.query_alpha": (0.0, 1.0)})
    assert spec(arms).pin(["nexus.regret_gamma"]).arms == ({"nexus.query_alpha": 0.0}, {"nexus.query_alpha": 1.0})


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 99))
def test_sample_draws_arms_without_replacement(count, seed):
    whole = spec(grid(**{"nexus.tau": tuple(range(1, 10))}))
    drawn = whole.sample(count, seed)
    assert len(drawn.arms) == min(count, 9)
    assert [arm for arm in whole.arms if arm in drawn.arms] == list(drawn.arms)
    assert drawn == whole.sample(count, seed)
    assert drawn.seeds == whole.seeds and drawn.splits == whole.splits


def test_unknown_knob():
    with pytest.raises(KeyError, match="gama"):
        spec([{"nexus.gama": 1}]).trials("d", "c")
