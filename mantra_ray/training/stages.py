"""From a screen to `Fold` artifacts: what each depends on, the units that it needs, and the making of all."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mantra_ray.config import DataConfig, ExperimentConfig
from mantra_ray.data.controls import graph_wanted
from mantra_ray.data.screen import Screen
from mantra_ray.data.splits import cross_fit_folds, make_split
from mantra_ray.errors import InputError
from mantra_ray.fields import digest, identity
from mantra_ray.files import unfinished
from mantra_ray.provenance import code_version
from mantra_ray.training.assemble import Stage, write_folds
from mantra_ray.training.distributed import STATE, Progress, Records, Unit, load_unit, run_units
from mantra_ray.training.energy import energy_units
from mantra_ray.training.networks import are_whole
from mantra_ray.training.replicas import TrainingUnit
from mantra_ray.training.state import clear_states

CODE = (
    "cascade",
    "data",
    "forward",
    "evaluation.differential",
    "evaluation.realism",
    *(f"training.{name}" for name in ("stages", "assemble", "crossfit", "distributed", "energy", "networks")),
    *(f"training.{name}" for name in ("replicas", "state", "traits")),
)

ATTEMPTS = 3  # at a unit whose file another run deletes before it is read
ROOM = 2**16  # bytes that must be free when training starts
ASSEMBLY = "programs, traits and manifold"


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


class Planner:
    """Plans the stages of a screen; what is slow to choose and the same for several of them is chosen once."""

    def __init__(self, screen: Screen, artifacts: Path):
        self.screen, self.artifacts = screen, artifacts
        self._genes: dict[tuple, np.ndarray] = {}  # by training rows and settings

    def stage(self, experiment: ExperimentConfig) -> Stage:
        """An experiment's fold on the way. Raises InputError where data and config do not fit."""
        screen, data, seed = self.screen, self.screen.data, experiment.seed
        key = stage_key(experiment, screen.sha256)
        split = make_split(data, experiment.split, seed)
        cross_fit = np.full(len(data.regulator), -1, np.int64)
        cross_fit[split.train] = cross_fit_folds(data, split.train, experiment.split.kind, experiment.grn.folds, seed)
        stage = Stage(experiment, key, *files(self.artifacts, key), split, cross_fit, np.arange(0))
        if data.delta_expression is None:
            return stage
        clip, genes = experiment.data.clip, self._kept(split.train, experiment.data)
        energies = energy_units(screen, experiment, genes, self.artifacts)
        # The network knows no programs, and the manifold's cells only where they make its graph.
        sections = ("data", "split", "grn", *(["manifold"] if graph_wanted(experiment) else []))
        base_key = _key(experiment, screen.sha256, sections)
        penalty = experiment.manifold.penalty if energies else 0.0
        if (energy := energies[0].path if penalty else None) is not None:
            base_key = digest([base_key, energy.stem, penalty])
        units = []
        for fold in range(experiment.grn.folds):
            path = self.artifacts / "units" / f"{base_key}_{fold}.npz"
            rows = np.flatnonzero((cross_fit >= 0) & (cross_fit != fold))
            unit_seed = int(np.random.SeedSequence([seed, fold]).generate_state(1)[0])
            units.append(Unit(path, rows, genes, clip, experiment.grn, unit_seed, energy, penalty))
        return dataclasses.replace(stage, genes=genes, units=tuple(units), energies=tuple(energies))

    def _kept(self, train: np.ndarray, config: DataConfig) -> np.ndarray:
        chosen = (train.tobytes(), config.clip, config.genes)
        if chosen not in self._genes:
            changes = np.clip(self.screen.data.delta_expression[train], -config.clip, config.clip)
            self._genes[chosen] = variable_genes(changes, config.genes)
        return self._genes[chosen]


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
    finished networks and folds are reused, damaged networks trained again. Folds are put together side by side, as
    far as memory goes. The networks stay beside the fold, for
    what goes on from them. Runs may share `artifacts`: what one finishes first, the other takes. Everything in a
    fold is made from its training rows alone. Raises InputError where data and config do not fit, or where trained
    networks do not arrive in `artifacts`.
    """
    artifacts = artifacts.resolve()  # workers run in folders of their own
    planner, stages, paths = Planner(screen, artifacts), {}, {}
    for experiment in experiments:
        key = stage_key(experiment, screen.sha256)
        if key not in paths and not is_done(screen, artifacts, key):
            stages[key] = planner.stage(experiment)
        paths[key] = files(artifacts, key)[0]
    waiting, made = list(stages.values()), []
    for _ in range(ATTEMPTS):
        networks = [unit for stage in waiting for unit in stage.units]
        energies = [unit for stage in waiting for unit in stage.energies]
        before = energies if any(unit.energy for unit in networks) else []  # what the loss of networks needs
        for units in (before, [*energies, *networks]):
            _train_missing(records_of(screen), units, artifacts, workers, gpus, on_progress)
        if waiting and on_progress is not None:
            on_progress(len(made), len(stages), ASSEMBLY)
        for stage, mine in write_folds(screen, waiting):
            made += [stage] * mine
            if on_progress is not None:
                on_progress(len(made), len(stages), ASSEMBLY)
        waiting = [stage for stage in waiting if not stage.done]
        if not waiting:
            break
    for stage in waiting:
        problem = "trained networks do not arrive there: all nodes must share the folder"
        raise InputError(artifacts, "units", len(stage.units), problem)
    over = [unit.path for stage in made for unit in stage.units]
    for path in over:
        path.unlink(missing_ok=True)
    clear_states(artifacts / "units", STATE, {path.stem for path in over})
    clear_states(artifacts, STATE)
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
    room = unfinished(artifacts / "room")
    try:
        room.write_bytes(bytes(ROOM))  # Train would wait for ever where it cannot write its state
    finally:
        room.unlink(missing_ok=True)
    storage = unfinished(artifacts / "ray")
    storage.mkdir(exist_ok=True)
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
