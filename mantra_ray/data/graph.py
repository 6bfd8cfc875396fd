"""The prior gene graph: signed, weighted, directed edges from regulators to targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mantra_ray.data.tables import read_table
from mantra_ray.errors import InputError

# DoRothEA's letters as edge weights: A is curated and supported by several kinds of evidence, D by one.
# E (one computational prediction, 94 % of all edges) is left out.
CONFIDENCE = {"A": 1.0, "B": 0.8, "C": 0.6, "D": 0.4, "E": 0.0}
BLOCK = 1024  # genes whose correlations are held at once, [BLOCK, G]


@dataclass(frozen=True, eq=False)
class Graph:
    """E edges between named nodes; an edge is listed once."""

    nodes: tuple[str, ...]
    source: np.ndarray  # [E] int64, index into nodes
    target: np.ndarray  # [E] int64
    weight: np.ndarray  # [E] float32, its sign is that of the regulation

    def restrict(self, nodes: Sequence[str]) -> Graph:
        """The graph on `nodes`, in their order: edges inside them stay, nodes without edges stay too."""
        place = {name: i for i, name in enumerate(nodes)}
        index = np.array([place.get(name, -1) for name in self.nodes], dtype=np.int64)
        source, target = index[self.source], index[self.target]
        inside = (source >= 0) & (target >= 0)
        return Graph(tuple(nodes), source[inside], target[inside], self.weight[inside])


def from_edges(source: Sequence[str], target: Sequence[str], weight: np.ndarray) -> Graph:
    """Build a graph from named edges; of repeated edges the strongest stays, edges of weight 0 are dropped."""
    weight = np.asarray(weight, np.float32)
    order = np.argsort(-np.abs(weight), kind="stable")
    order = order[weight[order] != 0]
    ends = np.concatenate([np.asarray(source)[order], np.asarray(target)[order]]).astype(str)
    nodes, index = np.unique(ends, return_inverse=True)
    head, tail = index[: len(order)].astype(np.int64), index[len(order) :].astype(np.int64)
    _, strongest = np.unique(head * len(nodes) + tail, return_index=True)
    return Graph(tuple(nodes.tolist()), head[strongest], tail[strongest], weight[order[strongest]])


def read_graph(path: str | Path) -> Graph:
    """Read an edge list (.csv, .tsv, also .gz, or .parquet): source,target[,weight] or tf,target[,mor][,confidence].

    Without a weight or mor an edge counts 1; a confidence letter scales it by `CONFIDENCE`. Raises InputError.
    """
    table = read_table(path, ["target"])
    head, value = ("tf", "mor") if "tf" in table.columns else ("source", "weight")
    source, target = table.text(head), table.text("target")
    weight = table.numbers(value) if value in table.columns else np.ones(len(source))
    for row in np.flatnonzero(np.isnan(weight))[:1]:
        raise InputError(path, value, None, f"row {row} is empty")
    if "confidence" in table.columns:
        letters = table.text("confidence")
        for row in np.flatnonzero(~np.isin(letters, list(CONFIDENCE)))[:1]:
            raise InputError(path, "confidence", letters[row], f"row {row} is not one of {', '.join(CONFIDENCE)}")
        weight = weight * np.array([CONFIDENCE[letter] for letter in letters])
    graph = from_edges(source, target, weight)
    if not len(graph.source):
        raise InputError(path, value, 0, "no edge has a weight other than 0")
    return graph


def union(first: Graph, second: Graph) -> Graph:
    """Edges of two graphs on the same nodes; an edge of both keeps the first one's weight."""
    count = len(first.nodes)
    new = ~np.isin(second.source * count + second.target, first.source * count + first.target)
    ends = [np.append(getattr(first, end), getattr(second, end)[new]) for end in ("source", "target", "weight")]
    return Graph(first.nodes, *ends)


def coexpression_graph(
    profiles: np.ndarray, gene_names: Sequence[str], top_k: int = 10, threshold: float = 0.0
) -> Graph:
    """Edges into each gene from the `top_k` genes that correlate most with it, weighted by Pearson's r.

    Of them only those with |r| of at least `threshold`. `profiles` [n, G] are expression of unperturbed cells, or
    changes of training records alone. Genes that never vary, or have NaN, get no edges.
    """
    genes = len(gene_names)
    unit = np.zeros(profiles.shape, np.float32)
    blocks = [np.arange(start, min(start + BLOCK, genes)) for start in range(0, genes, BLOCK)]
    for columns in blocks:
        part = profiles[:, columns]
        part = part - part.mean(axis=0, dtype=np.float64)
        length = np.linalg.norm(part, axis=0)
        varies = length > 1e-9
        unit[:, columns[varies]] = part[:, varies] / length[varies]
    k = min(top_k, genes - 1)
    sources, weights = [], []
    for rows in blocks:
        r = unit[:, rows].T @ unit
        r[np.arange(len(rows)), rows] = 0
        best = np.argpartition(-np.abs(r), k - 1, axis=1)[:, :k] if k else np.empty((len(rows), 0), np.int64)
        sources.append(best.ravel())
        weights.append(np.take_along_axis(r, best, axis=1).ravel())
    source, weight = np.concatenate(sources), np.concatenate(weights).astype(np.float32)
    kept = (weight != 0) & (np.abs(weight) >= threshold)
    return Graph(tuple(gene_names), source[kept], np.repeat(np.arange(genes), k)[kept], weight[kept])
