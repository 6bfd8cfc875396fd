"""Mode A's first half: the transformer as a language model of the record stream."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mantra_ray.nexus.adapter import Nexus
from mantra_ray.nexus.cam import EMPTY
from mantra_ray.nexus.records import Records, hidden_share
from mantra_ray.training.descent import Descent
from mantra_ray.training.residual import Stepper, pass_metrics, summed
from mantra_ray.training.state import Progress, workers


def fit_language(model: Nexus, train: Records, held_out: Records, progress: Progress) -> None:
    """Train the transformer on the next token of the stream of training records, in place.

    Every epoch orders the records anew, writes them one after another and cuts the stream into windows. A header must
    also be understood by itself, since prediction sees nothing else; so each step reads as many records alone,
    some with their regulator hidden. Curves hold the loss in nats a token, that of the validation records, each alone,
    and the writes that the entropy of the moment lets through.
    """
    config, device = model.config, train.record.device
    rank, world = workers()
    tokens = torch.cat([train.header, train.content], dim=1)
    known = torch.ones(len(train), dtype=torch.bool, device=device)
    a_step = max(1, config.batch * tokens.shape[1] // config.window)  # windows that hold a batch of records
    windows = math.ceil(tokens.numel() / config.window)
    parameters = dict(model.transformer.named_parameters())
    stepper = Stepper(model, parameters, math.ceil(windows / a_step) * config.language_epochs)
    model.transformer.compile_for_(2 * tokens.numel() * config.language_epochs)
    draw = progress.draw

    def losses(batch: Tensor, rows: Tensor, hide: Tensor) -> tuple[Tensor, Tensor]:
        """This worker's share of the loss of windows `batch` and of the records `rows`, each alone."""
        loss = 0 * model.transformer.norm.bias.sum()  # has a gradient even where this worker's share is empty
        mine, alone = batch[rank::world], rows[rank::world]
        if len(mine):
            loss = loss + model.language_loss(mine) * len(mine) / len(batch)
        if len(alone):
            loss = loss + model.language_loss(tokens[alone], known[alone] & ~hide[alone]) * len(alone) / len(rows)
        return loss / 2, loss.detach() / 2

    descent = Descent(losses, stepper.parameters, stepper.steps)
    for _ in range(progress.begin("language", model=model, stepper=stepper), config.language_epochs):
        _, seen = model.warm(train)
        model.train()
        order = torch.randperm(len(train), generator=draw).to(device)
        hide = hidden_share(train.header[:, 0], config.hide_regulator, draw) != EMPTY
        total = torch.zeros((), dtype=torch.float64, device=device)
        whole = stream_windows(tokens[order], config.window).split(a_step)
        for step, batch in enumerate(whole):
            rows = order[step * len(order) // len(whole) : (step + 1) * len(order) // len(whole)]
            total += descent(batch, rows, hide)
            stepper.step()
        model.eval()
        mean = float(summed([total])[0]) / max(len(whole), 1)
        metrics = {"language_loss": mean} | pass_metrics(seen)
        if len(held_out):
            with torch.no_grad():
                said = torch.cat([held_out.header, held_out.content], dim=1)
                metrics["validation_language_loss"] = float(model.language_loss(said, held_out.known))
        progress.end_epoch(metrics)


def stream_windows(tokens: Tensor, window: int) -> Tensor:
    """Records' tokens [N, L] one after another, cut into windows [n, min(window, N * L)]; the last one overlaps.

    A window starts where the one before it ends, wherever in a record that is; only the last reaches back, so that
    every token is read and all windows are of one length.
    """
    stream = tokens.flatten()
    window = min(window, len(stream))
    starts = torch.arange(0, len(stream), window, device=tokens.device).clamp_max(len(stream) - window)
    return stream[starts[:, None] + torch.arange(window, device=tokens.device)]
