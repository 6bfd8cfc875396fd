"""Unperturbed cells, which the energy of cell states is learned on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mantra_ray.config import ExperimentConfig, SimulationConfig
from mantra_ray.data.fetch import hash_file
from mantra_ray.data.network import cell_states, grow, settle
from mantra_ray.data.screen import Controls, Screen
from mantra_ray.data.tables import read_matrix, read_table, some
from mantra_ray.errors import InputError

LEAST = 8  # cells that a density can be learned on at all
CELL_REGULATORS = 0.7  # log2, spread of a regulator's drive over simulated cells of a state
CELL_GENES = 0.2  # log2, of any gene's


def control_cells(config: SimulationConfig, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Log2 expression [count, G] float32 of unperturbed cells, and their states [count], in turn.

    Cells vary by their regulators' own drive, which passes through the network, and a little by each gene's. They
    surround the steady state that the screen's changes are measured against, in the same units; they carry no noise
    of counting, and draw nothing from the screen's random streams.
    """
    rng = np.random.default_rng([config.seed, 3])
    network = grow(config, rng)
    rng.permutation(config.regulators * len(config.doses) * config.states)  # what `simulate` draws in between
    states, cells = np.arange(count) % config.states, np.zeros((count, config.genes), np.float32)
    noise = np.random.default_rng([config.seed, 6])
    for s, (weights, drive) in enumerate(cell_states(config, network, rng)):
        rows = np.flatnonzero(states == s)
        varied = drive + noise.normal(0, CELL_GENES, (len(rows), len(network.module)))
        varied[:, network.genes] += noise.normal(0, CELL_REGULATORS, (len(rows), config.regulators))
        settled = settle(weights, varied, network.genes, np.full(len(rows), -1), np.zeros(len(rows)))
        cells[rows] = settled[:, network.measured]
    return cells, states


def energy_wanted(experiment: ExperimentConfig) -> bool:
    """Whether the experiment asks for an energy."""
    return experiment.manifold.energy or experiment.manifold.penalty > 0


def graph_wanted(experiment: ExperimentConfig) -> bool:
    """Whether the experiment asks for a graph by the co-expression of unperturbed cells."""
    return experiment.grn.prior in ("coexpression", "both")


def with_controls(screen: Screen, experiments: Iterable[ExperimentConfig]) -> Screen:
    """The screen with its unperturbed cells, where any of the experiments asks for an energy or a graph of them.

    They are simulated, or read from the file that `manifold.controls` names, which then counts in the screen's hash.
    Where there are none a note says that the energy stays off. Raises InputError for a file that cannot be used, and
    for experiments that ask for different cells.
    """
    asking = [experiment for experiment in experiments if energy_wanted(experiment) or graph_wanted(experiment)]
    data = screen.data
    if not asking:
        return screen
    if data.delta_expression is None:
        return _noted(screen, "no expression changes: manifold.energy and manifold.penalty have no effect")
    choices = {(experiment.manifold.controls, experiment.manifold.cells) for experiment in asking}
    if len(choices) > 1:
        raise InputError("sweep", "manifold.controls, manifold.cells", sorted(choices), "must be the same in all arms")
    ((path, count),) = choices
    if path != "auto":
        controls, notes = read_controls(path, data.gene_names, data.state_names)
        text = json.dumps({"screen": screen.sha256, "controls": hash_file(path)}, sort_keys=True)
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        return dataclasses.replace(screen, controls=controls, sha256=sha256, notes=(*screen.notes, *notes))
    if asking[0].data.data == "sim":
        return dataclasses.replace(screen, controls=Controls(*control_cells(asking[0].data.simulation, count)))
    if not any(map(energy_wanted, asking)):
        return screen
    problem = "no profiles of unperturbed cells (--manifold.controls)"
    return _noted(screen, f"{problem}: manifold.energy and manifold.penalty have no effect")


def _noted(screen: Screen, note: str) -> Screen:
    return dataclasses.replace(screen, notes=(*screen.notes, note))


def read_controls(
    path: str | Path, gene_names: Sequence[str], state_names: Sequence[str]
) -> tuple[Controls, list[str]]:
    """Read unperturbed cells, aligned by name to the data's genes.

    .npy: [cells, G] in the data's gene order. A table (.csv, .tsv, .parquet): a row a cell, a column a gene and, if
    known, a column `state`; other columns are left out. Returns the cells and notes. Raises InputError on a wrong
    shape, values that are no numbers, fewer than 8 cells, no common gene or a state that the data does not have.
    """
    path, notes = Path(path), []
    if path.suffix.lower() == ".npy":
        profiles = read_matrix(path, "cells", "[cells, genes]", len(gene_names), axis=1)
        state = np.full(len(profiles), -1)
    else:
        table = read_table(path)
        common = [name for name in gene_names if name in table.columns]
        if not common:
            raise InputError(path, "header", some(list(table.columns)), f"no gene of the data: {some(gene_names)}")
        count = len(table.columns[common[0]])
        profiles = np.full((count, len(gene_names)), np.nan)
        for column, name in enumerate(gene_names):
            if name in table.columns:
                profiles[:, column] = table.numbers(name)
                for row in np.flatnonzero(np.isnan(profiles[:, column]))[:1]:
                    raise InputError(path, name, None, f"row {row} is empty")
        state = _states(path, table.text("state"), state_names) if "state" in table.columns else np.full(count, -1)
        missing = [name for name in gene_names if name not in table.columns]
        if missing:
            notes.append(f"{path}: {len(missing)} genes are not measured, and stay as predicted: {some(missing)}")
    if len(profiles) < LEAST:
        raise InputError(path, "cells", len(profiles), f"at least {LEAST} are wanted")
    if (state < 0).all() and len(state_names) > 1:
        notes.append(f"{path}: no column state: every state is compared with the mean of all cells")
    return Controls(profiles.astype(np.float32), state.astype(np.int64)), notes


def _states(path: Path, labels: np.ndarray, state_names: Sequence[str]) -> np.ndarray:
    place = {name: i for i, name in enumerate(state_names)}
    for row, label in enumerate(labels):
        if label not in place:
            raise InputError(path, "state", label, f"row {row}: is not a state of the data: {some(state_names)}")
    return np.array([place[label] for label in labels], np.int64)
