"""What the GRN-GNN knows of the graph: node features and neighbourhoods."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
import torch
from sklearn.utils.extmath import randomized_svd

POSITIONS = 8  # leading singular vectors of the adjacency matrix, in each direction


@dataclass(frozen=True)
class GrnInputs:
    """What the network knows of the graph and the training fold, of V nodes of which the first G are the genes."""

    source: np.ndarray  # [E] int64
    target: np.ndarray  # [E] int64
    weight: np.ndarray  # [E] float32, signed
    features: np.ndarray  # [V, F] float32
    regulator_node: np.ndarray  # [R] int64
    genes: int
    states: int
    scale: float  # root mean square of the training changes


def grn_inputs(
    source: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray,
    regulator_node: np.ndarray,
    delta_expression: np.ndarray,
    states: int,
) -> GrnInputs:
    """Structural node features: signed degrees, singular vectors of the graph, and the genes' training statistics.

    None of them belongs to one regulator alone, so they mean the same for a regulator that was never trained.

    Args: source, target, weight [E]; regulator_node [R]; delta_expression [n, G], of the training rows alone.
    """
    genes = delta_expression.shape[1]
    nodes = max(genes, int(regulator_node.max()) + 1)
    other = source != target
    source, target, weight = source[other], target[other], weight[other].astype(np.float64)
    weight = weight / (np.abs(weight).mean() if len(weight) else 1.0)
    columns = []
    for end in (source, target):
        for part in (np.maximum(weight, 0), np.maximum(-weight, 0)):
            columns.append(np.log1p(np.bincount(end, part, minlength=nodes)))
    is_regulator = np.zeros(nodes)
    is_regulator[regulator_node] = 1
    moments = np.zeros((nodes, 2))
    scale = max(float(np.sqrt(np.mean(np.square(delta_expression, dtype=np.float64)))), 1e-6)
    moments[:genes] = np.stack([delta_expression.mean(0), delta_expression.std(0)], 1) / scale
    columns += [is_regulator, *moments.T]
    if len(weight) > POSITIONS:
        absolute = np.sqrt(np.abs(weight)) * np.sign(weight)
        adjacency = sparse.csr_matrix((absolute, (source, target)), shape=(nodes, nodes))
        left, _, right = randomized_svd(adjacency, min(POSITIONS, nodes), n_iter=4, random_state=0)
        columns += [*(left.T * math.sqrt(nodes)), *(right * math.sqrt(nodes))]
    features = np.stack(columns, 1)
    features = (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)
    return GrnInputs(
        source, target, weight.astype(np.float32), np.clip(features, -4, 4).astype(np.float32), regulator_node,
        genes, states, scale,
    )  # fmt: skip


def ranges(first: torch.Tensor, count: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranges [n] of `count` numbers from `first`, one after another: the range of each number, and the number."""
    owner = torch.repeat_interleave(count)
    offset = first - (count.cumsum(0) - count)
    return owner, offset[owner] + torch.arange(len(owner), device=owner.device)


def neighbourhoods(inputs: GrnInputs, down: np.ndarray, up: np.ndarray, nodes: int) -> dict[str, np.ndarray]:
    """Two ragged tables: the nodes that each regulator reaches in a round, each once; and the edges of each node.

    near: node, and its weights down, up and for itself. edge: the node it goes to, side (0 down, 1 up), weight.
    `down` and `up` [E] are the operators' weights (`SignedEdges`).
    """
    ends = np.concatenate([inputs.source, inputs.target]), np.concatenate([inputs.target, inputs.source])
    side, weight = np.repeat([0, 1], len(inputs.source)), np.concatenate([down, up])
    order = np.argsort(ends[0], kind="stable")
    count = np.bincount(ends[0], minlength=nodes)
    table = {"edge_to": ends[1][order], "edge_side": side[order], "edge_weight": weight[order].astype(np.float32)}
    table |= {"edge_count": count, "edge_first": np.cumsum(count) - count}
    weights = [sparse.csr_matrix((weight * (side == i), ends), shape=(nodes, nodes)) for i in (0, 1)]
    weights.append(sparse.identity(nodes, format="csr"))
    weights = [matrix[inputs.regulator_node] for matrix in weights]
    reached = sum(abs(matrix) for matrix in weights).tocoo()
    for name, matrix in zip(("near_down", "near_up", "near_self"), weights, strict=True):
        table[name] = np.asarray(matrix[reached.row, reached.col], np.float32).ravel()
    count = np.bincount(reached.row, minlength=len(inputs.regulator_node))
    table |= {"near_count": count, "near_first": np.cumsum(count) - count}
    return table | {"near_node": reached.col.astype(np.int64)}


def kinship(inputs: GrnInputs, trained: np.ndarray, regulator_class: np.ndarray | None) -> sparse.csr_array:
    """Whose embeddings stand for an untrained regulator's, and by what share: weights [untrained, trained], rows of 1.

    Its relatives in the graph: trained regulators, each by the number of nodes that both touch, themselves among
    them. Without any, the trained regulators of its class; without any, all. `trained` is a mask [R].
    """
    nodes, ones = len(inputs.features), np.ones(len(inputs.source))
    touched = sparse.csr_array((ones, (inputs.source, inputs.target)), (nodes, nodes))
    touched = ((touched + touched.T + sparse.eye_array(nodes)) != 0).astype(np.float64).tocsr()
    touched = touched[inputs.regulator_node]
    weights = touched[~trained] @ touched[trained].T
    alone = np.flatnonzero(weights.sum(axis=1) == 0)
    classes = np.full(len(trained), -1) if regulator_class is None else regulator_class
    mates = (classes[~trained][alone, None] == classes[trained]) & (classes[trained] >= 0)
    mates[~mates.any(axis=1)] = True
    row, column = np.nonzero(mates)
    weights = weights + sparse.csr_array((np.ones(len(row)), (alone[row], column)), weights.shape)
    return sparse.csr_array(sparse.diags_array(1 / weights.sum(axis=1)) @ weights)
