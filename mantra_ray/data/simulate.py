"""A mechanistic simulator of a perturbation screen: the built-in data set.

Log2 expression x of gene g in state s settles where dx/dt = 0 in

    dx_g/dt = basal_gs + sum_r A_s[r, g] h(x_r) - x_g,    h(x) = 2^(n x) / (1 + 2^(n x)),

with Hill activities h of the regulators, a scale-free signed network A_s (growth with preferential attachment,
Barabasi and Albert 1999) and weights bounded so that the map is a contraction: there is one steady state and
plain iteration reaches it. Knock-down by dose d holds the regulator at x + log2(1 - d).

Genes come in modules, whose genes tend to share regulators; modules are the planted programs W and a
regulator's home module is its class. Idiosyncratic regulators act on two further modules by strong edges that the
prior graph never contains. The constants below were chosen so that effects have
typical sizes and, by default, programs vary more by signal than by noise; none was chosen by how a model scores.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import sparse

from mantra_ray.config import SimulationConfig
from mantra_ray.data.loadings import check_loadings
from mantra_ray.data.network import BLOCK, Network, cell_states, grow, prior_graph, settle
from mantra_ray.data.records import PerturbationData
from mantra_ray.data.screen import Screen
from mantra_ray.data.traits import TraitTable
from mantra_ray.errors import InputError
from mantra_ray.fields import flatten

SIMULATOR_VERSION = 2  # raise it when numbers change: it is part of the data's hash

KNOCKDOWN_FLOOR = 0.02  # least expression left, as a share (complete loss would be minus infinity)
OVERDISPERSION = 0.1  # phi of the negative binomial count of a cell
TRAIT_NOISE = 0.3  # error of an observed trait change, as a share of the spread of true ones


def simulate(config: SimulationConfig) -> tuple[Screen, np.ndarray]:
    """Simulate a screen of N = regulators x doses x states shuffled records, and its noise-free effects [N, G].

    A screen of more regulators than genes has them among more genes than it measures: it perturbs what it does not see.
    Observed changes carry Gaussian noise of the standard error that `n_cells` cells of negative binomial counts
    give a log2 mean m by the delta method, se = sqrt((1 / m + phi) / n_cells) / ln 2; controls are taken to be so
    many that they add none. Observed trait changes are true programs @ planted weights with independent noise.
    Deterministic in the config. Raises InputError on settings that make no sense.
    """
    _check(config)
    rng = np.random.default_rng([config.seed, 3])
    network = grow(config, rng)
    regulator, dose, state = (grid.ravel() for grid in np.meshgrid(
        np.arange(config.regulators), np.array(config.doses), np.arange(config.states), indexing="ij"))  # fmt: skip
    order = rng.permutation(len(regulator))  # so that the order of records tells nothing
    regulator, dose, state = regulator[order], dose[order], state[order]
    cells = list(cell_states(config, network, rng))

    n_cells = np.maximum(rng.poisson(config.cells, len(regulator)), 3)
    level = rng.normal(2.5, 1.2, config.genes)  # log2 of a gene's mean count in a cell
    noise = copy.deepcopy(rng)  # drawn again below, a block of records at a time
    blocks = [slice(first, first + step) for step in (max(1, BLOCK // len(network.module)),)
              for first in range(0, len(regulator), step)]  # fmt: skip
    for block in blocks:
        rng.normal(size=(len(regulator[block]), config.genes))

    loadings = _programs(config, network.module[network.measured], rng)
    weights, traits = _traits(loadings, rng)
    change = np.empty((len(regulator), weights.shape[1]))
    truth, observed, error = (np.empty((len(regulator), config.genes), np.float32) for _ in range(3))
    for block, (effect, expressed) in zip(
        blocks, _effects(network, cells, blocks, regulator, dose, state), strict=True
    ):
        count = np.maximum(2.0 ** (level + expressed), 0.1)
        se = np.sqrt((1 / count + OVERDISPERSION) / n_cells[block, None]) / np.log(2)
        truth[block], error[block] = effect, se
        observed[block] = effect + noise.normal(size=effect.shape) * se
        change[block] = effect @ loadings @ weights
    change += rng.normal(size=change.shape) * TRAIT_NOISE * change.std(axis=0)

    names = tuple(f"G{i:05d}" for i in range(len(network.module)))
    programs = tuple(f"program{k}" for k in range(config.programs))
    data = PerturbationData(
        regulator=regulator,
        dose=dose.astype(np.float32),
        state=state,
        delta_expression=observed,
        delta_expression_se=error,
        delta_trait=change.astype(np.float32),
        n_cells=n_cells.astype(np.float32),
        gene_names=tuple(names[g] for g in network.measured),
        regulator_names=tuple(names[g] for g in network.genes),
        strategy_names=("knock-down",),
        state_names=tuple(f"state{s}" for s in range(config.states)),
        trait_names=tuple(traits),
    ).validate("simulation")
    screen = Screen(
        name="sim",
        data=data,
        graph=prior_graph(config, network, names, rng),
        loadings=loadings.astype(np.float32),
        program_names=programs,
        traits=traits,
        regulator_class=network.home,
        class_names=programs,
        sha256=hashlib.sha256(json.dumps([flatten(config), SIMULATOR_VERSION], sort_keys=True).encode()).hexdigest(),
        splits=("seen", "unseen"),
        notes=(),
    )
    return screen, truth


def _check(config: SimulationConfig) -> None:
    def fail(field: str, problem: str):
        raise InputError("simulation", field, getattr(config, field), problem)

    for field in ("regulators", "states", "cells"):
        if getattr(config, field) < 1:
            fail(field, "must be at least 1")
    if not 1 <= config.programs <= config.genes // 2:
        fail("programs", f"must lie between 1 and half of the {config.genes} genes")
    if (
        not config.doses
        or not all(0 < dose <= 1 for dose in config.doses)
        or len(set(config.doses)) < len(config.doses)
    ):
        fail("doses", "must be distinct and lie in (0, 1]")
    for field in ("idiosyncratic_share", "class_share", "missing_edges"):
        if not 0 <= getattr(config, field) <= 1:
            fail(field, "must lie in [0, 1]")
    for field in ("added_edges", "seed"):
        if not 0 <= getattr(config, field) < np.inf:
            fail(field, "must not be negative or infinite")


def _effects(
    network: Network,
    cells: Sequence[tuple[sparse.csr_array, np.ndarray]],
    blocks: Sequence[slice],
    regulator: np.ndarray,
    dose: np.ndarray,
    state: np.ndarray,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each block of records: true changes [n, G], and perturbed log2 expression relative to a gene's usual level."""
    nobody, nothing = np.full(1, -1), np.zeros(1)
    controls = [settle(weights, drive, network.genes, nobody, nothing)[0] for weights, drive in cells]
    for block in blocks:
        truth = np.zeros((len(regulator[block]), len(network.measured)))
        expressed = np.zeros_like(truth)
        for s, ((weights, drive), control) in enumerate(zip(cells, controls, strict=True)):
            rows = np.flatnonzero(state[block] == s)
            who, left = regulator[block][rows], np.maximum(1 - dose[block][rows], KNOCKDOWN_FLOOR)
            if len(rows):
                held = control[network.genes[who]] + np.log2(left)
                expressed[rows] = settle(weights, drive, network.genes, who, held)[:, network.measured]
                truth[rows] = expressed[rows] - control[network.measured]
        yield truth, expressed


