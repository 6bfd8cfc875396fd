"""Regression on the residual that the base leaves: of the whole model (Mode B), or of its decoding head (Mode A)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mantra_ray.nexus.adapter import Correction, Memories, Nexus, trimmed
from mantra_ray.nexus.cam import EMPTY, Memory
from mantra_ray.nexus.gather import gathered, share
from mantra_ray.nexus.records import Records, hidden_share
from mantra_ray.training.descent import Descent
from mantra_ray.training.inputs import Space
from mantra_ray.training.state import Candidates, Progress, workers

PASS = ("write_density", "occupancy", "evictions", "records_per_second")  # of a warming pass, told of every epoch
RATES = ("initial_lr", "max_lr", "min_lr", "weight_decay")  # of a group: what the settings say, not the state


class Stepper:
    """AdamW steps under a one-cycle schedule, with gradients summed over the workers, if there are several."""

    def __init__(self, model: Nexus, parameters: dict[str, nn.Parameter], steps: int):
        config, self.steps = model.config, steps
        self.parameters = list(parameters.values())
        plain = [p for name, p in parameters.items() if not name.endswith("decoder")]
        gains = [p for name, p in parameters.items() if name.endswith("decoder")]
        groups = [{"params": plain}, {"params": gains, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, config.learning_rate, weight_decay=config.weight_decay, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.learning_rate, total_steps=max(steps, 2)
        )

    def step(self) -> None:
        """One step down the gradients of this worker's share of the loss."""
        if workers()[1] > 1:
            self._add_up()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()

    def _add_up(self) -> None:
        """Sum the gradients over the workers, all in one exchange."""
        for parameter in self.parameters:
            if parameter.grad is None:  # a share without rows that touch it
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.parameters]
        whole = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(whole)
        parts = whole.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])

    def state_dict(self) -> dict[str, Any]:
        """Moments and place in the schedule."""
        return {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, at the rates that this stepper was made with."""
        own = [dict(group) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        for group, settings in zip(self.optimizer.param_groups, own, strict=True):
            group["lr"] *= settings["max_lr"] / group["max_lr"]  # 1 unless the settings changed in between
            group.update({name: settings[name] for name in RATES})


def fit_correction(
    model: Nexus, train: Records, held_out: Records, space: Space, progress: Progress
) -> tuple[Memories, dict[str, float]]:
    """Fit the model's readers, and in Mode B its transformer, to the training residuals.

    Each epoch starts from a cleared memory, warmed by the weights of that moment; batches read it and never
    write. Returns the memory that the weights of the epoch which validation chooses have warmed, and the
    diagnostics of that pass.
    """
    config = model.config
    named = {n: p for n, p in model.named_parameters() if config.mode == "residual" or not n.startswith("transformer")}
    stepper = Stepper(model, named, -(-len(train) // config.batch) * config.epochs)
    length = train.header.shape[1] + math.ceil(model.vocabulary.length * config.language_share)
    model.transformer.compile_for_(len(train) * length * config.epochs)
    candidates = Candidates(stepper.parameters, chosen_epoch)
    first = progress.begin("correction", model=model, stepper=stepper, candidates=candidates)
    regression = Regression(model, train, space, stepper)
    for epoch in range(first, config.epochs + 1):
        memories, seen = model.warm(train)
        reader = trimmed(memories)
        if epoch == 0:
            model.trust_(reader, train, space.reached, space.observed(train.residual))
        error, metrics = validated(model, reader, held_out, space)
        candidates.add(error)
        metrics |= pass_metrics(seen)
        metrics["validation_gain"] = 1 - float(error.mean() / space.observed(held_out.residual).square().mean())
        if epoch < config.epochs:
            metrics["loss"] = regression.epoch(reader, progress.draw)
        progress.end_epoch(metrics)
    chosen = candidates.take_()
    memories, diagnostics = model.warm(train)
    return memories, diagnostics | {"epoch": float(chosen)}


def pass_metrics(seen: dict[str, float]) -> dict[str, float]:
    """What is told of each epoch's warming pass, from its diagnostics."""
    return {name: seen[name] for name in PASS}


def read_metrics(found: Correction) -> dict[str, float]:
    """Means over records and manifolds of what reads found, and of the trust in it; empty where nothing was read."""
    return means(of_records(found))


def of_records(found: Correction) -> dict[str, Tensor]:
    """Means over manifolds, each [N], of what reads found, and of the trust in it."""

    def mean(values: Iterable[Tensor]) -> Tensor:
        return torch.stack(list(values)).float().mean(0)

    return {
        "hard_hit_rate": mean(read.hard for read in found.found),
        "gate_mean": found.gate.float().mean(1),
        "sim_max_mean": mean(read.sim_max for read in found.found),
        "read_entropy": mean(read.entropy for read in found.found),
    }


def means(columns: Mapping[str, Tensor]) -> dict[str, float]:
    """Means of columns [N]; without records no columns."""
    return {name: float(values.mean()) for name, values in columns.items() if len(values)}


def validated(model: Nexus, memories: Memories, records: Records, space: Space) -> tuple[Tensor, dict[str, float]]:
    """Errors [N] of the corrections of held-out records, and `read_metrics`; each worker computes its share of them."""
    mine = records.take(share(len(records), *workers()))
    found = read_only(model, memories, mine)
    columns = of_records(found)
    error, *whole = gathered([space.error(mine.residual, found.value), *columns.values()], len(records))
    return error, means(dict(zip(columns, whole, strict=True)))


def chosen_epoch(errors: np.ndarray) -> int:
    """The epoch of least validation error [epochs, records], or 0 if it beats the start by less than its noise.

    The one-standard-error rule (Breiman et al. 1984) on paired differences to epoch 0: with few validation records
    the least error is picked from noise, and training must show more than that to replace the start.
    """
    if errors.shape[1] < 2:
        return 0
    best = int(errors.mean(1).argmin())
    gain = errors[0] - errors[best]
    return best if gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)) else 0


