"""What TensorBoard shows of one trial: its curves as they grow, then its settings as text, and its final numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from mantra_ray.config import ExperimentConfig
from mantra_ray.fields import flatten
from mantra_ray.provenance import without_secrets
from mantra_ray.sweep.spec import TrialSpec

# Diagnostics among the final numbers, beside the gains; a trial has most of them.
FINAL = (
    *("write_density", "gated_density", "occupancy", "evictions", "collisions", "load", "hard_hit_rate", "gate_mean"),
    *("sim_max_mean", "read_entropy", "transport", "records_per_second", "memory_bytes", "training_seconds"),
)
UNTUNED = ("data.", "evaluation.")  # sections that no sweep turns; the text has them
DEFAULTS = flatten(ExperimentConfig())


class TrialBoard:
    """Event files under one folder; opened at the first number, so that it can travel to a worker before."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._writer: SummaryWriter | None = None

    def clear(self) -> None:
        """Remove what an earlier, unfinished run of the trial left."""
        for old in self.folder.glob("events.out.tfevents.*"):
            old.unlink()

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Add one epoch's scalars (loss, gain, write density, occupancy, ...)."""
        for name, value in metrics.items():
            self._open().add_scalar(name, value, epoch)
        self._open().flush()  # who watches sees it at once, and a process that is killed has left it

    def finish(self, spec: TrialSpec, final: dict[str, float]) -> None:
        """Add all settings as text, the final numbers and, for the HParams tab, a trial's knobs with them; and close.

        Baselines have no knobs and no numbers of a memory: they would stand there as empty rows.
        """
        self._open().add_text("settings", settings_text(spec), 0)
        if spec.kind == "nexus":
            for summary in hparams(knobs(spec), {f"final/{name}": value for name, value in final.items()}):
                self._open().file_writer.add_summary(summary)
        for name, value in final.items():
            self._open().add_scalar(f"final/{name}", value, 0)
        self.close()

    def close(self) -> None:
        """Write what is still waiting; later numbers go to another file of the same folder."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> SummaryWriter:
        if self._writer is None:
            # A file is named by second and host; two workers of one trial may share both.
            self._writer = SummaryWriter(str(self.folder), filename_suffix=f".{os.getpid()}")
        return self._writer


def knobs(spec: TrialSpec) -> dict[str, Any]:
    """What the HParams tab compares trials by: seed, split and every setting that a sweep may turn."""
    flat = {name: value for name, value in flatten(spec.config).items() if not name.startswith(UNTUNED)}
    split = flat.pop("split.kind")
    plain = {name: json.dumps(value) if isinstance(value, list) else value for name, value in flat.items()}
    return plain | {"split": split}


def settings_text(spec: TrialSpec) -> str:
    """Every setting of a trial as a table in Markdown, those that are not the package's default in bold."""
    head = f"{spec.kind} trial `{spec.id}`, data `{spec.data_sha256}`, code `{spec.code}`"
    rows = []
    for name, value in flatten(spec.config).items():
        (shown,) = without_secrets([f"`{json.dumps(value)}`"])
        rows.append(f"| {name} | {shown if value == DEFAULTS[name] else f'**{shown}**'} |")
    return "\n".join([head, "", "| setting | value |", "|---|---|", *rows])
