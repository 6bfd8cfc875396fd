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

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from mantra_ray.config import SimulationConfig, flatten
from mantra_ray.data.graph import Graph
from mantra_ray.data.records import PerturbationData
from mantra_ray.data.screen import Screen, TraitTable, check_loadings
from mantra_ray.errors import InputError

SIMULATOR_VERSION = 1  # raise it when numbers change: it is part of the data's hash

HILL = 0.75  # n; the slope of h is at most n ln2 / 4 = 0.13
MAX_INPUT = 7.0  # bound of a gene's summed |weight|; 7 x 0.13 < 1 makes the map a contraction
ATTRACTIVENESS = 2.0  # targets that a regulator counts as having when it enters
EDGES_PER_GENE = 4.0  # mean number of regulators of a gene, beside the one that each regulator starts with
HOME_BIAS = 30.0  # how much likelier an edge joins a regulator to a gene of its home module
ACTIVE_EDGES = 0.8  # share of edges that act in a given state
PRIVATE = 0.3  # share of a regulator's idiosyncratic modules that react in one state alone
STATE_SHIFT = 0.5  # log2, spread of a gene's basal level over states
KNOCKDOWN_FLOOR = 0.02  # least expression left, as a share (complete loss would be minus infinity)
OVERDISPERSION = 0.1  # phi of the negative binomial count of a cell
TRAIT_NOISE = 0.3  # error of an observed trait change, as a share of the spread of true ones


@dataclass(frozen=True)
class _Network:
    genes: np.ndarray  # [R] the gene of each regulator
    home: np.ndarray  # [R] module
    module: np.ndarray  # [G]
    edges: np.ndarray  # [R, G] signed weights that the prior graph may know
    hidden: np.ndarray  # [S, R, G] idiosyncratic ones that it does not, by state


def simulate(config: SimulationConfig) -> tuple[Screen, np.ndarray]:
    """Simulate a screen of N = regulators x doses x states shuffled records, and its noise-free effects [N, G].

    Observed changes carry Gaussian noise of the standard error that `n_cells` cells of negative binomial counts
    give a log2 mean m by the delta method, se = sqrt((1 / m + phi) / n_cells) / ln 2; controls are taken to be so
    many that they add none. Observed trait changes are true programs @ planted weights with independent noise.
    Deterministic in the config. Raises InputError on settings that make no sense.
    """
    _check(config)
    rng = np.random.default_rng([config.seed, 3])
    network = _grow(config, rng)
    regulator, dose, state = (grid.ravel() for grid in np.meshgrid(
        np.arange(config.regulators), np.array(config.doses), np.arange(config.states), indexing="ij"))  # fmt: skip
    order = rng.permutation(len(regulator))  # so that the order of records tells nothing
    regulator, dose, state = regulator[order], dose[order], state[order]
    truth, expressed = _effects(config, network, regulator, dose, state, rng)

    n_cells = np.maximum(rng.poisson(config.cells, len(regulator)), 3)
    level = rng.normal(2.5, 1.2, config.genes)  # log2 of a gene's mean count in a cell
    count = np.maximum(2.0 ** (level + expressed), 0.1)
    se = np.sqrt((1 / count + OVERDISPERSION) / n_cells[:, None]) / np.log(2)
    observed = truth + rng.normal(size=truth.shape) * se

    loadings = _programs(config, network.module, rng)
    weights, traits = _traits(loadings, rng)
    change = truth @ loadings @ weights
    change += rng.normal(size=change.shape) * TRAIT_NOISE * change.std(axis=0)

    names = tuple(f"G{i:05d}" for i in range(config.genes))
    programs = tuple(f"program{k}" for k in range(config.programs))
    data = PerturbationData(
        regulator=regulator,
        dose=dose.astype(np.float32),
        state=state,
        delta_expression=observed.astype(np.float32),
        delta_expression_se=se.astype(np.float32),
        delta_trait=change.astype(np.float32),
        n_cells=n_cells.astype(np.float32),
        gene_names=names,
        regulator_names=tuple(names[g] for g in network.genes),
        strategy_names=("knock-down",),
        state_names=tuple(f"state{s}" for s in range(config.states)),
        trait_names=tuple(traits),
    ).validate("simulation")
    screen = Screen(
        name="sim",
        data=data,
        graph=_prior(config, network, names, rng),
        loadings=loadings.astype(np.float32),
        program_names=programs,
        traits=traits,
        regulator_class=network.home,
        class_names=programs,
        sha256=hashlib.sha256(json.dumps([flatten(config), SIMULATOR_VERSION], sort_keys=True).encode()).hexdigest(),
        splits=("seen", "unseen"),
        notes=(),
    )
    return screen, truth.astype(np.float32)


