"""What TensorBoard shows of one trial: its curves as they grow, then its settings, final numbers and memory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import histogram

from mantra_ray.config import ExperimentConfig
from mantra_ray.fields import flatten
from mantra_ray.provenance import without_secrets
from mantra_ray.sweep.held import Held
from mantra_ray.sweep.hparams import Columns, trial_summaries
from mantra_ray.sweep.slot_map import slot_map
from mantra_ray.sweep.spec import TrialSpec

DEFAULTS = flatten(ExperimentConfig())
BINS = 30  # of a histogram: as many as TensorBoard draws
COLUMNS = "columns"  # the run that holds nothing but those of the HParams tab
FILES = "events.out.tfevents.*"


class TrialBoard:
    """Event files under one folder; opened at the first number, so that it can travel to a worker before."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._writer: SummaryWriter | None = None

    def clear(self) -> None:
        """Remove what an earlier, unfinished run of the trial left."""
        for old in self.folder.glob(FILES):
            old.unlink()

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Add one epoch's scalars (loss, gain, write density, occupancy, ...)."""
        for name, value in metrics.items():
            self._open().add_scalar(f"epoch/{name}", value, epoch)
        self._open().flush()  # who watches sees it at once, and a process that is killed has left it

    def finish(self, spec: TrialSpec, final: dict[str, float], held: Sequence[Held] = ()) -> None:
        """Add all settings as text, the final numbers and, for the HParams tab, a trial's knobs; its memory; close.

        Baselines have no knobs and no numbers of a memory: they would stand there as empty rows.
        """
        self._open().add_text("settings", settings_text(spec), 0)
        summaries = trial_summaries(spec) if spec.kind == "nexus" else []
        for summary in (*summaries, *(part for manifold in held for part in held_summaries(manifold))):
            self._open().file_writer.add_summary(summary, 0)
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


def begin(folder: Path, columns: Columns, trials: Mapping[str, TrialSpec]) -> None:
    """Make a sweep's folder ready: the columns of its HParams tab, and every run under the name that it has now.

    A run that an earlier command began may be called otherwise, by other columns.
    """
    TrialBoard(folder / COLUMNS).clear()
    with SummaryWriter(str(folder / COLUMNS)) as writer:
        writer.file_writer.add_summary(columns.summary())
    for run in [path for path in folder.iterdir() if path.is_dir()]:
        trial = trials.get(run.name.rpartition("_")[2])
        if trial is not None and not (named := folder / columns.run(trial)).exists():
            run.rename(named)


def held_summaries(held: Held) -> list[Summary]:
    """Of one manifold: the map of its slots, and histograms of priorities and similarities where there are any."""
    png, height, width = slot_map(held.priority)
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
    found = [Summary(value=[Summary.Value(tag=f"memory/{held.name}_slots", image=image)])]
    told = {"priority": (held.priority, BINS)}
    told |= {f"similarity_{part}": (of, np.linspace(0, 1, BINS + 1)) for part, of in held.similarity.items()}
    for name, (values, bins) in told.items():
        if len(known := values[np.isfinite(values)]):
            found.append(histogram(f"memory/{held.name}_{name}", known, bins))
    return found


def settings_text(spec: TrialSpec) -> str:
    """Every setting of a trial as a table in Markdown, those that are not the package's default in bold."""
    head = f"{spec.kind} trial `{spec.id}`, data `{spec.data_sha256}`, code `{spec.code}`"
    rows = []
    for name, value in flatten(spec.config).items():
        (shown,) = without_secrets([f"`{json.dumps(value)}`"])
        rows.append(f"| {name} | {shown if value == DEFAULTS[name] else f'**{shown}**'} |")
    return "\n".join([head, "", "| setting | value |", "|---|---|", *rows])
