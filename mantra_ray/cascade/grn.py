"""GRN-GNN: sparse, signed message passing from the perturbed regulator over the prior gene graph.

Activations lie as [V, B, H] (nodes, records in the batch, width). Through the first two rounds a perturbation has
reached few nodes, and all others depend on the record's condition (dose, state) alone; so these rounds cost the
batch's distinct conditions and the edges around the perturbed regulators. Only then are the states spread out.
A shift that enters from outside reaches every node, so with one the states are spread out after the first round's sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mantra_ray.cascade.graph_inputs import GrnInputs, grn_inputs, kinship, neighbourhoods, ranges
from mantra_ray.cascade.replicas import Course, Replicas, Steps, Unkept
from mantra_ray.cascade.rounds import ReadOut, Round, SignedEdges, Spread, block_of
from mantra_ray.config import GrnConfig

__all__ = ["Grn", "GrnInputs", "Shift", "fit_grn", "grn_inputs", "predict_grn"]

STEPS = 16  # of an epoch, at least: a small screen is trained in smaller batches
RANK = 16  # of the response that is common to many genes
SLOPE = 0.1  # of the leaky rectifier below 0

Penalty = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of changes [B, G], log2 units, in states [B]
Shift = Callable[[int], torch.Tensor]  # a round's number to what enters its node states


def dose_features(dose: torch.Tensor) -> torch.Tensor:
    """[n, 2]: the dose, and log2 of what is left of the regulator (at least 1/32), in units of 4."""
    return torch.stack([dose, torch.log2((1 - dose).clamp_min(1 / 32)) / 4], 1)


def reduced(precision: str, device: torch.device) -> bool:
    """Whether node states are bfloat16 there; ValueError for an unknown precision."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision {precision!r} is none of auto, float32, bfloat16")
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bfloat16"


