"""GRN-GNN: sparse, signed message passing from the perturbed regulator over the prior gene graph.

Activations lie as [V, B * H] (nodes, records in the batch times width), so that one sparse product passes the
messages of the whole batch. Before the first round all records share the same node states except at the perturbed
node, so that round costs one product of [V, H] and the edges of the perturbed regulators alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
import torch
import torch.nn.functional as F
from sklearn.utils.extmath import randomized_svd
from torch import nn
from torch_geometric import EdgeIndex

from mantra_ray.config import GrnConfig

POSITIONS = 8  # leading singular vectors of the adjacency matrix, in each direction
STEPS = 16  # of an epoch, at least: a small screen is trained in smaller batches
RANK = 16  # of the response that is common to many genes


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


def dose_features(dose: torch.Tensor) -> torch.Tensor:
    """[n, 2]: the dose, and log2 of what is left of the regulator (at least 1/32), in units of 4."""
    return torch.stack([dose, torch.log2((1 - dose).clamp_min(1 / 32)) / 4], 1)


class SignedEdges:
    """The graph's two operators: messages down the edges (to targets) and up (to regulators), weights fixed."""

    def __init__(self, inputs: GrnInputs, nodes: int, device: torch.device):
        incoming = np.bincount(inputs.target, np.abs(inputs.weight), minlength=nodes)
        outgoing = np.bincount(inputs.source, np.abs(inputs.weight), minlength=nodes)
        # A sum of messages with mixed signs grows like the root of their number.
        self.down = inputs.weight / np.sqrt(np.maximum(incoming, 1))[inputs.target]
        self.up = inputs.weight / np.sqrt(np.maximum(outgoing, 1))[inputs.source]
        ends = torch.from_numpy(np.stack([inputs.target, inputs.source])).to(device)
        self.operators = []
        for index, weight in ((ends, self.down), (ends.flip(0), self.up)):
            edges, order = EdgeIndex(index.contiguous(), sparse_size=(nodes, nodes)).sort_by("row")
            self.operators.append((edges.fill_cache_(), torch.from_numpy(weight.astype(np.float32)).to(device)[order]))

    def pass_along(self, message: torch.Tensor) -> torch.Tensor:
        """Sum messages [V, ..., H] over edges; the first half of the channels flows down, the second up."""
        sums = [
            edges.matmul(half.reshape(len(half), -1), input_value=weight).view(half.shape)
            for half, (edges, weight) in zip(message.chunk(2, -1), self.operators, strict=True)
        ]
        return torch.cat(sums, -1)


