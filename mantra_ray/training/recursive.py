"""Recursive correction: what the memory recalls enters every round of the GRN-GNN, in place of being added to it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mantra_ray.cascade.grn import Grn, Shift
from mantra_ray.config import NexusConfig
from mantra_ray.errors import InputError
from mantra_ray.forward import Base, Fold, Prediction, predict
from mantra_ray.nexus.adapter import Correction, Memories, Nexus, trimmed
from mantra_ray.nexus.cam import EMPTY
from mantra_ray.nexus.records import Records, hidden_share
from mantra_ray.nexus.tokens import REG
from mantra_ray.training.inputs import check_memory
from mantra_ray.training.networks import Networks, load_networks, networks_file
from mantra_ray.training.nexus import Trained, train_nexus
from mantra_ray.training.residual import Stepper, chosen_epoch, pass_metrics, read_metrics, read_only, summed
from mantra_ray.training.state import Candidates, Keeper, OnEpoch, Progress, workers

FACTS = 5  # scalars of a read that the gates see
BATCH = 64  # records of a prediction: states are [nodes, records, hidden]
RATE = 1e-3  # peak learning rate of the recursion
READER_RATE = 0.02  # of the readers, as a share of their own peak rate: they are trained already
# Peak learning rate of the networks. Above 0 a network trains on the very records that were held out from it: the
# training loss falls faster, the errors of other records do not.
NETWORK_RATE = 0.0
FLOOR = 0.01  # of a gene's squared readout, as a share of the mean: a gene that is hardly read out takes a small shift


class Recursion(nn.Module):
    """Gated shifts of node states from retrieved corrections, for each of k networks with L rounds of width H.

    shift_l[v, b] = gate_l(b) * (lifted[v, b] * (s_l d_v + u_l) + U_l p_b): the correction of the node's gene (0 for
    nodes that are no genes) along the direction d_v that the gene's own readout takes for a change of 1, and along a
    learned one; and the correction's programs p_b, the same for all nodes. u and U belong to one network each, since
    the channels of two networks do not correspond. At the start only s of the last round is not 0, and the networks
    read out the additive correction, or nearly so.
    """

    def __init__(self, models: list[Grn], programs: int):
        super().__init__()
        rounds, hidden = len(models[0].message), models[0].hidden
        self.along = nn.Parameter(F.one_hot(torch.tensor(rounds - 1), rounds).float())  # s
        self.free = nn.Parameter(torch.zeros(len(models), rounds, hidden))  # u
        self.everywhere = nn.Parameter(torch.zeros(len(models), rounds, programs, hidden))  # U
        self.gate = nn.Linear(FACTS, rounds)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def shift(self, number: int, model: Grn, lifted: Tensor, programs: Tensor, facts: Tensor) -> Shift:
        """Shifts of network `number` for records with corrections [B, G], programs [B, K] and facts [B, FACTS]."""
        beyond = len(model.features) - model.genes
        read_out = (model.readout + model.gene_readout).detach()
        power = read_out.square().sum(1, keepdim=True)
        direction = F.pad(read_out / (power + FLOOR * power.mean()).clamp_min(1e-12), (0, 0, 0, beyond))
        lifted = F.pad(lifted.T, (0, 0, 0, beyond))
        gate = 2 * torch.sigmoid(self.gate(facts))

        def entering(layer: int) -> Tensor:
            own = self.along[layer] * direction + self.free[number, layer]
            opened = gate[:, layer]
            shared = (opened[:, None] * programs) @ self.everywhere[number, layer]
            return torch.addcmul(shared, (lifted * opened)[:, :, None], own[:, None])

        return entering


class RecursiveCascade(nn.Module):
    """The memory's model and the networks, joined by a recursion; its outputs are changes of expression.

    Corrected change = base + manifold(GNN(x, shifts) - GNN(x)): a record for which nothing was read keeps the base
    bit for bit.
    """

    def __init__(self, fold: Base, networks: Networks, nexus: Nexus, scale: float):
        super().__init__()
        self.nexus, self.networks, self.scales = nexus, nn.ModuleList(networks.models), networks.scales
        self.scale, self.genewise = scale, nexus.config.correct == "genes"
        loadings = fold.loadings.astype(np.float64)
        arrays = {
            "lift": np.linalg.solve(loadings.T @ loadings, loadings.T),  # the smallest change with these programs
            "loadings": loadings,
            "seen": networks.smooth(np.ascontiguousarray(loadings.T)).T,  # programs of a change, past the manifold
        }
        device = networks.models[0].features.device
        for name, array in arrays.items():
            self.register_buffer(name, torch.tensor(array, dtype=torch.float32, device=device))
        self.recursion = Recursion(networks.models, loadings.shape[1]).to(device)

    def forward(self, number: int, records: Records, found: Correction, rows: Tensor) -> Tensor:
        """What network `number` makes of corrections: changes [n, G] of the records `rows` [n], before the manifold.

        In log2 units; 0 where the correction is 0.
        """
        value = found.value[rows] * self.scale
        read = value.any(1).nonzero().flatten()
        if not len(read):
            return value.new_zeros(len(rows), self.lift.shape[1])
        value, among = value[read], rows[read]
        lifted, programs = (value, value @ self.loadings) if self.genewise else (value @ self.lift, value)
        model, unit = self.networks[number], self.scales[number]
        shift = self.recursion.shift(number, model, lifted / unit, programs / self.scale, facts(records, found)[among])
        one = records.take(among)
        header = one.header[:, REG], one.dose, one.state
        change = (model(*header, shift) - model(*header)) * unit
        return change.new_zeros(len(rows), change.shape[1]).index_copy(0, read, change)

    def loss(self, records: Records, found: Correction, cross_fit: Tensor) -> Tensor:
        """Sum over records [B] of the mean squared error; each passes the network that never trained on it."""
        total = 0.0 * found.value.sum()  # has a gradient even where nothing was read
        for number in range(len(self.networks)):
            rows = (cross_fit == number).nonzero().flatten()
            change = self(number, records, found, rows) / self.scale
            seen = change if self.genewise else change @ self.seen
            total = total + (records.residual[rows] - seen).square().mean(1).sum()
        return total

    @torch.no_grad()
    def changes(self, memories: Memories, records: Records, cross_fit: Tensor) -> Tensor:
        """Changes [N, G] before the manifold: of a training row by its own fold's network, else their mean."""
        self.eval()
        parts = []
        for rows in torch.arange(len(records), device=cross_fit.device).split(BATCH):
            batch, own = records.take(rows), cross_fit[rows]
            found = self.nexus(memories, batch)
            part = found.value.new_zeros(len(rows), self.lift.shape[1])
            for number in range(len(self.networks)):
                weight = torch.where(own < 0, 1 / len(self.networks), (own == number).float())
                some = weight.nonzero().flatten()
                part[some] += weight[some, None] * self(number, batch, found, some)
            parts.append(part)
        return torch.cat(parts)


