"""One fold put together from its networks' results: programs, manifold, calibration, traits; many side by side."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
from ray.exceptions import RayTaskError
from threadpoolctl import threadpool_limits

from mantra_ray.cascade.programs import check_rank, fit_programs
from mantra_ray.config import ExperimentConfig
from mantra_ray.data.graph import Graph, coexpression_graph
from mantra_ray.data.screen import Screen
from mantra_ray.data.splits import Split
from mantra_ray.errors import InputError
from mantra_ray.evaluation.differential import significant_genes
from mantra_ray.evaluation.realism import judged_rows, realism
from mantra_ray.forward import Fold
from mantra_ray.training.crossfit import calibration_slope, out_of_fold, ridge_base
from mantra_ray.training.distributed import Unit, load_unit
from mantra_ray.training.energy import EnergyUnit, descended
from mantra_ray.training.networks import are_whole, save_networks, smoother
from mantra_ray.training.traits import fold_traits, gene_effects

DISTRIBUTE_FROM = 4e7  # entries; below, about ten seconds' work, starting Ray's workers costs more than it saves
SPARE = 2**30  # bytes of a process that puts a fold together: its libraries, and tables of one block of records


@dataclass(frozen=True, eq=False)
class Stage:
    """One experiment's fold on the way: rows, genes and units are known, predictions not yet."""

    experiment: ExperimentConfig
    key: str  # content hash of all that the fold depends on
    path: Path  # of the fold
    networks: Path  # of its networks, where there is expression
    split: Split
    cross_fit: np.ndarray  # [N] int64, cross-fitting fold of a training row, -1 elsewhere
    genes: np.ndarray  # columns that are kept; none without expression
    units: tuple[Unit, ...] = ()
    energies: tuple[EnergyUnit, ...] = ()  # one or none

    @property
    def done(self) -> bool:
        """Whether the fold is there, and the networks that expression takes."""
        return self.path.exists() and (not self.units or are_whole(self.networks))

    @property
    def entries(self) -> int:
        """Of an array [N, kept genes]."""
        return len(self.cross_fit) * len(self.genes)

    @property
    def bytes(self) -> int:
        """Most memory that putting the fold together takes, beside the screen.

        The networks' predictions [N, kept genes] and their copy that is averaged, and five arrays of that size more.
        """
        return SPARE + 4 * self.entries * (2 * len(self.units) + 5)


def write_fold(screen: Screen, stage: Stage) -> bool:
    """Put a fold together and write its files; False where it was there, or a unit's result is not or is damaged."""
    if stage.done:
        return False
    results = [load_unit(unit.path) for unit in [*stage.units, *stage.energies]]
    if any(result is None for result in results):
        return False
    # Products are summed in another order by more threads: a fold must not depend on how many are made at once.
    with threadpool_limits(1):
        fold, graph = assemble(screen, stage, results)
    if stage.units:  # the networks first, so that a fold is never without
        save_networks(stage.networks, results[: len(stage.units)], graph, stage.experiment.manifold.smoothing)
    fold.save(stage.path)
    return True


def write_folds(screen: Screen, stages: Sequence[Stage]) -> Iterator[tuple[Stage, bool]]:
    """What `write_fold` returns for each stage, in any order.

    Ray tasks of one CPU each, as many at once as their memory allows: every task reserves its share of what Ray gives
    to tasks on its node. One after the other in this process where Ray is not initialised, where not even two fit,
    which spares the screen's copy in the object store, and where there is little to do.
    """
    need = max((stage.bytes for stage in stages), default=0)
    work = sum(stage.entries for stage in stages)
    if len(stages) < 2 or work < DISTRIBUTE_FROM or not ray.is_initialized() or _fitting(need) < 2:
        for stage in stages:
            yield stage, write_fold(screen, stage)
        return
    shared = ray.put(dataclasses.replace(screen, controls=None))  # cells matter to networks and energy alone
    task = ray.remote(num_cpus=1, memory=need)(write_fold)
    running = {task.remote(shared, stage): stage for stage in stages}
    while running:
        (ready, *_), _ = ray.wait(list(running))
        try:
            yield running.pop(ready), ray.get(ready)
        except RayTaskError as error:
            for other in running:
                ray.cancel(other)
            raise (error.cause if isinstance(error.cause, InputError) else error) from None


