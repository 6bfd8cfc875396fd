"""`mantra reproduce`: run a trial again from its row alone, and compare what it gives with what was stored."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from mantra_ray import terminal
from mantra_ray.data.catalog import load_screen
from mantra_ray.data.controls import with_controls
from mantra_ray.data.screen import Screen
from mantra_ray.errors import InputError
from mantra_ray.files import Place, Remote
from mantra_ray.forward import Fold
from mantra_ray.provenance import code_version, provenance
from mantra_ray.sweep.cluster import connected
from mantra_ray.sweep.folder import sweep_folder
from mantra_ray.sweep.options import shown
from mantra_ray.sweep.progress import Display, clock
from mantra_ray.sweep.restore import Difference, differences, find_row, relocated, spec_of
from mantra_ray.sweep.runner import CODE
from mantra_ray.sweep.spec import TrialSpec
from mantra_ray.sweep.store import Store
from mantra_ray.sweep.trial import run_trial
from mantra_ray.training.stages import files, is_done, make_folds, stage_key

COMPARED = ("device", "torch", "cuda", "python", "numpy")  # versions on which a number's last digits may depend


@dataclass(frozen=True)
class ReproduceOptions:
    """Run a trial again from its row, and compare; exit code 1 if a number differs by more than the tolerance."""

    folder: Annotated[tyro.conf.Positional[str], shown("FOLDER")]
    """Folder or address of the sweep."""
    trial: Annotated[tyro.conf.Positional[str], shown("TRIAL")]
    """The trial's id, or as much of its beginning as no other has."""
    tolerance: float = 1e-6
    """Largest difference that passes, as a share of the stored number; 0 asks for the same bits."""
    data_dir: Annotated[str, shown("FOLDER", "where the trial found them")] = ""
    """Folder of the built-in data sets' files."""

    def check(self) -> None:
        """Raise InputError for a value that cannot be."""
        if not self.tolerance >= 0:
            raise InputError("options", "--tolerance", self.tolerance, "must not be negative")
        if not self.trial:
            raise InputError("options", "TRIAL", self.trial, "must be the beginning of a trial's id")


def main(args: Sequence[str]) -> int:
    """Run `mantra reproduce ARGS`; returns the exit code."""
    options = tyro.cli(ReproduceOptions, args=list(args), prog="mantra reproduce")
    options.check()
    console = terminal.console()
    root, store, _ = sweep_folder(options.folder)
    row = find_row(store, options.trial)
    stored = spec_of(row)
    if str(row.get("provenance.device", "")).startswith("cpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as in the sweep, which hides GPUs that a trial did not ask for
    with Display(console) as display, tempfile.TemporaryDirectory() as scratch:
        config = relocated(stored.config, options.data_dir)
        display.say(f"Trial {row['trial']}: {stored.kind}, split {config.split.kind}, seed {config.seed}")
        screen = with_controls(load_screen(config.data), [config])
        for warning in other_origin(row, stored, screen.sha256):
            display.say(f"Note: {warning}")
        spec = replace(stored, config=config)
        path = fold_file(root, screen, spec, Path(scratch), display)
        display.say(f"Running it; it took {clock(row['seconds'] or 0)} then")
        torch.set_num_threads(int(row.get("provenance.threads") or 1))
        outcome = run_trial(spec, Fold.load(path), path.parent)
        again = Store(Path(scratch) / "results")
        again.write(spec, {"status": "done"}, outcome.scores, outcome.records, outcome.curves)
        found = differences(store, row["trial"], again, spec.id)
    for table, difference in found.items():
        console.print(verdict(table, difference), highlight=False, markup=False)
    passed = all(difference.within(options.tolerance) for difference in found.values())
    console.print("Reproduced." if passed else f"Not reproduced within {options.tolerance:g}.", style="bold")
    return int(not passed)


def other_origin(row: Mapping[str, Any], spec: TrialSpec, data_sha256: str) -> list[str]:
    """In what the origin of this run differs from that of the stored row, in words."""
    now, said = provenance() | {"code": code_version(*CODE)}, []
    if spec.data_sha256 != data_sha256:
        said.append(f"the data are others now: {data_sha256[:16]}, then {spec.data_sha256[:16]}")
    if spec.code != now["code"]:
        then = row.get("provenance.commit") or "an unknown commit"
        changes = " with changes" if row.get("provenance.dirty") else ""
        said.append(f"the code is another now: {now['code']}, then {spec.code} ({then}{changes})")
    if spec.id != row["trial"]:
        said.append("settings have come or changed since; those that the row does not name have their defaults")
    for name in COMPARED:
        then = row.get(f"provenance.{name}")
        if then is not None and then != now[name]:
            said.append(f"{name} is {now[name] or 'none'} now, was {then or 'none'}")
    if (workers := int(row.get("provenance.workers") or 1)) > 1:
        said.append(f"{workers} workers ran it together; here one does, which rounds sums in another order")
    return said


def fold_file(root: Place, screen: Screen, spec: TrialSpec, scratch: Path, display: Display) -> Path:
    """The trial's fold among the sweep's artifacts, or made again in `scratch`."""
    key = stage_key(spec.config, screen.sha256)
    if not isinstance(root, Remote) and is_done(screen, root / "artifacts", key):
        return files(root / "artifacts", key)[0]
    display.say("Its fold is not among the artifacts of the sweep: making it again")
    with connected("") as resources:
        return make_folds(screen, [spec.config], scratch, max(1, int(resources["CPU"])), 0.0, display.stage)[key]


def verdict(table: str, found: Difference) -> str:
    """How far two runs' numbers of a table are apart, in words."""
    if found.equal:
        return f"{table}: {found.compared} numbers, equal bit for bit"
    said = f"{table}: {found.different} of {found.compared} numbers differ"
    if found.different:
        said += f", by at most {found.absolute:.3g}; as a share {found.relative:.3g}, of {found.where}"
    return said + (f"; {found.missing} rows are in one run alone" if found.missing else "")