class Loss:
    """The loss of a batch of training records: errors of the corrections, and in Mode B of the next tokens."""

    def __init__(self, model: Nexus, train: Records, space: Space):
        self.model, self.train, self.space = model, train, space
        self.tokens = torch.cat([train.header, train.content], dim=1)

    def __call__(self, whole: Tensor, state: Tensor, token: Tensor, *held: Tensor) -> tuple[Tensor, Tensor]:
        """This worker's share of the loss of the records `whole`, and its sum of their errors.

        State and token [N] are hidden from records, and `held` are the memories' tensors.
        """
        config, train, (rank, world) = self.model.config, self.train, workers()
        each = len(held) // len(self.model.readers)
        memories = tuple(Memory(*held[start : start + each]) for start in range(0, len(held), each))
        rows = whole[rank::world]
        batch = train.take(rows)
        known = batch.known & (token[rows] == EMPTY)  # a hidden regulator is one never seen
        correction = self.model(memories, batch, state[rows], token[rows], known).value
        error = self.space.error(batch.residual, correction).sum() / len(whole)
        loss = error
        spoken = whole[: math.ceil(len(whole) * config.language_share)]
        mine = spoken[rank::world]
        if config.mode == "residual" and config.language_weight > 0 and len(mine):
            said = self.model.language_loss(self.tokens[mine], train.known[mine])
            loss = loss + config.language_weight * said * len(mine) / len(spoken)
        return loss, error.detach() * len(whole)


class Regression:
    """Passes over the training records in random order, a step a batch.

    With several workers each takes its share of every batch and gradients are summed, so that the step is the
    same for any number of workers (to float tolerance; dropout draws its own masks on each). Nothing waits for the
    device before the end of a pass.
    """

    def __init__(self, model: Nexus, train: Records, space: Space, stepper: Stepper):
        self.model, self.train, self.stepper = model, train, stepper
        self.descent = Descent(Loss(model, train, space), stepper.parameters, stepper.steps)

    def epoch(self, memories: Memories, draw: torch.Generator) -> float:
        """One pass that reads the memories and never writes; returns the mean residual loss."""
        config, train = self.model.config, self.train
        device = train.record.device
        order = torch.randperm(len(train), generator=draw).to(device)
        state = hidden_share(train.state, config.hide_state, draw)
        token = hidden_share(train.header[:, 0], config.hide_regulator, draw)
        total = torch.zeros((), dtype=torch.float64, device=device)
        held = [tensor for memory in memories for tensor in vars(memory).values()]
        self.model.train()
        for whole in order.split(config.batch):
            total += self.descent(whole, state, token, *held)
            self.stepper.step()
        self.model.eval()
        return float(summed([total])[0]) / len(train)


def summed(values: Iterable[Tensor]) -> list[Tensor]:
    """Values added up over the workers."""
    values = list(values)
    if workers()[1] > 1:
        for value in values:
            dist.all_reduce(value)
    return values


@torch.no_grad()
def read_only(model: Nexus, memories: Memories, records: Records) -> Correction:
    """Corrections in units of the residual scale; nothing is written."""
    model.eval()
    return model(memories, records)
