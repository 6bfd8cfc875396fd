"""From a screen to `Fold` artifacts: split, genes, programs, cross-fitted base, manifold, traits."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mantra_ray.cascade.energy import LaplacianSmoother
from mantra_ray.cascade.programs import check_rank, fit_programs
from mantra_ray.cascade.ridge import design, fit_ridge
from mantra_ray.cascade.traits import trait_weights
from mantra_ray.config import ExperimentConfig, digest, identity
from mantra_ray.data.graph import coexpression_graph
from mantra_ray.data.screen import Screen
from mantra_ray.data.splits import Split, cross_fit_folds, make_split
from mantra_ray.errors import InputError
from mantra_ray.forward import Fold
from mantra_ray.provenance import code_version
from mantra_ray.training.distributed import Progress, Records, Unit, load_unit, run_units

CODE = ("cascade", "data", "forward", "training.stages", "training.distributed")


ATTEMPTS = 3  # at a unit whose file another run deletes before it is read


def _key(experiment: ExperimentConfig, data_sha256: str, sections: Sequence[str]) -> str:
    sections = (*sections, "seed")
    fields = {name: value for name, value in identity(experiment).items() if name.split(".")[0] in sections}
    return digest({"fields": fields, "data": data_sha256, "code": code_version(*CODE)})


def stage_key(experiment: ExperimentConfig, data_sha256: str) -> str:
    """Content hash (16 hex digits) of all that a fold depends on: neither the memory's settings nor the judging's."""
    return _key(experiment, data_sha256, ("data", "split", "programs", "grn", "manifold"))


class _Stage:
    """One experiment's fold on the way: rows, genes and units are known, predictions not yet."""

    def __init__(self, screen: Screen, experiment: ExperimentConfig, artifacts: Path):
        self.experiment = experiment
        self.key = stage_key(experiment, screen.sha256)
        self.path = artifacts / f"fold_{self.key}.npz"
        data, seed = screen.data, experiment.seed
        self.split: Split = make_split(data, experiment.split, seed)
        self.cross_fit = np.full(len(data.regulator), -1, np.int64)
        self.cross_fit[self.split.train] = cross_fit_folds(
            data, self.split.train, experiment.split.kind, experiment.grn.folds, seed
        )
        self.units: list[Unit] = []
        if data.delta_expression is None:
            return
        clip = experiment.data.clip
        changes = np.clip(data.delta_expression[self.split.train], -clip, clip)
        self.genes = variable_genes(changes, experiment.data.genes)
        base_key = _key(experiment, screen.sha256, ("data", "split", "grn"))  # the network knows no programs
        for fold in range(experiment.grn.folds):
            path = artifacts / "units" / f"{base_key}_{fold}.npz"
            rows = np.flatnonzero((self.cross_fit >= 0) & (self.cross_fit != fold))
            unit_seed = int(np.random.SeedSequence([seed, fold]).generate_state(1)[0])
            self.units.append(Unit(path, rows, self.genes, clip, experiment.grn, unit_seed))


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

    All missing networks of all experiments train in one TorchTrainer run (Ray must be initialised by the caller);
    finished networks and folds are reused, damaged networks trained again. Runs may share `artifacts`: what one
    of them finishes first, the other takes. Everything in a fold is made from its training rows alone. Raises
    InputError where data and config do not fit, or where trained networks do not arrive in `artifacts`.
    """
    artifacts = artifacts.resolve()  # workers run in folders of their own
    stages: dict[str, _Stage] = {}
    paths: dict[str, Path] = {}
    for experiment in experiments:
        key = stage_key(experiment, screen.sha256)
        paths[key] = artifacts / f"fold_{key}.npz"
        if key not in stages and not paths[key].exists():
            stages[key] = _Stage(screen, experiment, artifacts)
    waiting, made = list(stages.values()), []
    for _ in range(ATTEMPTS):
        _train_missing(screen, waiting, artifacts, workers, gpus, on_progress)
        for stage in waiting:
            if on_progress is not None:
                on_progress(len(made), len(stages), "programs, traits and manifold")
            results = [load_unit(unit.path) for unit in stage.units]
            if not stage.path.exists() and all(result is not None for result in results):
                assemble(screen, stage, results).save(stage.path)
                made.append(stage)
        waiting = [stage for stage in waiting if not stage.path.exists()]
        if not waiting:
            break
    for stage in waiting:
        problem = "trained networks do not arrive there: all nodes must share the folder"
        raise InputError(artifacts, "units", len(stage.units), problem)
    for unit in (unit for stage in made for unit in stage.units):
        unit.path.unlink(missing_ok=True)
    return paths


def _train_missing(
    screen: Screen, stages: Sequence[_Stage], artifacts: Path, workers: int, gpus: float, on_progress: Progress | None
) -> None:
    """Train the units whose files are missing or damaged."""
    units = {unit.path: unit for stage in stages for unit in stage.units}
    missing = [unit for path, unit in sorted(units.items()) if load_unit(path) is None]
    if not missing:
        return
    for unit in missing:
        unit.path.unlink(missing_ok=True)  # a damaged file would count as done
    artifacts.mkdir(parents=True, exist_ok=True)
    storage = Path(tempfile.mkdtemp(prefix="ray_", dir=artifacts))
    try:
        run_units(records_of(screen), missing, workers, gpus, storage, on_progress)
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def records_of(screen: Screen) -> Records:
    """What the networks read of a screen."""
    data = screen.data
    names = (data.gene_names, data.regulator_names)
    return Records(
        data.regulator, data.dose, data.state, data.delta_expression, *names, len(data.state_names), screen.graph
    )


def out_of_fold(per_fold: Sequence[np.ndarray], cross_fit: np.ndarray) -> np.ndarray:
    """Predictions [N, ·] from those of each fold's model.

    A training row takes its own fold's, from the model that did not train on it; the other rows take the mean of
    all, a committee that spares the training of one more network.
    """
    base = np.mean(per_fold, axis=0, dtype=np.float64).astype(np.float32)
    for fold, prediction in enumerate(per_fold):
        base[cross_fit == fold] = prediction[cross_fit == fold]
    return base


def calibration_slope(observed: np.ndarray, predicted: np.ndarray, cluster: np.ndarray) -> float:
    """Slope through the origin of observed on predicted changes [n, K], less one standard error, clipped to [0, 1].

    slope = sum(y x) / sum(x^2), with error = sqrt(sum over clusters of (sum in the cluster of x (y - slope x))^2) /
    sum(x^2): the cluster-robust sandwich (Liang and Zeger 1986, Biometrika 73:13), over clusters [n] (regulators,
    whose records err alike), so that a few strong regulators cannot vouch for predictions that do not generalise:
    those shrink to 0. The fold's programs and its expression are both scaled by the slope of the programs.
    """
    agreement, power = np.einsum("nk,nk->n", observed, predicted), np.einsum("nk,nk->n", predicted, predicted)
    total = float(power.sum(dtype=np.float64))
    if not total > 0:
        return 0.0
    slope = float(agreement.sum(dtype=np.float64)) / total
    error = np.sqrt(np.sum(np.bincount(cluster, agreement - slope * power) ** 2)) / total
    return float(np.clip(slope - error, 0, 1))


def assemble(screen: Screen, stage: _Stage, results: Sequence[dict[str, np.ndarray]]) -> Fold:
    """Put a fold together from its networks' results (or by ridge, without expression)."""
    data, split, config = screen.data, stage.split, stage.experiment
    train = split.train
    notes, seconds = list(screen.notes), {}
    expression: dict[str, np.ndarray | None]
    if data.delta_expression is None:
        program, noise = data.delta_program, np.zeros_like(data.delta_program)
        base, meta = _ridge_base(screen, stage), {"base": "ridge", "edges": 0, "regulators_in_graph": 0}
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
        smooth = _smoother(screen, stage, changes[train])
        predicted = smooth(out_of_fold([result["base"] for result in results], stage.cross_fit))
        program, base = changes @ loadings, predicted @ loadings
        se = data.delta_expression_se
        noise = np.zeros_like(program) if se is None else np.square(se[:, genes]) @ np.square(loadings)
        to_genes = smooth(np.linalg.solve(loadings.T.astype(np.float64) @ loadings, loadings.T))
        lift, programs = to_genes @ loadings, loadings.shape[1]
        expression = {
            "delta_expression": changes, "base_expression": predicted,
            "lift_expression": to_genes.astype(np.float32), "loadings": loadings,
        }  # fmt: skip
        meta = {
            "base": "gnn",
            "edges": int(np.mean([result["edges"] for result in results])),
            "regulators_in_graph": int(np.mean([result["regulators"] for result in results])),
        }
    slope = calibration_slope(program[train], base[train], data.regulator[train]) if config.grn.calibrate else 1.0
    base = base * np.float32(slope)
    if expression["base_expression"] is not None:
        expression["base_expression"] = expression["base_expression"] * np.float32(slope)
    theta, trait, trait_names = _traits(screen, genes, expression["loadings"], program, train, notes)
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
    return Fold(
        data.regulator, data.dose, data.state, data.strategy, data.group,
        split.train, split.validation, split.test, stage.cross_fit, screen.regulator_class,
        *(array.astype(np.float32) for array in (program, noise, base, lift, theta, trait)),
        **expression, names=names, meta=meta,
    )  # fmt: skip


