"""Several workers that train one unit do what one does; an interrupted training ends as an undisturbed one.

Tolerances, stated: of one worker the same bits; of several, with the same global batch, each epoch's loss to 1e-4 of
itself and every prediction to 1e-3 of the predictions' root mean square, after a few tens of steps.
"""

import dataclasses
import functools
import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mantra_ray.cascade.replicas import Replicas
from mantra_ray.config import GrnConfig, ManifoldConfig
from mantra_ray.data.screen import Controls
from mantra_ray.training import distributed
from mantra_ray.training.distributed import Unit, load_unit, save_unit, state_of, train_and_save
from mantra_ray.training.energy import EnergyUnit
from mantra_ray.training.replicas import needed, rounds
from mantra_ray.training.stages import records_of
from mantra_ray.training.state import Keeper, Progress

LOSS, PREDICTION = 1e-4, 1e-3
GRN = GrnConfig(hidden=8, layers=3, epochs=3, batch=16, learning_rate=2e-2)
ENERGY = ManifoldConfig(components=4, updates=30, hidden=16, replicas=3)
# Processes fork once all is imported, which takes longer than they do.
WORKERS = """
import pickle, sys
from pathlib import Path
import torch
import torch._dynamo  # which the first optimiser imports, in each process
import torch.distributed as dist
import torch.multiprocessing as mp
import torch_geometric
from mantra_ray.training.distributed import train_and_save
from mantra_ray.training.replicas import groups, rounds

folder, world = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)

def work(rank):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    records, units = pickle.loads((folder / "work").read_bytes())
    told, plan = [], rounds(units, world, False)
    places = groups(plan, False)
    for teams in plan:
        told += [train_and_save(t.unit, records, "cpu", places[t.ranks]) for t in teams if rank in t.ranks]
        dist.barrier()
    (folder / f"told{rank}").write_bytes(pickle.dumps(told))
    dist.destroy_process_group()

mp.start_processes(work, nprocs=world, start_method="fork")
"""


@pytest.fixture
def records(screen):
    """The screen's records, with 80 unperturbed cells."""
    rng = np.random.default_rng(1)
    axes = np.linalg.svd(screen.data.delta_expression, full_matrices=False)[2][:4]
    profiles = rng.normal(size=(80, 4)) @ axes + 0.2 * rng.normal(size=(80, 40)) + 2
    controls = Controls(profiles.astype(np.float32), np.arange(80) % 2)
    return records_of(dataclasses.replace(screen, controls=controls))


def units_in(folder: Path) -> dict[str, Unit | EnergyUnit]:
    """By name; batches are of 4 records, and the last of 57 is one record: none for all workers but one."""
    energy = EnergyUnit(folder / "energy.npz", np.arange(5, 35), ENERGY, 3)
    rows, genes = np.arange(57), np.arange(5, 35)

    def unit(name: str, penalty: float = 0.0, **fields) -> Unit:
        config, path = dataclasses.replace(GRN, **fields), folder / "units" / f"{name}.npz"
        return Unit(path, rows, genes, 5.0, config, 3, folder / "penalty.npz" if penalty else None, penalty)

    return {
        "energy": energy,
        "two": unit("two", replicas=2),
        "alone": unit("alone", replicas=1),
        "three": unit("three", replicas=3),
        "parts": unit("parts", replicas=2, accumulate=2),
        "penalised": unit("penalised", penalty=0.3, replicas=3),
        "interrupted": unit("interrupted", replicas=2, epochs=4),
    }


class Interrupted(Exception):
    pass


def stop_after(epoch, now, metrics):
    if now == epoch:
        raise Interrupted


def interrupt(unit, records, epoch, monkeypatch):
    """Train a unit here up to the end of an epoch, and leave its state."""

    def course_of(unit, seed, replicas):
        keeper = Keeper(state_of(unit), unit.path.stem, 0, replicas)
        return Progress(seed, functools.partial(stop_after, epoch), keeper)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        for module in (distributed, sys.modules[type(unit).__module__]):
            patch.setattr(module, "course_of", course_of)
        unit.train(records)
    assert state_of(unit).exists()


def workers(folder: Path, records, units, count: int) -> list[list[dict]]:
    """What each of `count` gloo workers tells of the units that it trained."""
    (folder / "work").write_bytes(pickle.dumps((records, units)))
    (folder / "workers.py").write_text(WORKERS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "workers.py"), str(folder), str(count)]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return [pickle.loads((folder / f"told{rank}").read_bytes()) for rank in range(count)]


