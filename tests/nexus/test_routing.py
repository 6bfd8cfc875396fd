"""Buckets of every routing: in range, within the slots that were asked for, and shared by whom they should be."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from mantra_ray.config import NexusConfig
from mantra_ray.nexus.routing import bucket_count, make_routes, primes_below

quick = settings(max_examples=60, deadline=None)
ROUTINGS = ("regulator", "class", "levels", "hash", "random")
routings = st.sampled_from(ROUTINGS)


def configured(routing, buckets, slots=4, **changes) -> NexusConfig:
    return NexusConfig(routing=routing, buckets=buckets, slots=slots, **changes)


@quick
@given(routings, st.integers(2, 600), st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_buckets_are_in_range_and_slots_are_no_more_than_asked_for(routing, buckets, slots, classes, seed):
    buckets = max(buckets, 6) if routing == "hash" else buckets  # two primes fit in 3 buckets each
    rng = np.random.default_rng(seed)
    regulator, kind = torch.from_numpy(rng.integers(0, 5000, 90)), torch.from_numpy(rng.integers(-1, classes, 90))
    routes = make_routes(configured(routing, buckets, slots), 90, classes)
    assert len({route.name for route in routes}) == len(routes)
    assert sum(route.buckets * route.slots for route in routes) <= buckets * slots
    for route in routes:
        record = torch.arange(90)
        bucket = route.bucket(regulator, kind, record)
        assert bucket.min() >= 0 and bucket.max() < route.buckets and route.slots >= 1
        if routing == "random":
            assert torch.equal(route.bucket(regulator.flip(0), kind.flip(0), record), bucket)
        else:  # all records of a regulator lie in one bucket
            homes = route.bucket(regulator, regulator % 7 - 1, record)
            assert len(set(zip(regulator.tolist(), homes.tolist(), strict=True))) == len(regulator.unique())


@quick
@given(st.sampled_from(["regulator", "class", "random"]), st.integers(1, 600), st.integers(1, 40), st.integers(1, 50))
def test_one_manifold_wastes_less_than_a_slot_a_bucket(routing, buckets, slots, classes):
    (route,) = make_routes(configured(routing, buckets, slots), 90, classes)
    spare = buckets * slots - route.buckets * route.slots
    assert 0 <= spare < route.buckets and (routing == "class" or spare == 0)


def test_by_regulator_the_bucket_is_the_regulator_mod_b():
    (route,) = make_routes(configured("regulator", 7), 90, 3)
    regulator = torch.arange(40)
    assert route.bucket(regulator, regulator % 3 - 1, regulator).tolist() == [r % 7 for r in range(40)]
    assert route.hard and route.by == "regulator"


@quick
@given(st.sampled_from(["class", "levels"]), st.integers(1, 20), st.integers(50, 100))
def test_a_class_has_a_bucket_of_its_own_and_unknown_ones_share_another(routing, classes, buckets):
    route = make_routes(configured(routing, buckets), 90, classes)[-1]
    kind = torch.arange(-1, classes).repeat(3)
    bucket = route.bucket(torch.arange(len(kind)), kind, torch.arange(len(kind)))
    assert route.by == "class" and route.buckets == classes + 1  # none lies idle
    assert len(set(zip(kind.tolist(), bucket.tolist(), strict=True))) == len(bucket.unique()) == classes + 1


def test_random_buckets_are_even_and_tell_nothing_of_the_regulator():
    (route,) = make_routes(configured("random", 20), 8000, 3)
    regulator = torch.arange(8000) // 400
    bucket = route.bucket(regulator, regulator, torch.arange(8000))
    table = torch.bincount(regulator * 20 + bucket, minlength=400).reshape(20, 20).numpy()
    assert chi2_contingency(table).pvalue > 0.01 and chisquare(table.sum(0)).pvalue > 0.01


def test_random_buckets_are_not_gated_by_what_their_reads_leave():
    with pytest.raises(ValueError, match="gate by entropy"):
        make_routes(configured("random", 20, gate_signal="residual"), 90, 3)


@pytest.mark.parametrize(("routing", "hard"), [("regulator", [False]), ("class", [False]), ("hash", [False, False])])
def test_a_soft_read_takes_the_whole_bucket(routing, hard):
    assert [route.hard for route in make_routes(configured(routing, 64, read="soft"), 90, 3)] == hard
    assert all(route.hard for route in make_routes(configured(routing, 64), 90, 3))


@pytest.mark.parametrize("routing", ["class", "levels"])
def test_without_known_classes_there_is_nothing_to_route_by(routing):
    with pytest.raises(ValueError, match="--classes"):
        make_routes(configured(routing, 64), 90, 0)


def test_two_levels_do_not_fit_one_bucket():
    with pytest.raises(ValueError, match="at least 2 buckets"):
        make_routes(configured("levels", 1), 90, 3)


def test_levels_are_halves_with_gates_and_reads_of_their_own():
    config = configured("levels", 64, slots=8, regret_gamma=-1.0, pathway_gamma=-3.0)
    gene, pathway = make_routes(config, 90, 9)
    assert (gene.by, gene.gamma, gene.hard) == ("regulator", -1.0, True)
    assert (pathway.by, pathway.gamma, pathway.hard) == ("class", -3.0, False)
    assert gene.buckets * gene.slots == 256 and 256 - 10 < pathway.buckets * pathway.slots <= 256


@quick
@given(st.integers(1, 4), st.integers(40, 300))
def test_regulators_that_collide_in_one_hash_do_not_in_another(heads, buckets):
    routes = make_routes(configured("hash", buckets, hash_heads=heads), 90, 3)
    moduli = [route.buckets for route in routes]
    assert len(set(moduli)) == heads and all(p % d for p in moduli for d in range(2, math.isqrt(p) + 1))
    count = min(math.prod(moduli), 2000)  # numbers below the product of primes differ in some remainder
    regulator = torch.arange(count)
    homes = torch.stack([route.bucket(regulator, regulator, regulator) for route in routes], dim=1)
    assert len(homes.unique(dim=0)) == count


@quick
@given(st.integers(0, 400), st.integers(1, 5))
def test_primes_are_the_largest_up_to_the_limit(limit, count):
    every = [n for n in range(2, limit + 1) if all(n % d for d in range(2, n))]
    if len(every) < count:
        with pytest.raises(ValueError, match="hash heads"):
            primes_below(limit, count)
    else:
        assert primes_below(limit, count) == every[: -count - 1 : -1]


@pytest.mark.parametrize(("load", "slots", "buckets"), [(2.0, 4, 11), (0.25, 32, 11), (1.0, 90, 1), (1000.0, 32, 1)])
def test_load_sets_the_number_of_buckets(load, slots, buckets):
    assert bucket_count(NexusConfig(load=load, slots=slots), 90) == buckets
    assert bucket_count(NexusConfig(slots=slots, buckets=77), 90) == 77


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("load", [0.5, 1.0, 2.0])
def test_load_counts_the_slots_of_all_manifolds(routing, load):
    config = configured(routing, 1, slots=4, load=load)
    slots = sum(route.buckets * route.slots for route in make_routes(config, 2000, 9))
    assert load <= 2000 / slots < 1.2 * load  # primes are below what they stand for
    doubled = make_routes(dataclasses.replace(config, load=2 * load), 2000, 9)
    assert sum(route.buckets * route.slots for route in doubled) < 0.6 * slots