class Grn(nn.Module):
    """Expression changes from (regulator, dose, state) by message passing on a signed graph.

    The perturbation `dose * (p + own_r)` enters at the regulator's node; every round is modulated by FiLM(dose,
    state). `own_r` starts at 0 and gets a gradient from records of r alone; a regulator without records is described
    by its place in the graph, and after training takes the mean of its relatives' (`kinship`). A gene's change is
    read out of its own state and, at low rank, out of the perturbed node's state; the perturbed gene's own change
    starts at what the dose means, log2(1 - dose).
    Outputs are in units of `inputs.scale`.
    """

    def __init__(self, inputs: GrnInputs, config: GrnConfig, device: torch.device | str = "cpu"):
        super().__init__()
        hidden, nodes = 2 * math.ceil(config.hidden / 2), len(inputs.features)
        self.genes, self.states, self.hidden = inputs.genes, inputs.states, hidden
        self.unit = 1 / inputs.scale  # of log2 changes
        self.kept = int(config.memory * 2**30)  # bytes
        self.reduced = reduced(config.precision, torch.device(device))
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
        for name, value in neighbourhoods(inputs, self.edges.down, self.edges.up, nodes).items():
            self.register_buffer(name, torch.from_numpy(value))
        self.to(device)

    @property
    def kind(self) -> torch.dtype:
        """Of the node states, once they are spread out: reduced in training alone."""
        return torch.bfloat16 if self.reduced and self.training else self.own.dtype

    def forward(
        self, regulator: torch.Tensor, dose: torch.Tensor, state: torch.Tensor, shift: Shift | None = None
    ) -> torch.Tensor:
        """Changes [B, G] for regulator [B] int64, dose [B] float32, state [B] int64.

        `shift` gives, for each round by its number, what is added to the node states that it leaves: [V, B, H], or
        1 in place of V or B. The next round passes it on; the last one's is read out. Without it, a batch whose states
        exceed the config's memory goes through in parts, each computed again for its gradient.
        """
        first = torch.tanh(self.embed(self.features))
        first = self.stay(first) + self.edges.pass_along(self.message[0](first))  # [V, H], the whole batch's
        rows = regulator, dose, state
        size = self.kind.itemsize * first.numel()
        at_once = max(1, self.kept // (len(self.message) * size))  # the caller's shifts are whole
        if shift is not None or len(regulator) <= at_once:
            return self._changes(first, *rows, shift)
        changes = partial(checkpoint, self._changes, use_reentrant=False, preserve_rng_state=False)
        return torch.cat(
            [changes(first, *part, None) for part in zip(*(row.split(at_once) for row in rows), strict=True)]
        )

    def _changes(
        self,
        first: torch.Tensor,
        regulator: torch.Tensor,
        dose: torch.Tensor,
        state: torch.Tensor,
        shift: Shift | None,
    ) -> torch.Tensor:
        """Changes [B, G], given the first round's sums [V, H] of no perturbation."""
        batch = torch.arange(len(regulator), device=dose.device)
        pairs, which = torch.unique(torch.stack([dose, state.to(dose.dtype)], 1), dim=0, return_inverse=True)
        condition = torch.cat([dose_features(pairs[:, 0]), F.one_hot(pairs[:, 1].long(), self.states)], 1)
        hidden = self._first_rounds(first, regulator, dose, condition, which, shift)
        for layer in range(2 if shift is None else 1, len(self.message)):
            hidden = self._round(layer, hidden, condition, which, SLOPE)
            hidden = hidden if shift is None else hidden + shift(layer).to(hidden.dtype)
        node, condition = self.node[regulator], condition[which]
        own, perturbed = ReadOut.apply(hidden, self.readout + self.gene_readout, node, batch)
        common = self.common(torch.cat([perturbed, condition], 1))
        left = 4 * condition[:, 1] * self.unit * (1 + self.itself(condition)[:, 0])  # dose d leaves 1 - d of the gene
        place = batch, node.clamp_max(self.genes - 1)
        return torch.addmm(own.T, common, self.common_genes.T).index_put(place, left * (node < self.genes), True)

    def _film(self, layer: int, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gain, offset = self.film[layer](condition).chunk(2, 1)
        return 1 + gain, offset

    def _round(
        self, layer: int, states: torch.Tensor, condition: torch.Tensor, which: torch.Tensor, slope: float
    ) -> torch.Tensor:
        weight, film = self.message[layer].weight, self._film(layer, condition)
        return Round.apply(states, weight, *film, which, self.edges, slope, block_of(states))

    def _first_rounds(
        self,
        first: torch.Tensor,
        regulator: torch.Tensor,
        dose: torch.Tensor,
        condition: torch.Tensor,
        which: torch.Tensor,
        shift: Shift | None,
    ) -> torch.Tensor:
        """Node states [V, B, H] after two rounds (or the only one), or with a shift after the first.

        Record b is under condition [C, .] `which[b]`.

        What a perturbation has not reached depends on the condition alone; what it has reached, a round at a time,
        is listed as one row for each node (or edge) and record.
        """
        kinds, batch = len(condition), len(regulator)
        gain, offset = self._film(0, condition)
        states = torch.addcmul(offset, first[:, None], gain)  # [V, C, H], of no perturbation
        change = dose[:, None] * (self.perturbation + self.own[regulator])
        down, up = self.message[0](change).chunk(2, 1)
        record, entry = ranges(self.near_first[regulator], self.near_count[regulator])
        node, kind = self.near_node[entry], which[record]
        added = torch.cat([down[record] * self.near_down[entry, None], up[record] * self.near_up[entry, None]], 1)
        added = (added + (change @ self.stay.weight.T)[record] * self.near_self[entry, None]) * gain[kind]
        half = torch.arange(2, device=dose.device)  # rows are halves of a state, since its halves part ways
        place = (2 * (node * batch + record)[:, None] + half).view(-1)
        if shift is None and len(self.message) > 1:
            before = states.view(-1, self.hidden)[node * kinds + kind]
            added = F.leaky_relu(before + added, SLOPE) - F.leaky_relu(before, SLOPE)
            each = torch.arange(kinds, device=dose.device)
            states = self._round(1, F.leaky_relu(states, SLOPE), condition, each, 1.0)
            gain, _ = self._film(1, condition)
            sent = (self.message[1](added) * gain[kind]).view(-1, self.hidden // 2)
            sender, edge = ranges(self.edge_first[node], self.edge_count[node])
            side = self.edge_side[edge]
            reached = 2 * (self.edge_to[edge] * batch + record[sender]) + side
            place = torch.cat([place, reached])
            sent = sent.index_select(0, 2 * sender + side) * self.edge_weight[edge, None]
            added = torch.cat([added.view(-1, self.hidden // 2), sent])
        added, kind = added.view(-1, self.hidden // 2), self.kind
        if states.is_cuda or kind != states.dtype:
            place, entry = torch.unique(place, return_inverse=True)
            added = added.new_zeros(len(place), self.hidden // 2).index_add(0, entry, added)
            hidden = Spread.apply(states, added, place, which, kind, SLOPE)
        else:
            spread = states.index_select(1, which).view(-1, self.hidden // 2).index_add_(0, place, added)
            hidden = F.leaky_relu_(spread, SLOPE).view(-1, batch, self.hidden)
        return hidden if shift is None else hidden + shift(0).to(hidden.dtype)


def fit_grn(
    inputs: GrnInputs,
    regulator: np.ndarray,
    dose: np.ndarray,
    state: np.ndarray,
    delta_expression: np.ndarray,
    config: GrnConfig,
    seed: int,
    device: torch.device | str = "cpu",
    penalty: Penalty | None = None,
    regulator_class: np.ndarray | None = None,
    replicas: Replicas | None = None,
    course: Course | None = None,
) -> Grn:
    """Train on records [n] with changes [n, G] by AdamW on the mean squared error; on CPU the same bit for bit.

    The error is in units of the changes' mean square; `penalty` of the predicted changes is added to it. At the end
    regulators without a record take their embeddings from relatives in the graph or of their class [R] (`kinship`).
    All `replicas` call this with the same arguments and return the same network: that of one alone, to float
    tolerance. `course` hears each epoch's mean `loss`, and says where to go on.
    """
    replicas, course = replicas or Replicas(), course or Unkept(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Grn(inputs, config, device)
    rows = [torch.as_tensor(array, device=device) for array in (regulator, dose, state)]
    target = torch.as_tensor(delta_expression / np.float32(inputs.scale), device=device)
    parameters, decay = list(model.parameters()), config.weight_decay
    replicas.align_(parameters)
    optimiser = torch.optim.AdamW(parameters, config.learning_rate, weight_decay=decay, fused=True)
    size = min(config.batch, math.ceil(len(target) / STEPS))
    steps = Steps(optimiser, config.learning_rate, config.epochs * math.ceil(len(target) / size), replicas)
    for _ in range(course.begin("network", model=model, steps=steps), config.epochs):
        total = torch.zeros((), dtype=torch.float64, device=device)
        for batch in torch.randperm(len(target), generator=course.draw).to(device).split(size):
            loss = train_step(model, steps, rows, target, batch, config.accumulate, penalty, inputs.scale)
            total += loss * len(batch)
        course.end_epoch({"loss": float(replicas.sum(total)) / len(target)})
    trained = np.isin(np.arange(len(inputs.regulator_node)), regulator)
    if not trained.all():
        with torch.no_grad():
            own = model.own.double().cpu().numpy()
            own[~trained] = kinship(inputs, trained, regulator_class) @ own[trained]
            model.own.copy_(torch.from_numpy(own))
    return model.eval()


def train_step(
    model: Grn,
    steps: Steps,
    rows: Sequence[torch.Tensor],
    target: torch.Tensor,
    batch: torch.Tensor,
    parts: int = 1,
    penalty: Penalty | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """One step on the records `batch` [B] of `rows` [n] and `target` [n, G], this replica's share of them in `parts`.

    Returns the share's part of the mean loss.
    """
    mine, loss = steps.replicas.share(batch), torch.zeros((), device=target.device)
    steps.begin()
    for part in mine.tensor_split(parts):
        if not len(part):
            continue
        predicted = model(*(array[part] for array in rows))
        error = F.mse_loss(predicted, target[part])
        if penalty is not None:
            error = error + penalty(predicted * scale, rows[2][part])
        if len(part) < len(batch):
            error = error * (len(part) / len(batch))
        error.backward()
        loss += error.detach()
    steps.end()
    return loss


@torch.no_grad()
def predict_grn(
    model: Grn,
    inputs: GrnInputs,
    regulator: np.ndarray,
    dose: np.ndarray,
    state: np.ndarray,
    batch: int = 64,
    replicas: Replicas | None = None,
) -> np.ndarray:
    """Predicted changes [N, G] float32, log2 units, of records [N].

    Several replicas take the batches in turn; only the first returns all, the others none [0, G].
    """
    replicas = replicas or Replicas()
    rows = [torch.as_tensor(array, device=model.features.device) for array in (regulator, dose, state)]
    batches = list(zip(*(array.split(batch) for array in rows), strict=True))
    parts = [torch.zeros(0, model.genes)]
    for first in range(0, len(batches), replicas.count):
        turn = batches[first : first + replicas.count]
        mine = model(*turn[replicas.rank]) if replicas.rank < len(turn) else torch.zeros(0, model.genes)
        parts += [part.cpu() * inputs.scale for part in replicas.collect(mine, [len(part[0]) for part in turn])]
    return torch.cat(parts).numpy()