def facts(records: Records, found: Correction) -> Tensor:
    """What the gates see of a read, [B, FACTS]: correction's size, trust, similarity, own regulator's records, dose."""
    share = found.share
    similarity = torch.stack([read.sim_max for read in found.found], dim=1)
    hard = torch.stack([read.hard.to(share.dtype) for read in found.found], dim=1)
    size = torch.log1p(found.value.square().mean(1))
    return torch.stack(
        [size, (share * found.gate).sum(1), (share * similarity).sum(1), (share * hard).sum(1), records.dose], dim=1
    )


@dataclass
class TrainedRecursion(Trained):
    """A trained recursive correction; `corrections` is what the memory recalls, `changes` what comes of it."""

    cascade: RecursiveCascade
    networks: Networks

    def changes(self, fold: Fold, memories: Memories | None = None) -> np.ndarray:
        """What the memory changes in the predicted expression of all rows, [N, G], log2 units, past the manifold."""
        memories = self.memories if memories is None else memories
        records = self.inputs.records
        cross_fit = torch.tensor(fold.cross_fit, device=records.record.device)
        return self.networks.smooth(self.cascade.changes(trimmed(memories), records, cross_fit).cpu().numpy())

    def predict(self, fold: Fold, memories: Memories | None = None) -> Prediction:
        """Predictions of all rows with the given memory (default: the warmed one)."""
        return predict(fold, np.arange(len(fold.regulator)), expression=self.changes(fold, memories))


def train_recursive(
    fold: Fold,
    networks: Networks,
    start: Trained,
    seed: int,
    on_epoch: OnEpoch | None = None,
    network_rate: float = NETWORK_RATE,
    keeper: Keeper | None = None,
) -> TrainedRecursion:
    """Go on from a memory that was trained to add, and from the fold's networks; neither is changed.

    Readers, recursion and networks (at `network_rate`; 0 leaves them) are trained together on what `start` was
    trained on. The transformer stays as it is, so that it gates the same writes. A `keeper` is that which `start` was
    trained with. Raises InputError for a fold without networks.
    """
    if fold.loadings is None:
        raise InputError("options", "--nexus.correction", "recursive", "the data has no changes of expression")
    networks = Networks(copy.deepcopy(networks.models), networks.scales, networks.smooth)
    cascade = RecursiveCascade(fold, networks, copy.deepcopy(start.model), start.inputs.scale)
    progress = Progress(seed, on_epoch, keeper, start.curves)
    memories, diagnostics = _fit(fold, cascade, start.inputs.records, network_rate, progress)
    return TrainedRecursion(cascade.nexus, memories, start.inputs, progress.curves, diagnostics, cascade, networks)


