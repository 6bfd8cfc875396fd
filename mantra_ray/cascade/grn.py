"""GRN-GNN: sparse, signed message passing from the perturbed regulator over the prior gene graph.

Activations lie as [V, B, H] (nodes, records in the batch, width). Through the first two rounds a perturbation has
reached few nodes, and all others depend on the record's condition (dose, state) alone; so these rounds cost the
batch's distinct conditions and the edges around the perturbed regulators. Only then are the states spread out.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mantra_ray.cascade.graph_inputs import GrnInputs, SignedEdges, grn_inputs, neighbourhoods, ranges
from mantra_ray.config import GrnConfig

__all__ = ["Grn", "GrnInputs", "fit_grn", "grn_inputs", "predict_grn"]

STEPS = 16  # of an epoch, at least: a small screen is trained in smaller batches
RANK = 16  # of the response that is common to many genes
SLOPE = 0.1  # of the leaky rectifier below 0


def dose_features(dose: torch.Tensor) -> torch.Tensor:
    """[n, 2]: the dose, and log2 of what is left of the regulator (at least 1/32), in units of 4."""
    return torch.stack([dose, torch.log2((1 - dose).clamp_min(1 / 32)) / 4], 1)


class _ReadOut(torch.autograd.Function):
    """Each gene's own readout [G, B] of states [V, B, H], and the perturbed nodes' states [B, H].

    One gradient of the size of the states serves both; autograd alone would fill, write and add three.
    """

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, weight: torch.Tensor, node: torch.Tensor, batch: torch.Tensor):
        ctx.save_for_backward(hidden, weight, node, batch)
        own = torch.bmm(weight[:, None], hidden[: len(weight)].transpose(1, 2))[:, 0]
        return own, hidden[node, batch]

    @staticmethod
    def backward(ctx, own: torch.Tensor, perturbed: torch.Tensor):
        hidden, weight, node, batch = ctx.saved_tensors
        own, genes = own.contiguous(), len(weight)
        gradient = hidden.new_zeros(hidden.shape) if genes < len(hidden) else torch.empty_like(hidden)
        torch.mul(own[:, :, None], weight[:, None], out=gradient[:genes])
        gradient[node, batch] += perturbed
        return gradient, torch.bmm(own[:, None], hidden[:genes])[:, 0], None, None


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
        for name, value in neighbourhoods(inputs, self.edges, nodes).items():
            self.register_buffer(name, torch.from_numpy(value))
        self.to(device)

    def forward(self, regulator: torch.Tensor, dose: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Changes [B, G] for regulator [B] int64, dose [B] float32, state [B] int64."""
        batch = torch.arange(len(regulator), device=dose.device)
        pairs, which = torch.unique(torch.stack([dose, state.to(dose.dtype)], 1), dim=0, return_inverse=True)
        condition = torch.cat([dose_features(pairs[:, 0]), F.one_hot(pairs[:, 1].long(), self.states)], 1)
        hidden = self._first_rounds(regulator, dose, condition, which)
        for layer in range(2, len(self.message)):
            gain, shift = self._film(layer, condition)
            received = self.edges.pass_along(self.message[layer](hidden))
            hidden = F.leaky_relu(torch.addcmul(hidden + shift[which], received, gain[which]), SLOPE)
        node, condition = self.node[regulator], condition[which]
        own, perturbed = _ReadOut.apply(hidden, self.readout + self.gene_readout, node, batch)
        common = self.common(torch.cat([perturbed, condition], 1))
        left = 4 * condition[:, 1] * self.unit * (1 + self.itself(condition)[:, 0])  # dose d leaves 1 - d of the gene
        place = batch, node.clamp_max(self.genes - 1)
        return torch.addmm(own.T, common, self.common_genes.T).index_put(place, left * (node < self.genes), True)

    def _film(self, layer: int, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gain, shift = self.film[layer](condition).chunk(2, 1)
        return 1 + gain, shift

    def _first_rounds(
        self, regulator: torch.Tensor, dose: torch.Tensor, condition: torch.Tensor, which: torch.Tensor
    ) -> torch.Tensor:
        """Node states [V, B, H] after two rounds (or the only one); record b is under condition [C, .] `which[b]`.

        What a perturbation has not reached depends on the condition alone; what it has reached, a round at a time,
        is listed as one row for each node (or edge) and record.
        """
        kinds, batch = len(condition), len(regulator)
        gain, shift = self._film(0, condition)
        shared = torch.tanh(self.embed(self.features))
        shared = self.stay(shared) + self.edges.pass_along(self.message[0](shared))
        states = torch.addcmul(shift, shared[:, None], gain)  # [V, C, H], of no perturbation
        change = dose[:, None] * (self.perturbation + self.own[regulator])
        down, up = self.message[0](change).chunk(2, 1)
        record, entry = ranges(self.near_first[regulator], self.near_count[regulator])
        node, kind = self.near_node[entry], which[record]
        added = torch.cat([down[record] * self.near_down[entry, None], up[record] * self.near_up[entry, None]], 1)
        added = (added + (change @ self.stay.weight.T)[record] * self.near_self[entry, None]) * gain[kind]
        half = torch.arange(2, device=dose.device)  # rows are halves of a state, since its halves part ways
        place = (2 * (node * batch + record)[:, None] + half).view(-1)
        if len(self.message) > 1:
            gain, shift = self._film(1, condition)
            before = states.view(-1, self.hidden)[node * kinds + kind]
            added = F.leaky_relu(before + added, SLOPE) - F.leaky_relu(before, SLOPE)
            states = F.leaky_relu(states, SLOPE)
            received = self.edges.pass_along(self.message[1](states))
            states = torch.addcmul(states + shift, received, gain)
            sent = (self.message[1](added) * gain[kind]).view(-1, self.hidden // 2)
            sender, edge = ranges(self.edge_first[node], self.edge_count[node])
            side = self.edge_side[edge]
            reached = 2 * (self.edge_to[edge] * batch + record[sender]) + side
            place = torch.cat([place, reached])
            sent = sent.index_select(0, 2 * sender + side) * self.edge_weight[edge, None]
            added = torch.cat([added.view(-1, self.hidden // 2), sent])
        spread = states.index_select(1, which).view(-1, self.hidden // 2)
        spread = spread.index_add(0, place, added.view(-1, self.hidden // 2))
        return F.leaky_relu_(spread, SLOPE).view(-1, batch, self.hidden)


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
    parameters, decay = list(model.parameters()), config.weight_decay
    optimiser = torch.optim.AdamW(parameters, config.learning_rate, weight_decay=decay, fused=True)
    size = min(config.batch, math.ceil(len(target) / STEPS))
    steps = config.epochs * math.ceil(len(target) / size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=max(steps, 2))
    for _ in range(config.epochs):
        for batch in torch.randperm(len(target), generator=generator).to(device).split(size):
            loss = F.mse_loss(model(*(array[batch] for array in rows)), target[batch])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
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
