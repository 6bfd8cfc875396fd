"""Several workers that train one memory together do what one does."""

import dataclasses
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
WORKER = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from mantra_ray.config import NexusConfig
from mantra_ray.fields import unflatten
from mantra_ray.forward import Fold
from mantra_ray.training import residual
from mantra_ray.training.nexus import train_nexus

folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
residual.chosen_epoch = lambda errors, *_: len(errors) - 1
fold, found = Fold.load(folder / "fold.npz"), []
for values in torch.load(folder / "configs.pt"):
    trained = train_nexus(fold, unflatten(NexusConfig, values), 0)
    found.append(([vars(memory) for memory in trained.memories], trained.curves, trained.model.state_dict()))
torch.save(found, folder / f"{rank}.pt")
dist.destroy_process_group()
"""
# 90 training records in batches of 32 and of 89: the last batch is even, and then a single record.
SHARED = [
    dataclasses.replace(SMALL, language_share=1.0),
    dataclasses.replace(SMALL, batch=89, language_share=1.0),
    dataclasses.replace(SMALL, batch=50),
    dataclasses.replace(SMALL, routing="levels"),
    dataclasses.replace(SMALL, correct="genes"),
    dataclasses.replace(SMALL, mode="language", window=50, language_epochs=2),
    # a window is shorter than a record, and a step has one window and at most one record: none for a worker
    dataclasses.replace(SMALL, mode="language", window=5, batch=1, language_epochs=1, epochs=0, learning_rate=2e-3),
    dataclasses.replace(SMALL, dropout=0.1),
]
DROPOUT = len(SHARED) - 1


def planted_fold(planted):
    return planted(classes=4, manifold=False)


@pytest.fixture(scope="module")
def two_workers(planted, tmp_path_factory):
    """What two gloo workers make of each configuration in SHARED, by rank."""
    folder = tmp_path_factory.mktemp("workers")
    planted_fold(planted).save(folder / "fold.npz")
    torch.save([dataclasses.asdict(config) for config in SHARED], folder / "configs.pt")
    (folder / "worker.py").write_text(WORKER)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(folder / "worker.py"), str(folder)]
    workers = [
        subprocess.Popen([*command, str(rank), "2"], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        told = [worker.communicate(timeout=120)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], told
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("number", range(len(SHARED)))
def test_every_worker_holds_the_same_memory_and_model(two_workers, number):
    (memories, curves, weights), (others, other_curves, other_weights) = (found[number] for found in two_workers)
    for memory, other in zip(memories, others, strict=True):
        assert all(torch.equal(memory[name], other[name]) for name in memory)
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert curves == other_curves
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


# Dropout draws its masks on each worker, so that it is left out here.
@pytest.mark.parametrize("number", range(DROPOUT))
def test_two_workers_do_what_one_does(planted, last_epoch, two_workers, number):
    memories, curves, weights = two_workers[0][number]
    alone = train_nexus(planted_fold(planted), SHARED[number], 0)
    for memory, other in zip(memories, alone.memories, strict=True):
        for name in ("record", "token", "state"):
            assert torch.equal(memory[name], getattr(other, name)), name
        for name in ("key", "value", "mean"):
            assert torch.allclose(memory[name], getattr(other, name), atol=1e-3), name
    for name, tensor in alone.model.state_dict().items():
        assert torch.allclose(weights[name], tensor, atol=1e-3), name
    one, two = ({(r["epoch"], r["metric"]): r["value"] for r in rows} for rows in (alone.curves, curves))
    assert one.keys() == two.keys()
    assert [two[key] for key in one] == pytest.approx(list(one.values()), abs=1e-3)
