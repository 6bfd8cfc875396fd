"""How benchmarks of several processes start them in tests."""

import functools

import pytest
import torch.multiprocessing as mp

STARTED = ["mantra_ray.bench.gpu_training", "mantra_ray.bench.gpu_workers", "torch._dynamo", "torch_geometric"]


@pytest.fixture
def forked(monkeypatch):
    """Processes fork from one that has imported all, which takes longer than they do; what they get is pickled as ever.

    A process of its own, since this one may have threads.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(STARTED)
    monkeypatch.setattr(mp, "spawn", functools.partial(mp.start_processes, start_method="forkserver"))
    monkeypatch.setattr(mp, "get_context", lambda _: context)
