"""Units of training (cross-fitted GRN-GNNs, energies) on the workers of one Ray Train run, side by side or in teams."""

from __future__ import annotations

import io
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mantra_ray.cascade.energy import Energy
from mantra_ray.cascade.graph_inputs import GrnInputs
from mantra_ray.cascade.grn import Penalty, fit_grn, grn_inputs, predict_grn
from mantra_ray.cascade.replicas import Replicas
from mantra_ray.config import GrnConfig
from mantra_ray.data.graph import Graph, coexpression_graph, union
from mantra_ray.data.screen import Controls
from mantra_ray.fields import digest
from mantra_ray.files import atomic
from mantra_ray.training.networks import network_arrays
from mantra_ray.training.replicas import TrainingUnit, groups, needed, rounds
from mantra_ray.training.state import Keeper
from mantra_ray.training.state import Progress as Course

Progress = Callable[[int, int, str], None]
STATE = ".state"  # of the file from which a unit's training goes on
RETRIES = 2  # of all workers, when one of them dies; units that are done stay done


@dataclass(frozen=True)
class Records:
    """The arrays that all units share; through the object store they are mapped, not copied."""

    regulator: np.ndarray  # [N] int64
    dose: np.ndarray  # [N] float32
    state: np.ndarray  # [N] int64
    delta_expression: np.ndarray  # [N, all genes] float32
    gene_names: tuple[str, ...]
    regulator_names: tuple[str, ...]
    states: int
    graph: Graph | None  # the given one
    controls: Controls | None = None  # unperturbed cells, for the energy and for co-expression
    regulator_class: np.ndarray | None = None  # [R] int64, -1 where unknown


@dataclass(frozen=True)
class Unit:
    """One network to train: the complement of one cross-fitting fold."""

    path: Path  # of its predictions and its network, named by the hash of all that they depend on
    rows: np.ndarray  # records to train on
    genes: np.ndarray  # columns that are kept
    clip: float  # changes are clipped to plus or minus this
    config: GrnConfig
    seed: int
    energy: Path | None = None  # of predicted states, which is part of the loss
    penalty: float = 0.0  # its weight

    @property
    def cost(self) -> int:
        """What its training time grows with."""
        return len(self.rows) * len(self.genes) * self.config.epochs * self.config.hidden

    @property
    def replicas(self) -> int:
        """Workers that train it together; 0: one, and those that would be idle."""
        return self.config.replicas

    def train(
        self, records: Records, device: torch.device | str = "cpu", replicas: Replicas | None = None
    ) -> dict[str, np.ndarray]:
        """As `train_unit`."""
        return train_unit(records, self, device, replicas)


def node_names(gene_names: Sequence[str], regulator_names: Sequence[str]) -> list[str]:
    """The network's nodes: the kept genes, then the regulators that are not among them."""
    genes = set(gene_names)
    return [*gene_names, *(name for name in regulator_names if name not in genes)]


def graph_of(records: Records, unit: Unit, changes: np.ndarray, nodes: Sequence[str]) -> Graph:
    """The graph on the network's nodes that the unit's config asks for; `changes` [n, G] are those it trains on."""
    config, genes = unit.config, nodes[: len(unit.genes)]
    none = Graph(tuple(nodes), *(np.zeros(0, kind) for kind in (np.int64, np.int64, np.float32)))
    given = none if records.graph is None or config.prior in ("coexpression", "none") else records.graph.restrict(nodes)
    if config.prior == "none" or (config.prior == "given" and records.graph is not None):
        return given
    profiles = changes
    if records.controls is not None and config.prior != "given":
        profiles, state = records.controls.profiles[:, unit.genes], records.controls.state
        for s in np.unique(state):  # how states differ is no regulation
            profiles[state == s] -= profiles[state == s].mean(0)
    return union(given, coexpression_graph(profiles, genes, config.top_k, config.threshold).restrict(nodes))


