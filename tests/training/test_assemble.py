import dataclasses

import numpy as np
import pytest
import ray
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from mantra_ray.errors import InputError
from mantra_ray.fields import replace
from mantra_ray.forward import Fold
from mantra_ray.training import assemble, stages
from mantra_ray.training.distributed import save_unit, train_unit
from mantra_ray.training.stages import Planner, make_folds, records_of

ARMS = ({}, {"manifold.smooth": True}, {"programs.k": 3}, {"seed": 1})


@pytest.fixture
def planned(screen, experiment, tmp_path):
    """Four stages whose units are trained."""
    planner = Planner(screen, tmp_path)
    found = [planner.stage(replace(experiment, **arm)) for arm in ARMS]
    for unit in {unit.path: unit for stage in found for unit in stage.units}.values():
        save_unit(unit, train_unit(records_of(screen), unit))
    return found


def moved(planned, folder):
    """The same stages with their files elsewhere."""
    return [
        dataclasses.replace(stage, path=folder / stage.path.name, networks=folder / stage.networks.name)
        for stage in planned
    ]


def assert_same(first: Fold, second: Fold):
    for item in dataclasses.fields(Fold):
        one, other = getattr(first, item.name), getattr(second, item.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype and one.tobytes() == other.tobytes(), item.name
        elif item.name == "meta":
            assert one | {"seconds": 0} == other | {"seconds": 0}
        else:
            assert one == other


@pytest.mark.slow
def test_side_by_side_gives_the_same_files_bit_for_bit(screen, planned, ray_session, tmp_path, monkeypatch):
    alone = moved(planned, tmp_path / "alone")
    assert [mine for _, mine in assemble.write_folds(screen, alone)] == [True] * 4
    monkeypatch.setattr(assemble, "DISTRIBUTE_FROM", 0)
    monkeypatch.setattr(assemble, "assemble", None)  # this process would fail
    beside = moved(planned, tmp_path / "beside")
    told = list(assemble.write_folds(screen, beside))
    assert {stage.key for stage, _ in told} == {stage.key for stage in alone} and all(mine for _, mine in told)
    for one, other in zip(alone, beside, strict=True):
        assert_same(Fold.load(one.path), Fold.load(other.path))
        first, second = (torch.load(stage.networks, weights_only=True) for stage in (one, other))
        assert str(first) == str(second)
    assert not any(mine for _, mine in assemble.write_folds(screen, beside))


@pytest.mark.slow
def test_what_data_cannot_give_is_told_from_a_task_as_from_here(screen, planned, ray_session, monkeypatch):
    monkeypatch.setattr(assemble, "DISTRIBUTE_FROM", 0)
    greedy = [dataclasses.replace(s, experiment=replace(s.experiment, **{"programs.k": 99})) for s in planned]
    with pytest.raises(InputError, match="the training fold allows") as raised:
        list(assemble.write_folds(screen, greedy))
    assert raised.value.field == "programs.k" and "Traceback" not in str(raised.value)


def test_stages_without_their_units_results_are_left(screen, planned):
    planned[1].units[0].path.write_bytes(b"damaged")  # which two others share
    damaged = {stage.key for stage in planned[:3]}
    for stage, mine in assemble.write_folds(screen, planned):
        assert mine == stage.done == (stage.key not in damaged)


def test_a_fold_is_made_on_one_thread(screen, planned, monkeypatch):
    seen, make = [], assemble.assemble

    def watched(*arguments):
        seen.extend(pool["num_threads"] for pool in threadpool_info())
        return make(*arguments)

    monkeypatch.setattr(assemble, "assemble", watched)
    with threadpool_limits(2):
        assemble.write_fold(screen, planned[0])
    assert seen and set(seen) == {1}


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([{"CPU": 8, "memory": 10 * 2**30}], 5),
        ([{"CPU": 2, "memory": 10 * 2**30}, {"CPU": 8, "memory": 5 * 2**30}, {"CPU": 1}], 4),
        ([{"CPU": 8, "memory": 2**30}] * 4, 0),  # enough together, but not on any
    ],
)
def test_as_many_tasks_as_the_memory_of_nodes_holds(monkeypatch, nodes, expected):
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    gone = {"Alive": False, "Resources": {"CPU": 99, "memory": 2**50}}
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, gone])
    assert assemble._fitting(2 * 2**30) == expected


