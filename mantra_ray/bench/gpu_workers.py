"""What several processes bring: workers that train one memory, and trials that share a GPU.

Each function returns rows of plain numbers; seconds are medians unless they say otherwise.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mantra_ray.bench.measured import seconds
from mantra_ray.bench.planted import Size
from mantra_ray.config import LAPTOP, NexusConfig
from mantra_ray.forward import Fold
from mantra_ray.nexus.gather import gathered, received, share, workers
from mantra_ray.nexus.records import Records
from mantra_ray.nexus.warming import warm
from mantra_ray.sweep.trial import memory_digest
from mantra_ray.training.nexus import Trained, train_nexus

DENSITIES = (1.0, 0.7, 0.4)  # shares of the training records that are written
HALVINGS = 14  # of the interval in which the gate's threshold is sought
BESIDE = (1, 2, 4, 8, 12)  # trials side by side on one GPU
WINDOW = 6.0  # seconds for which they run, and until the trials of that moment end
# 20 tokens a record; headers are all different, else their similarity of 1 would leave the gate nothing to choose by
FULL = NexusConfig(top_programs=16, dose_bins=8, batch=8192, epochs=6)  # graphs are recorded in the first two
SMALL = replace(FULL, **LAPTOP, buckets=64, slots=32, batch=1024, epochs=3)
TINY = replace(FULL, **LAPTOP | {"d_model": 16}, heads=2, top_programs=3, buckets=8, slots=8, batch=32, epochs=2)

QUICK = Size(12, 4, 4, TINY)
EXCHANGED = {"cuda": Size(256, 8, 16, FULL), "cpu": Size(64, 8, 16, SMALL)}
SCALED = Size(1024, 8, 16, FULL)
# the built-in simulator's 1,800 records, at the size that sweeps use and at full size, both at the usual batch
TRIALS = {
    "laptop": Size(300, 3, 2, NexusConfig(**LAPTOP)),
    "full": Size(300, 3, 2, NexusConfig(epochs=3)),
}


def exchange(world: int, quick: bool = False) -> list[dict[str, Any]]:
    """What the gather of the write candidates costs, for 1, 2, ... workers and several write densities.

    Up to `world` workers on GPUs of their own over NCCL; where there are not two, 1, 2 and 4 on the CPU over gloo, with
    a smaller model.
    """
    on_gpus = [n for n in sorted({1, 2, world}) if n <= min(world, torch.cuda.device_count())]
    kind = "cuda" if len(on_gpus) > 1 else "cpu"
    counts = on_gpus if kind == "cuda" else [1, 2] if quick else [1, 2, 4]
    size = QUICK if quick else EXCHANGED[kind]
    fold = size.fold()
    gammas = (-math.inf, *thresholds(fold, size.config, kind, DENSITIES[1:]))
    cases = [replace(size.config, regret_gamma=gamma) for gamma in gammas]
    return [row for count in counts for row in together(count, kind, fold, cases)]


def scaling(gpus: int, quick: bool = False) -> list[dict[str, Any]]:
    """Records a second of a Mode B epoch on one worker and on `gpus`, with the batch kept and with it growing alike.

    The next-token loss reads an eighth of the records, as usual, or all of them (about 0.4 GFLOP a record).
    `speed_up` is over one worker of the same share; goal at 2 GPUs: 1.8.
    """
    size = QUICK if quick else SCALED
    kind, fold, batch = "cuda" if torch.cuda.device_count() >= gpus else "cpu", size.fold(), size.config.batch
    rows: list[dict[str, Any]] = []
    for count in sorted({1, gpus}):
        cases = [
            replace(size.config, batch=whole, language_share=share)
            for share in (size.config.language_share, 1.0)
            for whole in sorted({batch, batch * count})
        ]
        rows += together(count, kind, fold, cases)
    first = {row["language_share"]: row["records_per_second"] for row in rows if row["workers"] == 1}
    return [row | {"speed_up": row["records_per_second"] / first[row["language_share"]]} for row in rows]


def thresholds(fold: Fold, config: NexusConfig, device: str, densities: Sequence[float]) -> list[float]:
    """The gate's thresholds at which an untrained model writes these shares of the training records."""
    start = train_nexus(fold, replace(config, epochs=0), 0, device=device)
    (stream,), (empty,) = start.model.streams(training_records(start, fold)), start.model.empty_memory()
    found = []
    for density in densities:
        low, high = -5.0, 5.0  # of arsinh(gamma): fine about 0, and far
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            written = warm(empty, stream, replace(config, regret_gamma=math.sinh(middle)))[1]["write_density"]
            low, high = (middle, high) if written > density else (low, middle)
        found.append(math.sinh(low))
    return found


def training_records(trained: Trained, fold: Fold) -> Records:
    """The records that the memory is warmed on."""
    records = trained.inputs.records
    return records.take(torch.tensor(fold.train, device=records.record.device))