def course_of(unit: TrainingUnit, seed: int, replicas: Replicas) -> Course:
    """How far a unit's training is; its state lies beside its file, from where a killed worker's successor goes on."""
    return Course(seed, keeper=Keeper(state_of(unit), unit.path.stem, replicas=replicas))


def state_of(unit: TrainingUnit) -> Path:
    """File of the state of a unit's training; it is gone once the unit is done."""
    return unit.path.with_suffix(STATE)


def curves_of(course: Course) -> dict[str, np.ndarray]:
    """What a training told, by name: an array [epochs]."""
    names = dict.fromkeys(row["metric"] for row in course.rows)
    return {name: np.array([row["value"] for row in course.rows if row["metric"] == name]) for name in names}


def train_unit(
    records: Records, unit: Unit, device: torch.device | str = "cpu", replicas: Replicas | None = None
) -> dict[str, np.ndarray]:
    """Train one unit's network and predict all records.

    Returns base [N, G] float32, the network's number of edges and of regulators with edges, the seconds taken, the
    training's `loss` [epochs], and what the network is rebuilt from (`network_arrays`). Of several replicas the first
    has all predictions. Only `unit.rows` of the changes are looked at.
    """
    started, replicas = time.perf_counter(), replicas or Replicas()
    changes = np.clip(records.delta_expression[np.ix_(unit.rows, unit.genes)], -unit.clip, unit.clip)
    inputs = replicas.same(lambda: _inputs(records, unit, changes))
    who = (records.regulator, records.dose, records.state)
    mine = (array[unit.rows] for array in who)
    classes, penalty = records.regulator_class, _penalty(unit, device)
    with torch.random.fork_rng(devices=[]):  # the course seeds torch's own generator, which is the caller's
        course = course_of(unit, unit.seed, replicas)
        course.recall()
        model = fit_grn(inputs, *mine, changes, unit.config, unit.seed, device, penalty, classes, replicas, course)
    base = predict_grn(model, inputs, *who, replicas=replicas)
    connected = np.isin(inputs.regulator_node, np.concatenate([inputs.source, inputs.target])).sum()
    numbers = {"edges": len(inputs.source), "regulators": connected, "seconds": time.perf_counter() - started}
    numbers = {name: np.array(value) for name, value in numbers.items()}
    return {"base": base, **numbers, **curves_of(course), **network_arrays(model, inputs, unit.config)}


def _inputs(records: Records, unit: Unit, changes: np.ndarray) -> GrnInputs:
    """What the network knows of its graph and of the changes [n, G] that it trains on."""
    genes = [records.gene_names[i] for i in unit.genes]
    nodes = node_names(genes, records.regulator_names)
    place = {name: i for i, name in enumerate(nodes)}
    regulator_node = np.array([place[name] for name in records.regulator_names], np.int64)
    graph = graph_of(records, unit, changes, nodes)
    return grn_inputs(graph.source, graph.target, graph.weight, regulator_node, changes, records.states)


def _penalty(unit: Unit, device: torch.device | str) -> Penalty | None:
    """The weighted mean relative energy of predicted states, where the unit asks for it."""
    if unit.energy is None or not unit.penalty:
        return None
    arrays = load_unit(unit.energy)
    if arrays is None:
        raise FileNotFoundError(f"{unit.energy}: the energy is not there, or damaged")
    energy = Energy.from_arrays(arrays, device)
    return lambda change, state: unit.penalty * energy.relative(change, state).mean()


def save_unit(unit: TrainingUnit, result: dict[str, np.ndarray]) -> None:
    """Write a unit's result atomically."""
    with atomic(unit.path) as partial, partial.open("wb") as handle:
        np.savez(handle, **result)