def _programs(config: SimulationConfig, module: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Planted W [G, K], unit columns: a module's genes load on its program, a fifth of all also on a second one."""
    g, k = len(module), config.programs
    loadings = np.zeros((g, k))
    second = np.flatnonzero(rng.random(g) < 0.2)
    loadings[second, rng.integers(k, size=len(second))] = 0.3 * rng.gamma(2.0, 0.5, len(second))
    loadings[np.arange(g), module] = 0.2 + rng.gamma(2.0, 0.5, g)
    loadings /= np.linalg.norm(loadings, axis=0)
    check_loadings(loadings, [f"program{i}" for i in range(k)], "simulation")
    return loadings


def _traits(loadings: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, TraitTable]]:
    """Planted program-to-trait weights [K, 2], a third of them not 0, and noisy gene effects b = W theta + noise."""
    genes, programs = loadings.shape
    weights = rng.normal(size=(programs, 2)) * (rng.random((programs, 2)) < 1 / 3)
    weights[0] += weights.sum(axis=0) == 0  # a trait that no program moves would have no sign to predict
    se = 0.05 * rng.lognormal(0, 0.3, (genes, 2))
    b = loadings @ weights + rng.normal(size=(genes, 2)) * se
    return weights, {f"trait{t}": TraitTable(b[:, t].astype(np.float32), se[:, t].astype(np.float32)) for t in range(2)}