def _check(config: SimulationConfig) -> None:
    def fail(field: str, problem: str):
        raise InputError("simulation", field, getattr(config, field), problem)

    for field in ("regulators", "states", "cells"):
        if getattr(config, field) < 1:
            fail(field, "must be at least 1")
    if not 1 <= config.programs <= config.genes // 2:
        fail("programs", f"must lie between 1 and half of the {config.genes} genes")
    if config.regulators > config.genes:
        fail("regulators", f"exceeds the {config.genes} genes, which include the regulators")
    if (
        not config.doses
        or not all(0 < dose <= 1 for dose in config.doses)
        or len(set(config.doses)) < len(config.doses)
    ):
        fail("doses", "must be distinct and lie in (0, 1]")
    for field in ("idiosyncratic_share", "missing_edges"):
        if not 0 <= getattr(config, field) <= 1:
            fail(field, "must lie in [0, 1]")
    for field in ("added_edges", "seed"):
        if not 0 <= getattr(config, field) < np.inf:
            fail(field, "must not be negative or infinite")


def _grow(config: SimulationConfig, rng: np.random.Generator) -> _Network:
    """Genes and regulators enter one by one; a new gene draws regulators by their number of targets so far."""
    n, g = config.regulators, config.genes
    module = rng.permutation(np.arange(g) % config.programs)
    genes = rng.choice(g, n, replace=False)
    home = rng.integers(config.programs, size=n)
    affinity = np.where(home[:, None] == module[None, :], HOME_BIAS, 1.0)
    affinity[np.arange(n), genes] = 0  # no regulator acts on itself
    arrival, targets = rng.permutation(n), np.zeros(n)
    adjacent = np.zeros((n, g), bool)
    for step, gene in enumerate(rng.permutation(g)):
        known = arrival[: 1 + (step * n) // g]  # regulators arrive evenly over the growth
        newcomer = known[-1]
        if targets[newcomer] == 0 and genes[newcomer] != gene:
            adjacent[newcomer, gene], targets[newcomer] = True, 1
        rate = affinity[known, gene] * (targets[known] + ATTRACTIVENESS)
        drawn = min(rng.poisson(EDGES_PER_GENE), int((rate > 0).sum()))
        if drawn:
            chosen = rng.choice(known, drawn, replace=False, p=rate / rate.sum())
            targets[chosen[~adjacent[chosen, gene]]] += 1
            adjacent[chosen, gene] = True
    # A regulator mostly activates or mostly represses, which makes the genes of a module move together.
    lean = np.where(rng.random(n) < 0.7, 1, -1)[:, None]
    sign = np.where(rng.random((n, g)) < 0.85, lean, -lean)
    edges = adjacent * sign * rng.lognormal(0.4, 0.4, (n, g))

    hidden = np.zeros((config.states, n, g))
    modules = min(2, config.programs - 1)
    rng = rng.spawn(1)[0]  # its own stream: the share of such regulators changes nothing else
    for r in rng.choice(n, round(config.idiosyncratic_share * n), replace=False):
        others = np.delete(np.arange(config.programs), home[r])
        for k in rng.choice(others, modules, replace=False):
            hit = np.flatnonzero((module == k) & (rng.random(g) < 0.5) & ~adjacent[r])
            hit = hit[hit != genes[r]]
            states = rng.integers(config.states) if rng.random() < PRIVATE else slice(None)
            hidden[states, r, hit] = rng.choice([-1, 1]) * rng.lognormal(0.7, 0.3, len(hit))
    return _Network(genes, home, module, edges, hidden)


def _effects(
    config: SimulationConfig,
    network: _Network,
    regulator: np.ndarray,
    dose: np.ndarray,
    state: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """True changes [N, G] and the perturbed log2 expression [N, G] relative to a gene's usual level."""
    basal = rng.normal(0, 0.5, config.genes)
    truth = np.zeros((len(regulator), config.genes))
    expressed = np.zeros_like(truth)
    for s in range(config.states):
        active = rng.random(network.edges.shape) < ACTIVE_EDGES
        weights = network.edges * active + network.hidden[s]
        weights *= np.minimum(1, MAX_INPUT / np.maximum(np.abs(weights).sum(axis=0), MAX_INPUT))
        # Inputs are centred on half activity, so that x = 0 is the middle of the Hill curve.
        drive = basal + rng.normal(0, STATE_SHIFT, config.genes) - weights.sum(axis=0) / 2
        rows = np.flatnonzero(state == s)
        nobody = np.full(1, -1)
        control = _settle(weights, drive, network.genes, nobody, np.zeros(1))
        held = control[0, network.genes[regulator[rows]]] + np.log2(np.maximum(1 - dose[rows], KNOCKDOWN_FLOOR))
        expressed[rows] = _settle(weights, drive, network.genes, regulator[rows], held)
        truth[rows] = expressed[rows] - control
    return truth, expressed


def _settle(
    weights: np.ndarray, drive: np.ndarray, genes: np.ndarray, regulator: np.ndarray, held: np.ndarray
) -> np.ndarray:
    """Steady states [n, G], each with one regulator (-1: none) held at a level [n]."""
    rows = np.flatnonzero(regulator >= 0)

    def activity(x: np.ndarray) -> np.ndarray:
        x[rows, regulator[rows]] = held[rows]
        return 1 / (1 + np.exp2(-HILL * x))

    # The regulators decide each other's levels; all other genes follow, so they are computed once at the end.
    inner = np.ascontiguousarray(weights[:, genes])
    x = np.zeros((len(regulator), len(genes)))
    change = np.inf
    while change > 1e-7:  # a contraction by 0.91 at worst
        following = drive[genes] + activity(x) @ inner
        following[rows, regulator[rows]] = held[rows]
        change = np.abs(following - x).max()
        x = following
    full = drive + activity(x) @ weights
    full[rows, genes[regulator[rows]]] = held[rows]
    return full


def _programs(config: SimulationConfig, module: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Planted W [G, K], unit columns: a module's genes load on its program, a fifth of all also on a second one."""
    g, k = config.genes, config.programs
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


def _prior(config: SimulationConfig, network: _Network, names: tuple[str, ...], rng: np.random.Generator) -> Graph:
    """The known graph: true edges less the missing ones, plus false ones of random sign; weights are signs."""
    true = np.argwhere(network.edges)
    kept = rng.permutation(true)[: len(true) - round(config.missing_edges * len(true))]
    none = (network.edges == 0) & ~network.hidden.any(axis=0)
    none[np.arange(len(network.genes)), network.genes] = False
    free = np.argwhere(none)
    false = rng.permutation(free)[: round(config.added_edges * len(true))]
    pairs = np.concatenate([kept, false])
    weight = np.concatenate([np.sign(network.edges[tuple(kept.T)]), rng.choice([-1.0, 1.0], len(false))])
    return Graph(names, network.genes[pairs[:, 0]], pairs[:, 1], weight.astype(np.float32))
