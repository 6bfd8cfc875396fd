"""Training of the GRN-GNN and of the energy on a GPU: a round against a dense adjacency, a step, and several GPUs."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mantra_ray.bench.grn import DOSES, STATES, Options, dense_operators, dense_round, least_bytes, make_inputs
from mantra_ray.bench.grn_reference import (
    SMALL,
    both,
    network_error,
    random_records,
    round_errors,
    round_tensors,
    sparse_round,
    widened,
)
from mantra_ray.bench.measured import Card, Row, deviation, peak_bytes, seconds
from mantra_ray.cascade import kernels
from mantra_ray.cascade.energy import BATCH as CELLS
from mantra_ray.cascade.energy import Energy, fit_energy
from mantra_ray.cascade.graph_inputs import GrnInputs
from mantra_ray.cascade.grn import Grn, fit_grn, grn_inputs, predict_grn, train_step
from mantra_ray.cascade.replicas import Replicas, Steps
from mantra_ray.cascade.rounds import SignedEdges
from mantra_ray.config import GrnConfig, ManifoldConfig

RATIO, SPEED_UP = 20.0, 1.8  # goals: of a dense adjacency's time, and on twice the GPUs at the same batch on each
KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of a round and its gradients, after a few roundings to 8 bits
WHOLE = {"float32": 1e-4, "bfloat16": 0.1}  # of the whole network (`network_error`)
POOL = 4  # batches that a step's records are drawn from
LOSSES = 5  # steps after which one worker and several must have had the same losses


@dataclass(frozen=True)
class Size:
    """What is measured."""

    genes: int = 20_000
    edges: int = 10  # a gene
    hidden: int = 128
    layers: int = 3
    batch: int = 64
    repeats: int = 10

    @property
    def options(self) -> Options:
        """As `mantra bench grn` takes it."""
        return Options(hidden=self.hidden, layers=self.layers, batch=self.batch)


QUICK = Size(genes=64, edges=5, hidden=8, batch=4, repeats=2)


def rows(card: Card, quick: bool) -> Iterator[Row]:
    """Sums over edges, rounds against dense ones, training steps, a whole fit, and the energy's steps."""
    size, seed = QUICK if quick else Size(), int(torch.randint(2**31, ()))
    inputs = make_inputs(size.genes, size.edges, 0)
    yield from round_rows(card, size, inputs, seed)
    for precision in KINDS:
        yield step_row(card, size, inputs, precision, seed)
    yield fit_row(card, quick, seed)
    yield energy_row(card, quick, seed)


def round_rows(card: Card, size: Size, inputs: GrnInputs, seed: int) -> Iterator[Row]:
    """The sums of a round alone, and a round forward and backward against the same with a dense adjacency.

    Floor of the sums: messages read once and sums written. Of a round: states read and written; backward the gradient,
    the result and the states read, and a gradient written; all else is made of these. A dense round in float32 is the
    measure for both types; the note tells of one in bfloat16.
    """
    device, nodes = card.device, len(inputs.features)
    edges, errors = SignedEdges(inputs, nodes, torch.device(device)), {}
    for name, kind in KINDS.items():
        errors[name], sums_error = round_errors(kind, device, seed)
        message = torch.randn(nodes, size.batch, size.hidden, device=device).to(kind)
        fast = kernels.available(message)
        plain = partial(edges.pass_along, message.float())
        work = partial(kernels.sums, edges.rows(), message) if fast else plain
        taken, floor = seconds(work, device, size.repeats), card.seconds(bytes=2 * message.nbytes)[0]
        note = f"{1e3 * taken:.2f} ms"
        if fast:
            note += f"; {1e3 * seconds(plain, device, size.repeats):.2f} ms by CSR products of float32"
        rate = partial(_rate, size.batch)
        yield Row(
            f"sums over edges, {name}", rate(taken), "records/s", rate(floor), "bytes", peak_bytes(work, device),
            sums_error, TOLERANCE[name], note=note,
        )  # fmt: skip
    dense = {}
    for name, kind in KINDS.items():
        operators = [matrix.to(kind) for matrix in dense_operators(inputs, edges, device)]
        tensors, *rest = round_tensors(nodes, size.batch, size.hidden, kind, device)
        dense[name] = seconds(partial(both, partial(dense_round, operators), tensors, *rest), device, size.repeats)
        del operators, tensors, rest
    for name, kind in KINDS.items():
        tensors, *rest = round_tensors(nodes, size.batch, size.hidden, kind, device)
        work = partial(both, partial(sparse_round, edges), widened(tensors), *rest)
        taken, floor = seconds(work, device, size.repeats), card.seconds(bytes=6 * tensors[0].nbytes)
        note = f"{1e3 * taken:.2f} ms; {dense[name] / taken:.1f} times a dense one in {name}"
        yield Row(
            f"GRN round against dense float32, {name}", dense["float32"] / taken, "x", dense["float32"] / floor[0],
            floor[1], peak_bytes(work, device), errors[name], TOLERANCE[name], RATIO, note,
        )  # fmt: skip


