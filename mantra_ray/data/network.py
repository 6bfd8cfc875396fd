"""The simulated regulatory network: how it grows, and the steady states that it settles in.

Edges are sparse, and what is drawn for all pairs of regulator and gene is drawn by blocks, so that a screen of ten
thousand regulators takes little memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from mantra_ray.config import SimulationConfig
from mantra_ray.data.graph import Graph

HILL = 0.75  # n; the slope of h is at most n ln2 / 4 = 0.13
MAX_INPUT = 7.0  # bound of a gene's summed |weight|; 7 x 0.13 < 1 makes the map a contraction
ATTRACTIVENESS = 2.0  # targets that a regulator counts as having when it enters
EDGES_PER_GENE = 4.0  # mean number of regulators of a gene, beside the one that each regulator starts with
HOME_BIAS = 30.0  # how much likelier an edge joins a regulator to a gene of its home module
ACTIVE_EDGES = 0.8  # share of edges that act in a given state
PRIVATE = 0.3  # share of a regulator's idiosyncratic modules that react in one state alone
STATE_SHIFT = 0.5  # log2, spread of a gene's basal level over states
BLOCK = 2**22  # numbers drawn or settled at once
COLUMNS = 32  # of levels in a product


@dataclass(frozen=True)
class Network:
    """R regulators among U genes, of which the screen measures G: all, unless it has more regulators than genes."""

    genes: np.ndarray  # [R] the gene of each regulator
    home: np.ndarray  # [R] module
    module: np.ndarray  # [U]
    measured: np.ndarray  # [G] ascending
    edges: sparse.csr_array  # [R, U] signed weights that the prior graph may know
    hidden: tuple[sparse.csr_array, ...]  # [R, U] idiosyncratic ones that it does not, by state


def grow(config: SimulationConfig, rng: np.random.Generator) -> Network:
    """Genes and regulators enter one by one; a new gene draws regulators by their number of targets so far."""
    n, g = config.regulators, max(config.genes, config.regulators)
    module = rng.permutation(np.arange(g) % config.programs)
    genes = rng.choice(g, n, replace=False)
    home = rng.integers(config.programs, size=n)
    arrival, targets = rng.permutation(n), np.zeros(n)
    adjacent = np.zeros((n, g), bool)
    for step, gene in enumerate(rng.permutation(g)):
        known = arrival[: 1 + (step * n) // g]  # regulators arrive evenly over the growth
        newcomer = known[-1]
        if targets[newcomer] == 0 and genes[newcomer] != gene:
            adjacent[newcomer, gene], targets[newcomer] = True, 1
        affinity = np.where(home[known] == module[gene], HOME_BIAS, 1.0)
        affinity[genes[known] == gene] = 0  # no regulator acts on itself
        rate = affinity * (targets[known] + ATTRACTIVENESS)
        drawn = min(rng.poisson(EDGES_PER_GENE), int((rate > 0).sum()))
        if drawn:
            chosen = rng.choice(known, drawn, replace=False, p=rate / rate.sum())
            targets[chosen[~adjacent[chosen, gene]]] += 1
            adjacent[chosen, gene] = True
    # A regulator mostly activates or mostly represses, which makes the genes of a module move together.
    lean = np.where(rng.random(n) < 0.7, 1, -1)
    row, column = np.nonzero(adjacent)
    sign = np.where(_drawn(rng.random, row, column, (n, g)) < 0.85, lean[row], -lean[row])
    weight = sign * _drawn(lambda shape: rng.lognormal(0.4, 0.4, shape), row, column, (n, g))
    edges = sparse.csr_array((weight, (row, column)), (n, g))
    hidden = _idiosyncratic(config, genes, home, module, adjacent, rng.spawn(1)[0])
    return Network(genes, home, module, _measured(config, module), edges, hidden)


def _drawn(
    draw: Callable[[tuple[int, int]], np.ndarray], row: np.ndarray, column: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """The numbers at the given places, by ascending row, of an array that is drawn whole."""
    found, step = np.empty(len(row)), max(1, BLOCK // shape[1])
    for first in range(0, shape[0], step):
        block = draw((min(step, shape[0] - first), shape[1]))
        inside = slice(*np.searchsorted(row, (first, first + step)))
        found[inside] = block[row[inside] - first, column[inside]]
    return found


def _measured(config: SimulationConfig, module: np.ndarray) -> np.ndarray:
    """Which genes are measured: all, or as many of each module."""
    order = np.random.default_rng([config.seed, 7]).permutation(len(module))
    order = order[np.argsort(module[order], kind="stable")]
    rank = np.arange(len(module)) - np.searchsorted(module[order], module[order])
    return np.sort(order[np.argsort(rank, kind="stable")[: config.genes]])


def _idiosyncratic(
    config: SimulationConfig,
    genes: np.ndarray,
    home: np.ndarray,
    module: np.ndarray,
    adjacent: np.ndarray,
    rng: np.random.Generator,
) -> tuple[sparse.csr_array, ...]:
    """Hidden edges of each state; their own stream: the share of such regulators changes nothing else."""
    n, g = adjacent.shape
    modules = min(2, config.programs - 1)
    every, hidden = range(config.states), {}  # of a regulator: states, genes and weights, a module at a time
    for r in rng.choice(n, round(config.idiosyncratic_share * n), replace=False):
        hidden[r] = []
        others = np.delete(np.arange(config.programs), home[r])
        for k in rng.choice(others, modules, replace=False):
            hit = np.flatnonzero((module == k) & (rng.random(g) < 0.5) & ~adjacent[r])
            hit = hit[hit != genes[r]]
            states = [rng.integers(config.states)] if rng.random() < PRIVATE else every
            hidden[r].append((states, hit, rng.choice([-1, 1]) * rng.lognormal(0.7, 0.3, len(hit))))
    _share(config, hidden, genes, home, module, adjacent)
    found = []
    for state in every:
        parts = [(r, hit, weight) for r in hidden for states, hit, weight in hidden[r] if state in states]
        row = np.concatenate([np.full(len(hit), r) for r, hit, _ in parts] or [np.zeros(0, np.int64)])
        column, weight = (np.concatenate([part[i] for part in parts] or [np.zeros(0)]) for i in (1, 2))
        found.append(sparse.csr_array((weight, (row, column.astype(np.int64))), (n, g)))
    return tuple(found)


def _share(
    config: SimulationConfig,
    hidden: dict[int, list],
    genes: np.ndarray,
    home: np.ndarray,
    module: np.ndarray,
    adjacent: np.ndarray,
) -> None:
    """Give a share of the regulators with hidden edges those of their class in place of their own."""
    rng = np.random.default_rng([config.seed, 4])  # its own stream: the share changes nothing else
    having = np.array(sorted(r for r, parts in hidden.items() if any(len(hit) for _, hit, _ in parts)), np.int64)
    shape = config.programs, 2, len(module)
    weight = rng.choice([-1, 1], (config.programs, 2, 1)) * rng.lognormal(0.7, 0.3, shape)
    weight *= rng.random(weight.shape) < 0.5
    for r in rng.permutation(having)[: round(config.class_share * len(having))]:
        others = np.random.default_rng([config.seed, 5, home[r]]).permutation(
            np.delete(np.arange(config.programs), home[r])
        )
        common = sum(np.where(module == k, weight[home[r], i], 0) for i, k in enumerate(others[:2]))
        common[adjacent[r]] = 0
        common[genes[r]] = 0
        hit = np.flatnonzero(common)
        hidden[r] = [(range(config.states), hit, common[hit])]


def cell_states(
    config: SimulationConfig, network: Network, rng: np.random.Generator
) -> Iterator[tuple[sparse.csr_array, np.ndarray]]:
    """Each state's weights [R, U] and basal drive [U]."""
    n, g = network.edges.shape
    basal = rng.normal(0, 0.5, g)
    row, column = np.repeat(np.arange(n), np.diff(network.edges.indptr)), network.edges.indices
    for hidden in network.hidden:
        active = _drawn(rng.random, row, column, (n, g)) < ACTIVE_EDGES
        acting = sparse.csr_array((network.edges.data[active], (row[active], column[active])), (n, g))
        weights = sparse.csr_array(acting + hidden)
        weights.sort_indices()
        total = np.bincount(weights.indices, np.abs(weights.data), minlength=g)
        weights.data *= np.minimum(1, MAX_INPUT / np.maximum(total, MAX_INPUT))[weights.indices]
        # Inputs are centred on half activity, so that x = 0 is the middle of the Hill curve.
        centre = np.bincount(weights.indices, weights.data, minlength=g) / 2
        yield weights, basal + rng.normal(0, STATE_SHIFT, g) - centre


