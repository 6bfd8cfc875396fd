"""From a screen to `Fold` artifacts: split, genes, programs, cross-fitted base, manifold, traits."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mantra_ray.cascade.programs import check_rank, fit_programs
from mantra_ray.config import ExperimentConfig
from mantra_ray.data.controls import graph_wanted
from mantra_ray.data.graph import Graph, coexpression_graph
from mantra_ray.data.screen import Screen
from mantra_ray.data.splits import Split, cross_fit_folds, make_split
from mantra_ray.errors import InputError
from mantra_ray.evaluation.differential import significant_genes
from mantra_ray.evaluation.realism import judged_rows, realism
from mantra_ray.fields import digest, identity
from mantra_ray.forward import Fold
from mantra_ray.provenance import code_version
from mantra_ray.training.crossfit import calibration_slope, out_of_fold, ridge_base
from mantra_ray.training.distributed import Progress, Records, TrainingUnit, Unit, load_unit, run_units
from mantra_ray.training.energy import EnergyUnit, descended, energy_units
from mantra_ray.training.networks import are_whole, save_networks, smoother
from mantra_ray.training.traits import fold_traits, gene_effects

CODE = (
    "cascade",
    "data",
    "forward",
    "evaluation.differential",
    "evaluation.realism",
    *(f"training.{name}" for name in ("stages", "crossfit", "distributed", "energy", "networks", "traits")),
)

ATTEMPTS = 3  # at a unit whose file another run deletes before it is read


def _key(experiment: ExperimentConfig, data_sha256: str, sections: Sequence[str]) -> str:
    sections = (*sections, "seed")
    fields = {name: value for name, value in identity(experiment).items() if name.split(".")[0] in sections}
    return digest({"fields": fields, "data": data_sha256, "code": code_version(*CODE)})


def stage_key(experiment: ExperimentConfig, data_sha256: str) -> str:
    """Content hash (16 hex digits) of all that a fold depends on: neither the memory's settings nor the judging's."""
    return _key(experiment, data_sha256, ("data", "split", "programs", "grn", "manifold"))


def files(artifacts: Path, key: str) -> tuple[Path, Path]:
    """A stage's fold, and the file of its networks, which the fold names in `meta["networks"]`."""
    return artifacts / f"fold_{key}.npz", artifacts / f"grn_{key}.pt"


def is_done(screen: Screen, artifacts: Path, key: str) -> bool:
    """Whether a stage's fold is there, and the networks that expression takes."""
    fold, networks = files(artifacts, key)
    return fold.exists() and (screen.data.delta_expression is None or are_whole(networks))


class _Stage:
    """One experiment's fold on the way: rows, genes and units are known, predictions not yet."""

    def __init__(self, screen: Screen, experiment: ExperimentConfig, artifacts: Path):
        self.experiment = experiment
        self.key = stage_key(experiment, screen.sha256)
        self.path, self.networks = files(artifacts, self.key)
        data, seed = screen.data, experiment.seed
        self.split: Split = make_split(data, experiment.split, seed)
        self.cross_fit = np.full(len(data.regulator), -1, np.int64)
        self.cross_fit[self.split.train] = cross_fit_folds(
            data, self.split.train, experiment.split.kind, experiment.grn.folds, seed
        )
        self.units: list[Unit] = []
        self.energies: list[EnergyUnit] = []  # one or none
        if data.delta_expression is None:
            return
        clip = experiment.data.clip
        changes = np.clip(data.delta_expression[self.split.train], -clip, clip)
        self.genes = variable_genes(changes, experiment.data.genes)
        self.energies = energy_units(screen, experiment, self.genes, artifacts)
        # The network knows no programs, and the manifold's cells only where they make its graph.
        sections = ("data", "split", "grn", *(["manifold"] if graph_wanted(experiment) else []))
        base_key = _key(experiment, screen.sha256, sections)
        penalty = experiment.manifold.penalty if self.energies else 0.0
        if (energy := self.energies[0].path if penalty else None) is not None:
            base_key = digest([base_key, energy.stem, penalty])
        for fold in range(experiment.grn.folds):
            path = artifacts / "units" / f"{base_key}_{fold}.npz"
            rows = np.flatnonzero((self.cross_fit >= 0) & (self.cross_fit != fold))
            unit_seed = int(np.random.SeedSequence([seed, fold]).generate_state(1)[0])
            self.units.append(Unit(path, rows, self.genes, clip, experiment.grn, unit_seed, energy, penalty))

    def save(self, screen: Screen, results: Sequence[dict[str, np.ndarray]]) -> None:
        """Write the files; the networks first, so that a fold is never without."""
        fold, graph = assemble(screen, self, results)
        if self.units:
            save_networks(self.networks, results[: len(self.units)], graph, self.experiment.manifold.smoothing)
        fold.save(self.path)