def load_unit(path: Path) -> dict[str, np.ndarray] | None:
    """Read what `save_unit` wrote; None if the file is not there or damaged, so that the unit must be trained."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        return None


def _worker_loop(config: dict) -> None:
    """What each worker runs: its part in the teams of all rounds, with one report a round.

    `ray.train.report` waits for all ranks, so a rank without a team in a round reports all the same. It tells of the
    unit, whose losses are those of the whole team, and of the seconds that this rank took.
    """
    import ray
    import ray.train
    from ray.train.torch import get_device

    records: Records = ray.get(config["records"])
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    plan = rounds(config["units"], config["workers"], config["own_gpu"])
    places = groups(plan, config["own_gpu"])
    rank = ray.train.get_context().get_world_rank()
    for turn, teams in enumerate(plan):
        told: dict = {"round": turn + 1}
        for team in teams:
            if rank in team.ranks:
                told |= train_and_save(team.unit, records, device, places[team.ranks])
        ray.train.report(told)


def train_and_save(
    unit: TrainingUnit, records: Records, device: torch.device | str, replicas: Replicas
) -> dict[str, float | str | list[float]]:
    """Train a unit unless its file is there, after a restart, and leave the file; what is to be told of it."""
    told = {"unit": unit.path.stem, "replicas": replicas.count}
    if replicas.same(lambda: load_unit(unit.path) is not None):
        return told
    result = unit.train(records, device, replicas)
    if replicas.first:
        save_unit(unit, result)
        state_of(unit).unlink(missing_ok=True)
    told |= {name: result[name].tolist() for name in ("loss", "held_out") if name in result}
    return told | {"seconds": float(result["seconds"])}


def run_units(
    records: Records,
    units: Sequence[TrainingUnit],
    workers: int,
    gpus: float,
    storage: Path,
    on_progress: Progress | None = None,
) -> None:
    """Train units on one TorchTrainer and leave their files; Ray must be initialised.

    Each worker takes one CPU and `gpus` of a GPU. Workers without a unit of their own join another's where the unit
    leaves their number open and each has a whole GPU (`rounds`). `storage` is the folder of Ray's own files and must
    be shared by all nodes, like the units' paths.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    own_gpu = gpus >= 1
    workers = needed(units, max(1, workers), own_gpu)
    resources = {"CPU": 1} | ({"GPU": gpus} if gpus else {})
    name = f"grn_{digest([str(unit.path) for unit in units])}"
    trainer = TorchTrainer(
        _worker_loop,
        train_loop_config={
            "records": ray.put(records),
            "units": list(units),
            "workers": workers,
            "own_gpu": own_gpu,
        },
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus > 0, resources_per_worker=resources),
        torch_config=TorchConfig(backend="gloo"),  # of all workers; teams make groups of their own
        run_config=RunConfig(
            name=name, storage_path=str(storage.resolve()), failure_config=FailureConfig(max_failures=RETRIES)
        ),
    )
    # In the main thread Train would put its own handler of Ctrl-C in the place of ours, for good.
    ended: Future = Future()
    threading.Thread(target=_fit, args=(trainer, ended), daemon=True).start()
    _watch(units, ended, on_progress)
    try:
        ended.result()
    except WorkerGroupError as error:
        for failure in error.worker_failures.values():
            cause = getattr(failure, "_base_exc", failure)
            if isinstance(cause, OSError):  # a full disk, say, which is to be told as such
                raise cause from error
        raise


def _fit(trainer, ended: Future) -> None:
    try:
        ended.set_result(trainer.fit())
    except BaseException as error:
        ended.set_exception(error)


def _watch(units: Sequence[TrainingUnit], ended: Future, on_progress: Progress | None) -> None:
    """Tell `on_progress` how many units lie on disk, each time that there are more."""
    told = -1
    while True:
        last = bool(wait([ended], 0.5).done)  # read before counting, so that the final count is complete
        done = sum(unit.path.exists() for unit in units)
        if done != told and on_progress is not None:
            on_progress(done, len(units), "GRN-GNN cross-fitting")
            told = done
        if last:
            return