class _Stepper(Stepper):
    """Steps at a rate of their own for the recursion, the readers and the networks."""

    def __init__(self, cascade: RecursiveCascade, network_rate: float, steps: int):
        config = cascade.nexus.config
        readers = [p for name, p in cascade.nexus.named_parameters() if not name.startswith("transformer")]
        groups = [
            {"params": list(cascade.recursion.parameters()), "lr": RATE, "weight_decay": 0.0},
            {"params": readers, "lr": READER_RATE * config.learning_rate, "weight_decay": 0.0},
            {"params": list(cascade.networks.parameters()), "lr": network_rate, "weight_decay": 0.0},
        ]
        cascade.requires_grad_(False)
        groups = [group for group in groups if group["lr"] > 0]
        self.parameters = [parameter.requires_grad_() for group in groups for parameter in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        rates = [group["lr"] for group in groups]
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rates, total_steps=max(steps, 2))


def _fit(
    fold: Fold, cascade: RecursiveCascade, records: Records, network_rate: float, progress: Progress
) -> tuple[Memories, dict[str, float]]:
    """Train; returns the memory warmed by the weights of the epoch that validation chooses, and its diagnostics."""
    nexus, config, device = cascade.nexus, cascade.nexus.config, records.record.device
    train, held_out = (records.take(torch.tensor(rows, device=device)) for rows in (fold.train, fold.validation))
    nobodys = torch.full((len(held_out),), -1, device=device)
    stepper = _Stepper(cascade, network_rate, -(-len(train) // config.batch) * config.epochs)
    candidates = Candidates(stepper.parameters, chosen_epoch)
    parts = {"model": nexus, "recursion": cascade.recursion, "stepper": stepper, "candidates": candidates}
    if network_rate > 0:
        parts["networks"] = cascade.networks
    for epoch in range(progress.begin("recursion", **parts), config.epochs + 1):
        memories, seen = nexus.warm(train)
        reader = trimmed(memories)
        change = cascade.changes(reader, held_out, nobodys) / cascade.scale
        programs = change if cascade.genewise else change @ cascade.seen
        error = (held_out.residual - programs).square().mean(1)
        candidates.add(error)
        metrics = pass_metrics(seen) | read_metrics(read_only(nexus, reader, held_out))
        metrics["validation_gain"] = 1 - float(error.mean() / held_out.residual.square().mean())
        if epoch < config.epochs:
            cross_fit = torch.tensor(fold.cross_fit[fold.train], device=device)
            metrics["loss"] = _run_epoch(cascade, reader, train, cross_fit, stepper, progress.draw)
        progress.end_epoch(metrics)
    chosen = candidates.take_()
    memories, diagnostics = nexus.warm(train)
    return memories, diagnostics | {"epoch": float(chosen)}


def _run_epoch(
    cascade: RecursiveCascade,
    memories: Memories,
    train: Records,
    cross_fit: Tensor,
    stepper: _Stepper,
    draw: torch.Generator,
) -> float:
    """One pass over the training records, with states and regulators hidden as in training to add; the mean loss."""
    config, device, total = cascade.nexus.config, train.record.device, 0.0
    rank, world = workers()
    order = torch.randperm(len(train), generator=draw)
    state = hidden_share(train.state, config.hide_state, draw)
    token = hidden_share(train.header[:, 0], config.hide_regulator, draw)
    cascade.train()
    for whole in order.split(config.batch):
        rows = whole[rank::world].to(device)
        batch = train.take(rows)
        found = cascade.nexus(memories, batch, state[rows], token[rows], batch.known & (token[rows] == EMPTY))
        error = cascade.loss(batch, found, cross_fit[rows])
        stepper.optimizer.zero_grad()
        (error / len(whole)).backward()
        stepper.step()
        total += float(summed([error.detach()])[0])
    cascade.eval()
    return total / len(train)


def train_memory(
    fold: Fold,
    folder: Path,
    config: NexusConfig,
    seed: int,
    on_epoch: OnEpoch | None = None,
    device: str = "cpu",
    keeper: Keeper | None = None,
) -> Trained:
    """Train the memory as the config wants it: added, or fed into the networks that lie beside the fold in `folder`.

    With a `keeper` it goes on where a run of the same arguments was interrupted.
    """
    recursive = config.correction == "recursive"
    check_memory(config, fold.loadings is not None, has_classes=True)  # before the networks are looked for
    networks = load_networks(networks_file(folder, fold.meta), device) if recursive else None
    start = train_nexus(fold, config, seed, on_epoch=on_epoch, device=device, keeper=keeper)
    return start if networks is None else train_recursive(fold, networks, start, seed, on_epoch, NETWORK_RATE, keeper)