def settle(
    weights: sparse.csr_array, drive: np.ndarray, genes: np.ndarray, regulator: np.ndarray, held: np.ndarray
) -> np.ndarray:
    """Steady states [n, U] under drive [U] or [n, U], each with one regulator (-1: none) held at a level [n]."""
    rows = np.flatnonzero(regulator >= 0)
    drive = np.broadcast_to(drive, (len(regulator), weights.shape[1])).T

    def activity(x: np.ndarray) -> np.ndarray:
        x[regulator[rows], rows] = held[rows]
        return 1 / (1 + np.exp2(-HILL * x))

    # The regulators decide each other's levels; all other genes follow, so they are computed once at the end.
    inner, own = sparse.csr_array(weights[:, genes].T), drive[genes]
    x = np.zeros((len(genes), len(regulator)))
    change = np.inf
    while change > 1e-7:  # a contraction by 0.91 at worst
        following = _times(inner, activity(x))
        following += own
        following[regulator[rows], rows] = held[rows]
        x -= following
        change = np.abs(x, out=x).max()
        x = following
    full = drive + _times(sparse.csr_array(weights.T), activity(x))
    full[genes[regulator[rows]], rows] = held[rows]
    return full.T


def _times(matrix: sparse.csr_array, levels: np.ndarray) -> np.ndarray:
    """The product, by so few columns that the levels [R, n] stay in a processor's cache."""
    return np.concatenate([matrix @ part for part in np.array_split(levels, -(-levels.shape[1] // COLUMNS), 1)], 1)


def prior_graph(config: SimulationConfig, network: Network, names: tuple[str, ...], rng: np.random.Generator) -> Graph:
    """The known graph: true edges less the missing ones, plus false ones of random sign; weights are signs."""
    true = network.edges.tocoo()
    n, g = true.shape
    kept = rng.permutation(true.nnz)[: true.nnz - round(config.missing_edges * true.nnz)]
    # Pairs that are free for a false edge are numbered in order; what is taken is few, and passed over by search.
    taken = [true.row * np.int64(g) + true.col, np.arange(n) * np.int64(g) + network.genes]
    taken += [hidden.tocoo().row * np.int64(g) + hidden.tocoo().col for hidden in network.hidden]
    taken = np.unique(np.concatenate(taken))
    false = rng.permutation(n * g - len(taken))[: round(config.added_edges * true.nnz)]
    false += np.searchsorted(taken - np.arange(len(taken)), false, side="right")
    regulator, target = np.append(true.row[kept], false // g), np.append(true.col[kept], false % g)
    weight = np.append(np.sign(true.data[kept]), rng.choice([-1.0, 1.0], len(false)))
    return Graph(names, network.genes[regulator], target.astype(np.int64), weight.astype(np.float32))