def test_teams_train_what_one_worker_does(records, tmp_path, monkeypatch):
    alone, together = ({name: unit for name, unit in units_in(tmp_path / f).items()} for f in ("alone", "together"))
    for unit in (alone["penalised"], together["penalised"]):
        penalty = dataclasses.replace(alone["energy"], path=unit.energy)
        save_unit(penalty, penalty.train(records))
    interrupt(together["interrupted"], records, 1, monkeypatch)
    told = workers(tmp_path, records, list(together.values()), 3)
    counts = {row["unit"]: row["replicas"] for rank in told for row in rank}
    assert counts == {name: unit.replicas for name, unit in together.items()}
    for name, unit in alone.items():
        one, many = unit.train(records), load_unit(together[name].path)
        assert one.keys() == many.keys()
        assert not state_of(together[name]).exists()
        np.testing.assert_allclose(many["loss"], one["loss"], rtol=LOSS, err_msg=name)
        if name == "energy":
            np.testing.assert_allclose(many["held_out"], one["held_out"], rtol=LOSS)
            np.testing.assert_allclose(many["net.0.weight"], one["net.0.weight"], atol=1e-4)
            continue
        scale = np.sqrt(np.square(one["base"]).mean())
        np.testing.assert_allclose(many["base"], one["base"], atol=PREDICTION * scale, err_msg=name)
        if name == "alone":
            np.testing.assert_array_equal(many["base"], one["base"])
        for rank in told:  # every worker of a team tells the same of it
            for row in rank:
                if row["unit"] == name:
                    assert row["loss"] == many["loss"].tolist() and row["seconds"] > 0


@pytest.mark.filterwarnings("error:.*starts anew")
@pytest.mark.parametrize("name", ["two", "energy"])
def test_an_interrupted_training_ends_as_an_undisturbed_one(records, tmp_path, monkeypatch, name):
    unit = units_in(tmp_path)[name]
    whole = unit.train(records)
    assert len(whole["loss"]) == (3 if name == "two" else 10)
    random = torch.get_rng_state()
    interrupt(unit, records, 1, monkeypatch)
    torch.rand(7)  # what else the process does in between
    state = torch.load(state_of(unit))
    assert state["next"] == 2
    train_and_save(unit, records, "cpu", Replicas())
    found = load_unit(unit.path)
    assert found.keys() == whole.keys() and not state_of(unit).exists()
    for array, value in whole.items():
        if array != "seconds":
            np.testing.assert_array_equal(found[array], value, err_msg=array)
    interrupt(dataclasses.replace(unit, path=tmp_path / "other.npz"), records, 0, monkeypatch)
    torch.set_rng_state(random)
    again = unit.train(records)
    assert torch.equal(torch.get_rng_state(), random)  # the caller's generator is left as it was
    np.testing.assert_array_equal(again["loss"], whole["loss"])


def test_it_goes_on_and_does_not_start_anew(records, tmp_path, monkeypatch):
    unit = units_in(tmp_path)["two"]
    interrupt(unit, records, 1, monkeypatch)
    state = torch.load(state_of(unit))
    state["rows"][0]["value"] = 123.0
    torch.save(state, state_of(unit))
    assert unit.train(records)["loss"][0] == 123.0
    state_of(unit).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="starts anew"):
        assert unit.train(records)["loss"][0] != 123.0
    torch.save(state | {"identity": "of another"}, state_of(unit))
    with pytest.warns(UserWarning, match="another identity"):
        assert unit.train(records)["loss"][0] != 123.0


def test_a_unit_that_is_there_is_not_trained_again(records, tmp_path):
    unit = units_in(tmp_path)["two"]
    save_unit(unit, {"base": np.ones(3)})
    assert train_and_save(unit, records, "cpu", Replicas()) == {"unit": "two", "replicas": 1}
    assert load_unit(unit.path)["base"].tolist() == [1, 1, 1]


sizes = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=10)


@settings(max_examples=80, deadline=None)
@given(sizes, st.integers(1, 7), st.booleans())
def test_each_unit_has_the_team_that_it_asks_for_and_idle_workers_join_where_they_may(asked, count, spare):
    units = [
        Unit(Path(f"{i}.npz"), np.arange(rows), np.arange(2), 5.0, dataclasses.replace(GRN, replicas=replicas), 0)
        for i, (rows, replicas) in enumerate(asked)
    ]
    plan = rounds(units, count, spare)
    assert sorted(str(team.unit.path) for teams in plan for team in teams) == sorted(str(u.path) for u in units)
    for teams in plan:
        ranks = [rank for team in teams for rank in team.ranks]
        assert ranks == list(range(len(ranks))) and len(ranks) <= count
        free = [team for team in teams if not team.unit.replicas]
        for team in teams:
            if team.unit.replicas or not spare:
                assert team.size == min(max(1, team.unit.replicas), count)
        if free and spare:
            assert len(ranks) == count
            assert max(team.size for team in free) - min(team.size for team in free) <= 1
    for this, following in itertools.pairwise(plan):  # longest first
        assert min(team.unit.cost for team in this) >= max(team.unit.cost for team in following)
    least = needed(units, count, spare)
    assert least <= count and rounds(units, least, spare) == plan


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(1, 6))
def test_shares_are_a_partition_and_alike(rows, count):
    def share(rank):
        replicas = Replicas()
        replicas.rank, replicas.count = rank, count
        return replicas.share(torch.arange(rows)).tolist()

    dealt = [share(rank) for rank in range(count)]
    assert sorted(row for part in dealt for row in part) == list(range(rows))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