class Grn(nn.Module):
    """Expression changes from (regulator, dose, state) by message passing on a signed graph.

    The perturbation `dose * (p + own_r)` enters at the regulator's node; every round is modulated by FiLM(dose,
    state). `own_r` starts at 0 and gets a gradient from records of r alone, so an unseen regulator is described by
    its place in the graph and nothing else. A gene's change is read out of its own state and, at low rank, out of
    the perturbed node's state; the perturbed gene's own change starts at what the dose means, log2(1 - dose).
    Outputs are in units of `inputs.scale`.
    """

    def __init__(self, inputs: GrnInputs, config: GrnConfig, device: torch.device | str = "cpu"):
        super().__init__()
        hidden, nodes = 2 * math.ceil(config.hidden / 2), len(inputs.features)
        self.genes, self.states, self.hidden = inputs.genes, inputs.states, hidden
        self.unit = 1 / inputs.scale  # of log2 changes
        condition = 2 + inputs.states
        self.embed = nn.Linear(inputs.features.shape[1], hidden)
        self.perturbation = nn.Parameter(torch.randn(hidden) / math.sqrt(hidden))
        self.own = nn.Parameter(torch.zeros(len(inputs.regulator_node), hidden))
        self.stay = nn.Linear(hidden, hidden)
        self.message = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in range(config.layers))
        self.film = nn.ModuleList(nn.Linear(condition, 2 * hidden) for _ in range(config.layers))
        self.readout = nn.Parameter(torch.zeros(hidden))
        self.gene_readout = nn.Parameter(torch.zeros(inputs.genes, hidden))
        self.common = nn.Sequential(nn.Linear(hidden + condition, hidden), nn.SiLU(), nn.Linear(hidden, RANK))
        self.common_genes = nn.Parameter(torch.randn(inputs.genes, RANK) / math.sqrt(RANK))
        self.itself = nn.Linear(condition, 1)
        for layer in [*self.film, self.common[2], self.itself]:  # no modulation, no response at the start
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.edges = SignedEdges(inputs, nodes, torch.device(device))
        self.register_buffer("features", torch.from_numpy(inputs.features))
        self.register_buffer("node", torch.from_numpy(inputs.regulator_node))
        for name, value in _first_round(inputs, self.edges, nodes).items():
            self.register_buffer(name, torch.from_numpy(value))
        self.to(device)

    def forward(self, regulator: torch.Tensor, dose: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Changes [B, G] for regulator [B] int64, dose [B] float32, state [B] int64."""
        batch = len(regulator)
        condition = torch.cat([dose_features(dose), F.one_hot(state, self.states).to(dose.dtype)], 1)
        hidden = self._perturb(regulator, dose, self._film(0, condition))
        for layer in range(1, len(self.message)):
            gain, shift = self._film(layer, condition)
            received = self.edges.pass_along(self.message[layer](hidden))
            hidden = F.leaky_relu(torch.addcmul(hidden + shift, received, gain), 0.1)
        perturbed = hidden[self.node[regulator], torch.arange(batch, device=hidden.device)]
        common = self.common(torch.cat([perturbed, condition], 1)) @ self.common_genes.T
        weights = (self.readout + self.gene_readout)[:, :, None]
        change = torch.bmm(hidden[: self.genes], weights)[:, :, 0].T + common
        left = 4 * condition[:, 1:2] * self.unit * (1 + self.itself(condition))  # dose d leaves 1 - d of the gene
        itself = F.one_hot(self.node[regulator], len(self.features))[:, : self.genes]
        return change + itself * left

    def _film(self, layer: int, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gain, shift = self.film[layer](condition).chunk(2, 1)
        return 1 + gain, shift

    def _perturb(
        self, regulator: torch.Tensor, dose: torch.Tensor, film: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """The first round, [V, B, H]: the shared node states plus what the perturbed node and its edges add."""
        gain, shift = film
        shared = torch.tanh(self.embed(self.features))
        shared = self.stay(shared) + self.edges.pass_along(self.message[0](shared))
        hidden = torch.addcmul(shift, shared[:, None], gain)
        change = dose[:, None] * (self.perturbation + self.own[regulator])
        down, up = self.message[0](change).chunk(2, 1)
        counts = self.edge_count[regulator]
        record = torch.repeat_interleave(counts)
        first = counts.cumsum(0) - counts
        entry = (self.edge_first[regulator] - first)[record] + torch.arange(len(record), device=record.device)
        added = torch.cat([down[record] * self.edge_down[entry, None], up[record] * self.edge_up[entry, None]], 1)
        added = (added + (change @ self.stay.weight.T)[record] * self.edge_self[entry, None]) * gain[record]
        flat = hidden.view(-1, self.hidden).index_add(0, self.edge_node[entry] * len(regulator) + record, added)
        return F.leaky_relu(flat.view(hidden.shape), 0.1)


def _first_round(inputs: GrnInputs, edges: SignedEdges, nodes: int) -> dict[str, np.ndarray]:
    """The nodes that each regulator reaches in one round, itself first, one regulator's entries after another's."""
    entries: list[tuple[np.ndarray, ...]] = []
    for node in inputs.regulator_node:
        out, into = np.flatnonzero(inputs.source == node), np.flatnonzero(inputs.target == node)
        none = np.zeros(1)
        reached = np.concatenate([[node], inputs.target[out], inputs.source[into]]).astype(np.int64)
        down = np.concatenate([none, edges.down[out], np.zeros(len(into))]).astype(np.float32)
        up = np.concatenate([none, np.zeros(len(out)), edges.up[into]]).astype(np.float32)
        own = np.zeros(len(reached), np.float32)
        own[0] = 1
        entries.append((reached, down, up, own))
    count = np.array([len(entry[0]) for entry in entries], np.int64)
    names = ("edge_node", "edge_down", "edge_up", "edge_self")
    table = {name: np.concatenate(parts) for name, parts in zip(names, zip(*entries, strict=True), strict=True)}
    return {**table, "edge_count": count, "edge_first": np.cumsum(count) - count}


def fit_grn(
    inputs: GrnInputs,
    regulator: np.ndarray,
    dose: np.ndarray,
    state: np.ndarray,
    delta_expression: np.ndarray,
    config: GrnConfig,
    seed: int,
    device: torch.device | str = "cpu",
) -> Grn:
    """Train on records [n] with changes [n, G] by AdamW on the mean squared error; on CPU the same bit for bit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Grn(inputs, config, device)
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.as_tensor(array, device=device) for array in (regulator, dose, state)]
    target = torch.as_tensor(delta_expression / np.float32(inputs.scale), device=device)
    optimiser = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    size = min(config.batch, math.ceil(len(target) / STEPS))
    steps = config.epochs * math.ceil(len(target) / size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=max(steps, 2))
    for _ in range(config.epochs):
        for batch in torch.randperm(len(target), generator=generator).to(device).split(size):
            loss = F.mse_loss(model(*(array[batch] for array in rows)), target[batch])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    return model


@torch.no_grad()
def predict_grn(
    model: Grn, inputs: GrnInputs, regulator: np.ndarray, dose: np.ndarray, state: np.ndarray, batch: int = 64
) -> np.ndarray:
    """Predicted changes [N, G] float32, log2 units, of records [N]."""
    rows = [torch.as_tensor(array, device=model.features.device).split(batch) for array in (regulator, dose, state)]
    parts = [model(*part).cpu() * inputs.scale for part in zip(*rows, strict=True)]
    return torch.cat(parts).numpy()
