"""TensorBoard scalars of one trial: its curves as they grow, then its settings and final numbers."""

from __future__ import annotations

import os
from pathlib import Path

from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from mantra_ray.fields import flatten
from mantra_ray.sweep.spec import TrialSpec


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
        """Add the memory's settings and the final numbers for the HParams tab, and close."""
        knobs = flatten(spec.config.nexus, "nexus.") | {"seed": spec.config.seed, "split": spec.config.split.kind}
        for summary in hparams(knobs, {f"final/{name}": value for name, value in final.items()}):
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