def test_large_folds_are_made_one_after_the_other_in_this_process(screen, planned, monkeypatch):
    """Two such folds would take more than the terabyte that there is."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 64, "memory": 2**40}}])
    monkeypatch.setattr(ray, "put", lambda _: pytest.fail("the screen was copied"))
    wide = [dataclasses.replace(stage, genes=np.broadcast_to(0, 10**9)) for stage in planned]
    assert wide[0].bytes > 2**40
    made = []
    monkeypatch.setattr(assemble, "write_fold", lambda _, stage: made.append(stage.key) or True)
    list(assemble.write_folds(screen, wide))
    assert made == [stage.key for stage in wide]


def test_a_fold_needs_no_more_memory_than_it_reserves(screen, experiment, planned, monkeypatch):
    """Arrays alone, each 40 times as long as the screen's; blocks of the tests are made small beside them."""
    import tracemalloc

    from mantra_ray.evaluation import differential

    monkeypatch.setattr(differential, "BLOCK", 2**14)
    monkeypatch.setattr(assemble, "realism", lambda *_: {})
    times, data, stage = 400, screen.data, planned[1]
    longer = {
        item.name: np.concatenate([value] * times)
        for item in dataclasses.fields(data)
        if isinstance(value := getattr(data, item.name), np.ndarray) and len(value) == 72
    }
    big = dataclasses.replace(screen, data=dataclasses.replace(data, **longer))
    parts = {
        name: np.concatenate([getattr(stage.split, name) + 72 * i for i in range(times)])
        for name in ("train", "validation", "test")
    }
    stage = dataclasses.replace(
        stage,
        experiment=replace(stage.experiment, **{"programs.method": "pca"}),
        split=dataclasses.replace(stage.split, **parts),
        cross_fit=np.tile(stage.cross_fit, times),
    )
    results = [dict(stages.load_unit(unit.path)) for unit in stage.units]
    tracemalloc.start()
    for result in results:
        result["base"] = np.concatenate([result["base"]] * times)
    assemble.assemble(big, stage, results)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    reserved = stage.bytes - assemble.SPARE
    assert reserved / 2 < peak < reserved


def test_what_several_stages_share_is_looked_up_once(screen, experiment, tmp_path, monkeypatch):
    chosen, looked = [], []
    choose, done = stages.variable_genes, stages.is_done
    monkeypatch.setattr(stages, "variable_genes", lambda *a: chosen.append(1) or choose(*a))
    monkeypatch.setattr(stages, "is_done", lambda *a: looked.append(a[2]) or done(*a))
    monkeypatch.setattr(stages, "_train_missing", lambda records, units, *_: [
        save_unit(unit, train_unit(records, unit)) for unit in units if not unit.path.exists()
    ])  # fmt: skip
    told = []
    trials = [replace(experiment, **arm, **{"nexus.tau": tau}) for arm in ARMS for tau in (0.1, 0.2, 0.3)]
    paths = make_folds(screen, trials, tmp_path, 1, 0, lambda *heard: told.append(heard))
    assert len(paths) == 4 == len(set(looked)) and all(path.exists() for path in paths.values())
    assert len(chosen) == 2  # one for each seed's training rows
    assert told == [(done, 4, stages.ASSEMBLY) for done in range(5)]
    looked.clear()
    make_folds(screen, trials, tmp_path, 1, 0)
    assert len(looked) == 4  # not once a trial: it reads the networks