def _rate(records: int, taken: float) -> float:
    return records / taken


def step_row(card: Card, size: Size, inputs: GrnInputs, precision: str, seed: int) -> Row:
    """One worker's training step of the whole network, beside the least that its states' bytes take.

    Floor: `mantra_ray.bench.grn.least_bytes`, halved for bfloat16, or the products of the rounds from the third on:
    2 V B H^2 FLOP forward, twice that backward.
    """
    step = Step(size, inputs, precision, card.device, Replicas(), seed)
    taken = seconds(step, card.device, size.repeats)
    states = len(inputs.features) * size.batch * size.hidden
    moved = least_bytes(len(inputs.features), size.options) * KINDS[precision].itemsize // 4
    floor, bound = card.seconds(moved, 6 * states * size.hidden * max(0, size.layers - 2))
    note = f"{1e3 * taken:.2f} ms{where(step, card.device)}"
    return Row(
        f"GRN training step, {precision}", size.batch / taken, "records/s", size.batch / floor, bound,
        peak_bytes(step, card.device), network_error(precision, card.device, seed), WHOLE[precision], note=note,
    )  # fmt: skip


class Step:
    """Training steps of a network on random records of a pool, a fresh batch each time."""

    def __init__(self, size: Size, inputs: GrnInputs, precision: str, device: str, replicas: Replicas, seed: int):
        config = GrnConfig(hidden=size.hidden, layers=size.layers, precision=precision)
        torch.manual_seed(seed)
        self.model = Grn(inputs, config, device)
        optimiser = torch.optim.AdamW(self.model.parameters(), 1e-3, fused=True)
        self.steps, self.size = Steps(optimiser, 1e-3, 10**6, replicas), size
        self.rows = random_records(inputs, POOL * size.batch, device)
        self.target = torch.randn(POOL * size.batch, inputs.genes).to(device)
        self.draw = torch.Generator().manual_seed(seed)

    def __call__(self) -> torch.Tensor:
        batch = torch.randperm(len(self.target), generator=self.draw)[: self.size.batch].to(self.target.device)
        return train_step(self.model, self.steps, self.rows, self.target, batch)


def where(step: Callable, device: str, count: int = 5) -> str:
    """The kernels that a step spends most time in, on a GPU."""
    if torch.device(device).type != "cuda":
        return ""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize(device)
    longest = sorted(seen.key_averages(), key=lambda event: -event.self_device_time_total)[:count]
    return "; " + ", ".join(f"{event.key[:40]} {event.self_device_time_total / 1e3:.2f} ms" for event in longest)


def fit_row(card: Card, quick: bool, seed: int) -> Row:
    """A whole training in bfloat16, by its error on held-out records beside that of one in float32.

    The changes are planted one step down the graph, with noise; the floor is that of a step's bytes.
    """
    size = QUICK if quick else Size(genes=2_000, hidden=64)
    records, epochs = (96, 3) if quick else (1_500, 5)
    rng, graph = np.random.default_rng(seed), make_inputs(size.genes, size.edges, 0)
    regulator = rng.integers(0, len(graph.regulator_node), records)
    dose, state = rng.choice(DOSES, records).astype(np.float32), rng.integers(0, STATES, records)
    effect = np.zeros((len(graph.regulator_node), size.genes), np.float32)
    np.add.at(effect, (graph.source, graph.target), -graph.weight)
    changes = effect[regulator] * dose[:, None] + 0.3 * rng.standard_normal((records, size.genes), np.float32)
    train = np.arange(records) < 0.8 * records
    ends = graph.source, graph.target, graph.weight, graph.regulator_node
    inputs, who = grn_inputs(*ends, changes[train], STATES), (regulator, dose, state)
    errors, taken = {}, 0.0
    for precision in KINDS:
        config = GrnConfig(hidden=size.hidden, layers=3, epochs=epochs, precision=precision)
        started = time.perf_counter()
        model = fit_grn(inputs, *(array[train] for array in who), changes[train], config, seed, card.device)
        taken = time.perf_counter() - started
        predicted = predict_grn(model, inputs, *(array[~train] for array in who))
        errors[precision] = float(np.square(predicted - changes[~train]).mean())
    floor, bound = card.seconds(bytes=least_bytes(len(inputs.features), size.options) / 2)
    off, done = abs(errors["bfloat16"] / errors["float32"] - 1), epochs * int(train.sum())
    note = ", ".join(f"{name} {error:.4f}" for name, error in errors.items())
    return Row(
        "GRN fit, bfloat16: held-out error beside float32's", done / taken, "records/s", size.batch / floor, bound, 0,
        off, 0.02, note=f"held-out mean squared error {note}",
    )  # fmt: skip


