"""Several workers that train one memory together do what one does."""

import dataclasses
import math
import os
import subprocess
import sys

import pytest
import torch

from mantra_ray.config import LAPTOP, NexusConfig
from mantra_ray.training.nexus import train_nexus

SIZE = LAPTOP | {"d_model": 16, "heads": 2, "top_programs": 3, "batch": 32}
# A loaded memory (two records a slot), so that writing and eviction matter.
SMALL = NexusConfig(**SIZE, load=2.0, slots=4, regret_gamma=0.0, epochs=2)
SHORT = dataclasses.replace(SMALL, mode="language", window=5, batch=1, language_epochs=1, epochs=0, learning_rate=2e-3)
# Processes fork once all is imported, which takes longer than they do; the first two are also the two workers.
WORKERS = """
import dataclasses, sys
from pathlib import Path
import torch
import torch._dynamo  # which the first optimiser imports, in each process
import torch.distributed as dist
import torch.multiprocessing as mp
from mantra_ray.config import NexusConfig
from mantra_ray.fields import unflatten
from mantra_ray.forward import Fold
from mantra_ray.training import residual
from mantra_ray.training.nexus import train_nexus

folder = Path(sys.argv[1])
torch.set_num_threads(1)
residual.chosen_epoch = lambda errors, *_: len(errors) - 1
whole, shared = Fold.load(folder / "fold.npz"), torch.load(folder / "cases.pt")

def work(rank):
    found = {}
    for world, cases in shared.items():
        if rank >= world:
            continue
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)
        for number, (values, records) in enumerate(cases):
            fold = dataclasses.replace(whole, train=whole.train[:records])
            trained = train_nexus(fold, unflatten(NexusConfig, values), 0)
            memories = [vars(memory) for memory in trained.memories]
            found[world, number] = memories, trained.curves, trained.model.state_dict()
        dist.destroy_process_group()
    torch.save(found, folder / f"{rank}.pt")

mp.start_processes(work, nprocs=max(shared), start_method="fork")
"""
ALL = 90  # training records of the fold
SHARED = {
    2: [
        # batches of 32 and of 89: the last batch is even, and then a single record
        (dataclasses.replace(SMALL, language_share=1.0), ALL),
        (dataclasses.replace(SMALL, batch=89, language_share=1.0), ALL),
        (dataclasses.replace(SMALL, batch=50), ALL),
        (dataclasses.replace(SMALL, routing="levels"), ALL),
        (dataclasses.replace(SMALL, correct="genes"), ALL),
        (dataclasses.replace(SMALL, mode="language", window=50, language_epochs=2), ALL),
        # a window is shorter than a record, and a step has one window and at most one record: none for a worker
        (SHORT, ALL),
        (dataclasses.replace(SMALL, dropout=0.1), ALL),
    ],
    4: [
        (dataclasses.replace(SMALL, routing="hash"), ALL),  # the last share of 90 records is short
        (dataclasses.replace(SMALL, routing="levels", gate_signal="residual", pathway_gamma=-math.inf), ALL),
        (dataclasses.replace(SMALL, routing="levels", load=0.0, buckets=4), 5),  # 2, 2, 1 and no record
        (dataclasses.replace(SMALL, mode="language", window=50, language_epochs=1), 3),  # fewer records than workers
    ],
}
CASES = [(world, number) for world, cases in SHARED.items() for number in range(len(cases))]


def planted_fold(planted):
    return planted(classes=4, manifold=False)


@pytest.fixture(scope="module")
def together(planted, tmp_path_factory):
    """What gloo workers make of each configuration in SHARED: by numbers of workers and of configuration, by rank."""
    folder = tmp_path_factory.mktemp("workers")
    planted_fold(planted).save(folder / "fold.npz")
    cases = {
        world: [(dataclasses.asdict(config), records) for config, records in cases] for world, cases in SHARED.items()
    }
    torch.save(cases, folder / "cases.pt")
    (folder / "workers.py").write_text(WORKERS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "workers.py"), str(folder)]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = [torch.load(folder / f"{rank}.pt") for rank in range(max(SHARED))]
    return {(world, number): [found[rank][world, number] for rank in range(world)] for world, number in CASES}


@pytest.fixture
def alone(planted, last_epoch):
    """Trains a configuration of SHARED with one worker."""

    def train(world, number):
        config, records = SHARED[world][number]
        fold = planted_fold(planted)
        return train_nexus(dataclasses.replace(fold, train=fold.train[:records]), config, 0)

    return train


@pytest.mark.parametrize("case", CASES)
def test_every_worker_holds_the_same_memory_and_model(together, case):
    (memories, curves, weights), *others = together[case]
    assert len(others) == case[0] - 1
    for other_memories, other_curves, other_weights in others:
        for memory, other in zip(memories, other_memories, strict=True):
            assert all(torch.equal(memory[name], other[name]) for name in memory)
        assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
        assert curves == other_curves
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert all((memory["record"] >= 0).any() for memory in memories)


# Dropout draws its masks on each worker, so that it is left out here.
@pytest.mark.parametrize("case", [case for case in CASES if not SHARED[case[0]][case[1]][0].dropout])
def test_several_workers_do_what_one_does(alone, together, case):
    memories, curves, weights = together[case][0]
    trained = alone(*case)
    for memory, other in zip(memories, trained.memories, strict=True):
        for name in ("record", "token", "state", "stamp", "count"):
            assert torch.equal(memory[name], getattr(other, name)), name
        for name in ("key", "value", "priority", "mean", "variance"):
            assert torch.allclose(memory[name], getattr(other, name), atol=1e-3), name
    for name, tensor in trained.model.state_dict().items():
        assert torch.allclose(weights[name], tensor, atol=1e-3), name
    one, several = ({(r["epoch"], r["metric"]): r["value"] for r in rows} for rows in (trained.curves, curves))
    assert one.keys() == several.keys()
    assert [several[key] for key in one] == pytest.approx(list(one.values()), abs=1e-3)