def together(world: int, kind: str, fold: Fold, cases: Sequence[NexusConfig]) -> list[dict[str, Any]]:
    """A row for each configuration that `world` workers train together: on a GPU each, or on the CPU."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        fold.save(folder / "fold.npz")
        work = world, kind, folder, list(cases)
        try:
            mp.spawn(_work, work, nprocs=world) if world > 1 else _work(0, *work)
        finally:
            if dist.is_initialized():  # one worker is this process
                dist.destroy_process_group()
        return json.loads((folder / "rows.json").read_text())


def _work(rank: int, world: int, kind: str, folder: Path, cases: list[NexusConfig]) -> None:
    """One of the workers; the first writes the rows."""
    device = f"cuda:{rank}" if kind == "cuda" else "cpu"
    _pin(device, world)
    fold = Fold.load(folder / "fold.npz")
    starts = [replace(config, epochs=0) for config in cases]
    alone = [train_nexus(fold, config, 0, device=device) for config in starts]  # before there are others
    own = {"device_id": torch.device(device)} if kind == "cuda" else {}
    backend, meet = "nccl" if kind == "cuda" else "gloo", f"file://{folder}/meet"
    dist.init_process_group(backend, init_method=meet, rank=rank, world_size=world, **own)
    rows = []
    for config, start, single in zip(cases, starts, alone, strict=True):
        joined = train_nexus(fold, start, 0, device=device)
        moved = (joined.memories[0].record != single.memories[0].record).double().mean()
        row = {"workers": world, "backend": backend, "device": name_of(device)}
        row |= _measured(fold, config, device, world) | {"moved": float(moved)}  # slots with another record than alone
        rows.append(row)
    if rank == 0:
        (folder / "rows.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def _measured(fold: Fold, config: NexusConfig, device: str, world: int) -> dict[str, Any]:
    """Train together; seconds of an epoch and of what it is made of, and whether all hold the same memory."""
    ends: list[float] = []
    trained = train_nexus(fold, config, 0, on_epoch=lambda *_: ends.append(time.perf_counter()), device=device)
    epoch = statistics.median(np.diff(ends)[:-1].tolist())  # but the first, and the last, which does not train
    digests: list[str] = [""] * world
    dist.all_gather_object(digests, memory_digest(trained.memories))
    model, train = trained.model, training_records(trained, fold)
    rows, widths = share(len(train), *workers()), (1, 1, *[config.d_model] * len(model.routes))
    parts = [torch.rand(rows.stop - rows.start, width, device=device) for width in widths]
    gather = seconds(lambda: gathered(parts, len(train)), device)
    passes = [row["value"] for row in trained.curves if row["metric"] == "write_density"]
    return {
        "records": len(train),
        "columns": sum(widths),
        "batch": config.batch,
        "language_share": config.language_share,
        "gamma": config.regret_gamma,
        "density": statistics.mean(passes),
        "same": len(set(digests)) == 1,  # memory of all workers, bit for bit
        "received_bytes": received(len(train), sum(widths), world),
        "gather_seconds": gather,
        "headers_seconds": seconds(lambda: model.streams(train), device, repeats=3, warm_up=1),  # gather included
        "warming_seconds": seconds(lambda: model.warm(train), device, repeats=3, warm_up=1),  # headers included
        "epoch_seconds": epoch,
        "gather_share": gather / epoch,
        "records_per_second": len(train) / epoch,
    }


def name_of(device: str) -> str:
    """The name of a device."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "CPU"


def _pin(device: str, processes: int) -> None:
    """Keep this process to its GPU, or to its share of the threads."""
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(device)


def side_by_side(device: str, quick: bool = False) -> list[dict[str, Any]]:
    """Trials an hour of 1, 2, ... processes that each train one small memory after another on one device.

    The processes stay for all rows, warmed up, each with its own context, so that those who wait cost memory alone.
    `speed_up` is over one process.
    """
    counts, window = ((1, 2), 0.0) if quick else (BESIDE, WINDOW)
    sizes = {"tiny": QUICK} if quick else TRIALS
    device = "cuda:0" if device == "cuda" else device
    rows, before = [], used(device)
    with tempfile.TemporaryDirectory() as place, processes(max(counts), device) as running:
        for name, size in sizes.items():
            path, first = Path(place) / f"{name}.npz", 0.0
            size.fold().save(path)
            for one in [each.submit(_trials, path, size.config, device, 0.0) for each in running]:
                one.result()
            for count in counts:
                done = [each.submit(_trials, path, size.config, device, window) for each in running[:count]]
                rate = 3600 * sum(trials / spent for trials, spent in (one.result() for one in done))
                first = first or rate
                row = {"size": name, "device": name_of(device), "processes": count, "trials_per_hour": rate}
                row |= {"seconds_per_trial": 3600 * count / rate, "speed_up": rate / first}
                rows.append(row | {"device_bytes_each": (used(device) - before) // len(running)})
    return rows


@contextmanager
def processes(count: int, device: str) -> Iterator[list[ProcessPoolExecutor]]:
    """Executors of one process each."""
    with ExitStack() as stack:
        made = [ProcessPoolExecutor(1, mp.get_context("spawn"), _pin, (device, count)) for _ in range(count)]
        yield [stack.enter_context(one) for one in made]


def used(device: str) -> int:
    """Bytes of the device's memory that are taken, by whomever; 0 on a CPU."""
    if torch.device(device).type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _trials(path: Path, config: NexusConfig, device: str, window: float) -> tuple[int, float]:
    """Train one memory after another until `window` seconds have passed; how many, and the seconds until the last."""
    fold, begun, count = _loaded(path), time.perf_counter(), 0
    while True:
        train_nexus(fold, config, count, device=device)
        count += 1
        if (spent := time.perf_counter() - begun) >= window:
            return count, spent


_loaded = functools.cache(Fold.load)