def energy_row(card: Card, quick: bool, seed: int) -> Row:
    """Training steps of the energy, checked by its score beside one in float64.

    Floor: with F FLOP of the network for a cell, F forward, F for the score, and twice both for the gradient of their
    weights; in truth the launches of some 150 small kernels are the time taken.
    """
    updates, cells, genes = (5, 60, 20) if quick else (200, 2_000, 2_000)
    rng, config = np.random.default_rng(seed), ManifoldConfig(updates=updates, components=5 if quick else 30)
    profiles = rng.standard_normal((cells, 6), np.float32) @ rng.standard_normal((6, genes), np.float32)
    profiles += rng.standard_normal(profiles.shape, np.float32)
    taken = []
    for count in (0, updates):
        settings = ManifoldConfig(**vars(config) | {"updates": count})
        started = time.perf_counter()
        energy, _ = fit_energy(profiles, np.arange(cells) % 2, 2, np.arange(genes), settings, seed, card.device)
        taken.append(time.perf_counter() - started)
    rate = CELLS * updates / max(taken[1] - taken[0], 1e-9)
    y = torch.randn(64, genes).to(card.device)
    exact: Energy = copy.deepcopy(energy).double()
    off = deviation(energy.gradient(y)[1], exact.gradient(y.double())[1])
    width, hidden = energy.axes.shape[1] + 1, config.hidden
    floor, bound = card.seconds(flop=6 * 2 * (width * hidden + hidden**2 + hidden))
    return Row("energy training step", rate, "cells/s", 1 / floor, bound, 0, off, 1e-4, note="bound by launches")


def scaling(gpus: int = 2, quick: bool = False) -> dict[str, Any]:
    """Seconds of a training step on one worker and on `gpus`, with as many records on each and with as many in all.

    Each worker is a process with a GPU of its own, over NCCL; on a CPU over gloo. First the losses of a few steps in
    float32 are compared at the same global batch: `error`, relative to the largest. `weak` is the speed-up at the
    same batch on each worker, `strong` at the same global batch.
    """
    one, several = (_spawn(count, quick) for count in (1, gpus))
    error = deviation(several["losses"], one["losses"])
    taken = {"one": one["seconds"][0], "weak": several["seconds"][0], "strong": several["seconds"][1]}
    return {
        "gpus": gpus, "device": one["device"], "batch": one["batch"], "precision": one["precision"],
        **{f"{name}_seconds": value for name, value in taken.items()},
        "weak": gpus * taken["one"] / taken["weak"], "strong": taken["one"] / taken["strong"],
        "goal": SPEED_UP, "error": error, "tolerance": 1e-4, "sound": error <= 1e-4,
    }  # fmt: skip


def _spawn(count: int, quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, (count, folder, quick), nprocs=count)
        return torch.load(Path(folder) / "found.pt", weights_only=True)


def _worker(rank: int, count: int, folder: str, quick: bool) -> None:
    """One of `count` workers that take the same steps; the first writes what was found."""
    cuda, size = torch.cuda.is_available() and not quick, QUICK if quick else Size()
    device, precision = (f"cuda:{rank}", "bfloat16") if cuda else ("cpu", "float32")
    if cuda:
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    dist.init_process_group("nccl" if cuda else "gloo", init_method=meet, rank=rank, world_size=count)
    replicas = Replicas(dist.group.WORLD if count > 1 else None)
    small = Size(*SMALL[:3], batch=7)  # which two workers cannot share evenly
    step = Step(small, make_inputs(small.genes, small.edges, 1), "float32", device, replicas, 1)
    losses = torch.stack([replicas.sum(step()) for _ in range(LOSSES)]).cpu()
    inputs, taken = make_inputs(size.genes, size.edges, 0), []
    for batch in dict.fromkeys((count * size.batch, size.batch)):
        step = Step(Size(**vars(size) | {"batch": batch}), inputs, precision, device, replicas, 0)
        taken.append(seconds(step, device, size.repeats))
    if rank == 0:
        name = torch.cuda.get_device_name(rank) if cuda else "CPU"
        found = {"seconds": taken, "losses": losses, "device": name, "batch": size.batch, "precision": precision}
        torch.save(found, Path(folder) / "found.pt")
    dist.destroy_process_group()
