"""Mode B: Nexus trained by regression on the residual that the base leaves, `delta_program - base_program`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mantra_ray.config import NexusConfig
from mantra_ray.forward import Fold
from mantra_ray.nexus.adapter import Nexus, Records, hidden_share
from mantra_ray.nexus.cam import EMPTY, Memory
from mantra_ray.nexus.tokens import Vocabulary
from mantra_ray.nexus.warming import warm

OnEpoch = Callable[[int, dict[str, float]], None]


@dataclass
class Trained:
    """A trained model with the memory that its final weights warmed on the training rows."""

    model: Nexus
    memory: Memory
    records: Records  # all N rows
    scale: float  # root mean square of the training residuals: the unit of values and corrections
    curves: list[dict]  # epoch, metric, value
    diagnostics: dict[str, float]  # of the final warming pass


def bucket_count(config: NexusConfig, records: int) -> int:
    """B: as configured, or what brings `records` / (B * S) nearest to the configured load."""
    return max(1, round(records / (config.load * config.slots))) if config.load > 0 else config.buckets


def make_records(
    fold: Fold, config: NexusConfig, residual: np.ndarray, device: str
) -> tuple[Vocabulary, Records, float]:
    """Vocabulary, records of all rows and the residuals' scale; edges and scale come from training rows alone."""
    train = fold.train
    vocabulary = Vocabulary.learn(
        fold.dose[train],
        fold.delta_program[train],
        regulators=len(fold.regulator_class),
        states=int(fold.state.max()) + 1,
        dose_bins=config.dose_bins,
        magnitude_bins=config.magnitude_bins,
        top_programs=config.top_programs,
    )
    scale = float(np.sqrt(np.mean(np.square(residual[train], dtype=np.float64)))) or 1.0
    arrays = {
        "header": vocabulary.header(fold.regulator, fold.dose, fold.state),
        "content": vocabulary.content(fold.delta_program),
        "dose": fold.dose.astype(np.float32),
        "base": (fold.base_program / scale).astype(np.float32),
        "residual": (residual / scale).astype(np.float32),
        "noise": (fold.program_noise.mean(1) / scale**2).astype(np.float32),
        "bucket": fold.regulator % bucket_count(config, len(train)),
        "state": fold.state,
        "record": np.arange(len(fold.state)),
        "known": np.isin(fold.regulator, fold.regulator[train]),
    }
    return vocabulary, Records(**{name: torch.tensor(a, device=device) for name, a in arrays.items()}), scale


def train_nexus(
    fold: Fold,
    config: NexusConfig,
    seed: int,
    residual: np.ndarray | None = None,
    on_epoch: OnEpoch | None = None,
    device: str = "cpu",
) -> Trained:
    """Train on the fold's residuals, or on others [N, K] in their place (the shuffled control).

    Each epoch starts from a cleared memory, warmed by the weights of that moment; batches read it and never
    write. The weights of the epoch that validation chooses warm the memory that is returned.
    """
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    vocabulary, records, scale = make_records(fold, config, fold.residual if residual is None else residual, device)
    model = Nexus(vocabulary, config, bucket_count(config, len(fold.train))).to(device)
    train = records.take(torch.tensor(fold.train, device=device))
    held_out = records.take(torch.tensor(fold.validation, device=device))
    lift = torch.tensor(fold.lift, device=device)
    plain = [p for name, p in model.named_parameters() if name != "decoder"]
    groups = [{"params": plain}, {"params": [model.decoder], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    steps = -(-len(train) // config.batch) * config.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=max(steps, 2))
    curves: list[dict] = []
    weights, errors = [], []
    for epoch in range(config.epochs + 1):
        memory, seen = warm(model.empty_memory(), model.stream(train), config, decode=model.decode)
        reader = memory.trim()
        if epoch == 0:
            model.trust_(reader, train, lift)
        error = (held_out.residual - predict_residual(model, reader, held_out) @ lift).square().mean(1)
        weights.append(copy.deepcopy(model.state_dict()))
        errors.append(error.double().cpu().numpy())
        metrics = {name: seen[name] for name in ("write_density", "occupancy", "evictions")}
        metrics["validation_gain"] = 1 - float(error.mean() / held_out.residual.square().mean())
        if epoch < config.epochs:
            metrics["loss"] = _run_epoch(model, reader, train, lift, optimizer, schedule, draw)
        curves += [{"epoch": epoch, "metric": name, "value": value} for name, value in metrics.items()]
        if on_epoch:
            on_epoch(epoch, metrics)
    chosen = chosen_epoch(np.stack(errors))
    model.load_state_dict(weights[chosen])
    memory, diagnostics = warm(model.empty_memory(), model.stream(train), config, decode=model.decode)
    return Trained(model, memory, records, scale, curves, diagnostics | {"epoch": float(chosen)})


def chosen_epoch(errors: np.ndarray) -> int:
    """The epoch of least validation error [epochs, records], or 0 if it beats the start by less than its noise.

    The one-standard-error rule (Breiman et al. 1984) on paired differences to epoch 0: with few validation records
    the least error is picked from noise, and training must show more than that to replace the start.
    """
    best = int(errors.mean(1).argmin())
    gain = errors[0] - errors[best]
    if len(gain) < 2:
        return 0
    return best if gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)) else 0


def _run_epoch(model: Nexus, memory: Memory, train: Records, lift: Tensor, optimizer, schedule, draw) -> float:
    """One pass over the training records in random order; returns the mean residual loss.

    With several workers each takes its share of every batch and gradients are summed, so that the step is the
    same for any number of workers (to float tolerance; dropout draws its own masks on each).
    """
    config, total = model.config, 0.0
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    order = torch.randperm(len(train), generator=draw)
    state = hidden_share(train.state, config.hide_state, draw)
    token = hidden_share(train.header[:, 0], config.hide_regulator, draw)
    model.train()
    for whole in order.split(config.batch):
        rows = whole[rank::world].to(train.record.device)
        batch = train.take(rows)
        known = batch.known & (token[rows] == EMPTY)  # a hidden regulator is one never seen
        correction, *_ = model(memory, batch, state[rows], token[rows], known)
        error = (batch.residual - correction @ lift).square().mean(1).sum() / len(whole)
        loss = error
        spoken = whole[: math.ceil(len(whole) * config.language_share)]
        mine = spoken[rank::world].to(train.record.device)
        if config.language_weight > 0 and len(mine):
            loss = loss + config.language_weight * model.language_loss(train.take(mine)) * len(mine) / len(spoken)
        optimizer.zero_grad()
        loss.backward()
        error = error.detach() * len(whole)
        if world > 1:
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
            dist.all_reduce(error)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += float(error)
    model.eval()
    return total / len(train)


@torch.no_grad()
def predict_residual(model: Nexus, memory: Memory, records: Records) -> Tensor:
    """Corrections [N, K] in units of the residual scale; records never read their own slot, nothing is written."""
    model.eval()
    return model(memory, records)[0]