def variable_genes(changes: np.ndarray, count: int) -> np.ndarray:
    """Columns of the `count` largest variances over training rows [n, G], ascending; 0 keeps all."""
    if not 0 < count < changes.shape[1]:
        return np.arange(changes.shape[1])
    return np.sort(np.argsort(-changes.var(0, dtype=np.float64), kind="stable")[:count])


def make_folds(
    screen: Screen,
    experiments: Sequence[ExperimentConfig],
    artifacts: Path,
    workers: int,
    gpus: float,
    on_progress: Progress | None = None,
) -> dict[str, Path]:
    """Make the folds that are missing and return all of them, stage key to file.

    All missing networks of all experiments train in one TorchTrainer run (Ray must be initialised by the caller), and
    with them the energies, or before them where a network's loss needs one. Energies stay for later runs;
    finished networks and folds are reused, damaged networks trained again. The networks stay beside the fold, for
    what goes on from them. Runs may share `artifacts`: what one finishes first, the other takes. Everything in a
    fold is made from its training rows alone. Raises InputError where data and config do not fit, or where trained
    networks do not arrive in `artifacts`.
    """
    artifacts = artifacts.resolve()  # workers run in folders of their own
    stages: dict[str, _Stage] = {}
    paths: dict[str, Path] = {}
    for experiment in experiments:
        key = stage_key(experiment, screen.sha256)
        paths[key] = files(artifacts, key)[0]
        if key not in stages and not is_done(screen, artifacts, key):
            stages[key] = _Stage(screen, experiment, artifacts)
    waiting, made = list(stages.values()), []
    for _ in range(ATTEMPTS):
        networks = [unit for stage in waiting for unit in stage.units]
        energies = [unit for stage in waiting for unit in stage.energies]
        before = energies if any(unit.energy for unit in networks) else []  # what the loss of networks needs
        for units in (before, [*energies, *networks]):
            _train_missing(records_of(screen), units, artifacts, workers, gpus, on_progress)
        for stage in waiting:
            if on_progress is not None:
                on_progress(len(made), len(stages), "programs, traits and manifold")
            results = [load_unit(unit.path) for unit in [*stage.units, *stage.energies]]
            if not is_done(screen, artifacts, stage.key) and all(result is not None for result in results):
                stage.save(screen, results)
                made.append(stage)
        waiting = [stage for stage in waiting if not is_done(screen, artifacts, stage.key)]
        if not waiting:
            break
    for stage in waiting:
        problem = "trained networks do not arrive there: all nodes must share the folder"
        raise InputError(artifacts, "units", len(stage.units), problem)
    for unit in (unit for stage in made for unit in stage.units):
        unit.path.unlink(missing_ok=True)
    return paths


def _train_missing(
    records: Records,
    units: Sequence[TrainingUnit],
    artifacts: Path,
    workers: int,
    gpus: float,
    on_progress: Progress | None,
) -> None:
    """Train the units whose files are missing or damaged; a unit may be listed more than once."""
    listed = {unit.path: unit for unit in units}
    missing = [unit for path, unit in sorted(listed.items()) if load_unit(path) is None]
    if not missing:
        return
    for unit in missing:
        unit.path.unlink(missing_ok=True)  # a damaged file would count as done
    artifacts.mkdir(parents=True, exist_ok=True)
    storage = Path(tempfile.mkdtemp(prefix="ray_", dir=artifacts))
    try:
        run_units(records, missing, workers, gpus, storage, on_progress)
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def records_of(screen: Screen) -> Records:
    """What the networks read of a screen."""
    data = screen.data
    names = (data.gene_names, data.regulator_names)
    given = (screen.graph, screen.controls, screen.regulator_class)
    return Records(data.regulator, data.dose, data.state, data.delta_expression, *names, len(data.state_names), *given)


def assemble(screen: Screen, stage: _Stage, results: Sequence[dict[str, np.ndarray]]) -> tuple[Fold, Graph | None]:
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


def _loadings(screen: Screen, stage: _Stage, changes: np.ndarray) -> np.ndarray:
    """W [G, K] of the kept genes, given or fitted on the training rows' changes [n, G]."""
    if screen.loadings is None:
        return fit_programs(changes, stage.experiment.programs, stage.experiment.seed)
    loadings = screen.loadings[stage.genes]
    check_rank(loadings, "loadings of the kept genes (data.genes)")
    return loadings


def _manifold(screen: Screen, stage: _Stage, changes: np.ndarray) -> Graph | None:
    """The graph of the kept genes that the manifold smooths over; None where it is off."""
    if not stage.experiment.manifold.smooth:
        return None
    genes = [screen.data.gene_names[i] for i in stage.genes]
    known = screen.graph if stage.experiment.grn.prior in ("given", "both") else None
    return coexpression_graph(changes, genes) if known is None else known.restrict(genes)