def _fitting(need: int) -> int:
    """How many tasks that reserve `need` bytes the cluster holds at once."""
    nodes = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return sum(int(min(node.get("CPU", 0), node.get("memory", 0) // max(need, 1))) for node in nodes)


def assemble(screen: Screen, stage: Stage, results: Sequence[dict[str, np.ndarray]]) -> tuple[Fold, Graph | None]:
    """Put a fold together from its networks' results (or by ridge, without expression); also the manifold's graph.

    The last result is that of the energy, where there is one.
    """
    data, split, config = screen.data, stage.split, stage.experiment
    train, energy = split.train, None
    if stage.energies:
        *results, energy = results
    descends = energy is not None and config.manifold.energy
    notes, seconds = list(screen.notes), {}
    graph: Graph | None = None
    expression: dict[str, np.ndarray | None]
    if data.delta_expression is None:
        program, noise = data.delta_program, np.zeros_like(data.delta_program)
        base, meta = (
            ridge_base(data, stage.cross_fit, config.grn.folds),
            {"base": "ridge", "edges": 0, "regulators_in_graph": 0},
        )
        programs = base.shape[1]
        lift, genes = np.eye(programs, dtype=np.float32), np.arange(0)
        expression = dict.fromkeys(("delta_expression", "base_expression", "lift_expression", "loadings"))
    else:
        if data.delta_program is not None:
            notes.append("changes of programs are computed from expression; those in the file are not used")
        genes, clip = stage.genes, config.data.clip
        changes = np.clip(data.delta_expression[:, genes], -clip, clip).astype(np.float32)
        started = time.perf_counter()
        loadings = _loadings(screen, stage, changes[train])
        seconds["programs"] = time.perf_counter() - started
        seconds["grn"] = float(sum(result["seconds"] for result in results))
        graph = _manifold(screen, stage, changes[train])
        smooth = smoother(graph, config.manifold.smoothing)
        free = out_of_fold([result["base"] for result in results], stage.cross_fit)
        predicted = smooth(free)
        program, base = changes @ loadings, predicted @ loadings
        se = data.delta_expression_se
        noise = np.zeros_like(program) if se is None else np.square(se[:, genes]) @ np.square(loadings)
        to_genes = smooth(np.linalg.solve(loadings.T.astype(np.float64) @ loadings, loadings.T))
        lift, programs = to_genes @ loadings, loadings.shape[1]
        expression = {
            "delta_expression": changes, "base_expression": predicted,
            "lift_expression": to_genes.astype(np.float32), "loadings": loadings,
            "free_program": free @ loadings if graph is not None or descends else None,
            "significant": None if se is None else significant_genes(changes, se[:, genes]),
            **gene_effects(screen, genes),
        }  # fmt: skip
        meta = {
            "base": "gnn",
            "networks": stage.networks.name,
            "edges": int(np.mean([result["edges"] for result in results])),
            "regulators_in_graph": int(np.mean([result["regulators"] for result in results])),
        }
    slope = calibration_slope(program[train], base[train], data.regulator[train]) if config.grn.calibrate else 1.0
    base = base * np.float32(slope)
    for name in ("base_expression", "free_program"):
        if expression.get(name) is not None:
            expression[name] = expression[name] * np.float32(slope)
    if descends:
        more = descended(expression["base_expression"], data.state, energy, config.manifold)
        base, expression = more["base_expression"] @ expression["loadings"], expression | more
    if energy is not None:
        meta["energy"] = {name: float(energy[name]) for name in ("energy_error", "gaussian_error", "seconds")}
        seconds["energy"] = meta["energy"].pop("seconds")
    if expression["base_expression"] is not None:
        rows = judged_rows(split.test)
        changes = (expression[name][rows] for name in ("base_expression", "delta_expression"))
        meta["realism"] = realism(free[rows] * np.float32(slope), *changes, data.state[rows])
    theta, trait, trait_names = fold_traits(
        screen, genes, expression["loadings"], program, train, config.data.trait.ridge, notes
    )
    meta |= {"kind": config.split.kind, "seed": config.seed, "data": screen.sha256, "stage": stage.key}
    meta |= {"calibration": slope, "seconds": seconds, "notes": notes}
    given = len(screen.program_names) == programs
    names = {
        "regulator": list(data.regulator_names),
        "state": list(data.state_names),
        "strategy": list(data.strategy_names),
        "program": list(screen.program_names) if given else [f"program{i}" for i in range(programs)],
        "trait": trait_names,
        "gene": [data.gene_names[i] for i in genes],
    }
    fold = Fold(
        data.regulator, data.dose, data.state, data.strategy, data.group,
        split.train, split.validation, split.test, stage.cross_fit, screen.regulator_class,
        *(array.astype(np.float32) for array in (program, noise, base, lift, theta, trait)),
        **expression, names=names, meta=meta,
    )  # fmt: skip
    return fold, graph


def _loadings(screen: Screen, stage: Stage, changes: np.ndarray) -> np.ndarray:
    """W [G, K] of the kept genes, given or fitted on the training rows' changes [n, G]."""
    if screen.loadings is None:
        return fit_programs(changes, stage.experiment.programs, stage.experiment.seed)
    loadings = screen.loadings[stage.genes]
    check_rank(loadings, "loadings of the kept genes (data.genes)")
    return loadings


def _manifold(screen: Screen, stage: Stage, changes: np.ndarray) -> Graph | None:
    """The graph of the kept genes that the manifold smooths over; None where it is off."""
    if not stage.experiment.manifold.smooth:
        return None
    genes = [screen.data.gene_names[i] for i in stage.genes]
    known = screen.graph if stage.experiment.grn.prior in ("given", "both") else None
    return coexpression_graph(changes, genes) if known is None else known.restrict(genes)