def _loadings(screen: Screen, stage: _Stage, changes: np.ndarray) -> np.ndarray:
    """W [G, K] of the kept genes, given or fitted on the training rows' changes [n, G]."""
    if screen.loadings is None:
        return fit_programs(changes, stage.experiment.programs, stage.experiment.seed)
    loadings = screen.loadings[stage.genes]
    check_rank(loadings, "loadings of the kept genes (data.genes)")
    return loadings


def _smoother(screen: Screen, stage: _Stage, changes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The manifold's projection of [n, G]; the identity where it is off."""
    manifold = stage.experiment.manifold
    if not manifold.smooth:
        return lambda change: change
    genes = [screen.data.gene_names[i] for i in stage.genes]
    graph = coexpression_graph(changes, genes) if screen.graph is None else screen.graph.restrict(genes)
    return LaplacianSmoother(graph.source, graph.target, graph.weight, len(genes), manifold.smoothing)


def _ridge_base(screen: Screen, stage: _Stage) -> np.ndarray:
    """Cross-fitted ridge predictions of program changes [N, K], for data without expression."""
    data, cross_fit = screen.data, stage.cross_fit
    features = design(data.regulator, data.dose, data.state, len(data.regulator_names), len(data.state_names))
    per_fold = []
    for fold in range(stage.experiment.grn.folds):
        rows = np.flatnonzero((cross_fit >= 0) & (cross_fit != fold))
        per_fold.append(fit_ridge(features[rows], data.delta_program[rows]).predict(features))
    return out_of_fold(per_fold, cross_fit)


def _traits(
    screen: Screen,
    genes: np.ndarray,
    loadings: np.ndarray | None,
    program: np.ndarray,
    train: np.ndarray,
    notes: list[str],
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Trait weights [K, T], observed traits [N, T] and trait names; T is 0 where nothing is known of traits.

    Weights come from gene effects; where only observed traits are given, from a ridge on the training rows.
    """
    observed = screen.data.delta_trait
    if loadings is not None and screen.traits:
        theta = np.stack(
            [trait_weights(loadings, table.b[genes], table.se[genes])[0] for table in screen.traits.values()], axis=1
        )
        if observed is not None and tuple(screen.data.trait_names) == tuple(screen.traits):
            return theta, observed, list(screen.traits)
        if observed is not None:
            notes.append("the file's traits are not those of the gene effects, and are not used")
        return theta, program @ theta, list(screen.traits)
    if observed is not None:
        theta = fit_ridge(program[train], observed[train], intercept=False).coef_
        return theta.reshape(observed.shape[1], -1).T, observed, list(screen.data.trait_names)
    return np.zeros((program.shape[1], 0), np.float32), np.zeros((len(program), 0), np.float32), []
