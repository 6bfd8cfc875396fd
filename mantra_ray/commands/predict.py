"""`mantra predict`: changes of genes, programs and traits by trained memories, and what these recall for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from rich.console import Console

from mantra_ray import terminal
from mantra_ray.commands.explain import SYMBOLS, plain_table, recalled, recalled_table
from mantra_ray.commands.retrain import is_sweep, winners
from mantra_ray.data.tables import read_table
from mantra_ray.errors import InputError
from mantra_ray.files import atomic
from mantra_ray.provenance import code_version
from mantra_ray.sweep.options import check_writable, shown
from mantra_ray.training.checkpoint import CODE, NAME, Checkpoint, load_folder
from mantra_ray.training.ensemble import KINDS, Ensemble, Estimate
from mantra_ray.training.explanation import explain, number, state_number

BLOCK = 128  # records that are predicted together
OUT = "predictions.parquet"
LABEL = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("record", pa.int64()),  # row of the file, from 0
        ("regulator", LABEL),
        ("dose", pa.float32()),
        ("state", LABEL),
        ("kind", LABEL),  # gene, program or trait
        ("name", LABEL),
        ("value", pa.float32()),  # mean over seeds
        ("lower", pa.float32()),  # null where fewer than two seeds tell
        ("upper", pa.float32()),
        ("seeds", pa.int32()),
    ]
)


@dataclass(frozen=True)
class PredictOptions:
    """Predict what a perturbation does, from the checkpoints of one or several trainings."""

    folders: Annotated[tyro.conf.Positional[tuple[str, ...]], shown("FOLDER ...")]
    """Folders that `mantra train` wrote, alike but for their seeds; or the folder of one sweep."""
    regulator: Annotated[str, shown("NAME")] = ""
    """What is perturbed: a regulator of the data, or another gene of the network."""
    dose: Annotated[float | None, shown("DOSE")] = None
    """How strongly, from 0 to 1."""
    state: Annotated[str, shown("NAME", "the only one")] = ""
    """In which cell state."""
    records: Annotated[str, shown("FILE", "none")] = ""
    """Table of many queries in the place of one (.csv, .tsv, .parquet; regulator, dose, state)."""
    out: Annotated[str, shown("FILE", f"none; {OUT} with --records")] = ""
    """Parquet file of the predictions: a row a record and gene, program or trait."""
    split: Annotated[str, shown("KIND", "the first of seen, strategy, context, unseen")] = ""
    """Of a sweep: the split whose winner predicts."""
    top: int = 10
    """Genes, programs, traits and recalled records that are printed, the largest first."""

    def check(self) -> None:
        """Raise InputError for a value that cannot be."""
        if not self.folders:
            raise InputError("options", "FOLDER", "", "name the folder of a training")
        if self.records:
            for name in ("regulator", "dose", "state"):
                if getattr(self, name) not in ("", None):
                    raise InputError("options", f"--{name}", getattr(self, name), "stands in the table of --records")
        else:
            for name in ("regulator", "dose"):
                if getattr(self, name) in ("", None):
                    raise InputError("options", f"--{name}", getattr(self, name), "must be given, or --records")
            if not 0 <= self.dose <= 1:
                raise InputError("options", "--dose", self.dose, "must be from 0 to 1")
        if self.top < 1:
            raise InputError("options", "--top", self.top, "must be at least 1")
        if self.file is None:
            return
        if self.file.suffix != ".parquet" or self.file.is_dir():
            raise InputError("options", "--out", str(self.file), "must be a file that ends in .parquet")
        if self.records and self.file.absolute() == Path(self.records).absolute():
            raise InputError("options", "--out", str(self.file), "is the table of --records itself")
        check_writable(self.file.parent)

    @property
    def file(self) -> Path | None:
        """Where the predictions are written; None where they are printed alone."""
        name = self.out or (OUT if self.records else "")
        return Path(name) if name else None


@dataclass(frozen=True, eq=False)
class Queries:
    """n queries by name, and the numbers of their states."""

    regulator: list[str]  # [n]
    dose: np.ndarray  # [n] float32
    state: np.ndarray  # [n] int64


def main(args: Sequence[str]) -> int:
    """Run `mantra predict ARGS`; returns the exit code: 2 for a sweep whose winner has no checkpoints yet."""
    options = tyro.cli(PredictOptions, args=list(args), prog="mantra predict")
    options.check()
    console, folders = terminal.console(), [Path(folder) for folder in options.folders]
    if is_sweep(folders[0]):
        if len(folders) > 1:
            raise InputError("options", "FOLDER", options.folders[1], "a sweep predicts alone")
        found = winners(folders[0], options.split)
        missing = [one for one in found if not (one.folder / NAME).exists()]
        if missing:
            say(console, f"Sweeps keep no checkpoints. Validation's winner on split {found[0].split} is trained by")
            for one in missing:
                console.print(f"  {one.command}", highlight=False, markup=False, soft_wrap=True)
            say(console, "Then give this command again.")
            return 2
        folders = [one.folder for one in found]
    checkpoints = [load_folder(folder) for folder in folders]
    queries = read_queries(options, checkpoints[0])
    ensemble = Ensemble(checkpoints, queries.regulator)
    if options.file is not None:
        with atomic(options.file) as partial, pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
            for start in range(0, len(queries.regulator), BLOCK):
                estimate = predict(ensemble, queries, start)
                writer.write_table(to_table(ensemble, queries, estimate, start))
    if not options.records:
        report(ensemble, checkpoints, queries, options.top, console)
    if options.file is not None:
        say(console, f"{len(queries.regulator)} records written to {options.file}")
    return 0


def read_queries(options: PredictOptions, checkpoint: Checkpoint) -> Queries:
    """What is asked, on the command line or in a table; InputError, with the row, for what cannot be predicted."""
    if not options.records:
        check_regulator(checkpoint, options.regulator)
        state = np.array([state_number(checkpoint, options.state)])
        return Queries([options.regulator], np.array([options.dose], np.float32), state)
    table = read_table(options.records, ["regulator", "dose"])
    regulator, dose = table.text("regulator").tolist(), table.numbers("dose")
    for row in np.flatnonzero(~((dose >= 0) & (dose <= 1)))[:1]:
        raise InputError(options.records, "dose", float(dose[row]), f"row {row}: must be from 0 to 1")
    if "state" not in table.columns and len(checkpoint.names["state"]) > 1:
        table.require("state")
    state = table.text("state") if "state" in table.columns else np.full(len(dose), "", object)
    numbers: dict[str, int] = {}
    for kind, names in (("regulator", regulator), ("state", state)):
        for name, row in {name: row for row, name in reversed(list(enumerate(names)))}.items():
            try:
                if kind == "state":
                    numbers[name] = state_number(checkpoint, name)
                else:
                    check_regulator(checkpoint, name)
            except InputError as error:
                raise InputError(options.records, kind, name, f"row {row}: {error.problem}") from error
    return Queries(regulator, dose.astype(np.float32), np.array([numbers[name] for name in state], np.int64))


def check_regulator(checkpoint: Checkpoint, name: str) -> None:
    """InputError, with names that come close, unless the checkpoint can predict for it."""
    number(checkpoint, "regulator", name, checkpoint.names["gene"] if "networks" in checkpoint.before else ())


def predict(ensemble: Ensemble, queries: Queries, start: int = 0) -> Estimate:
    """The next `BLOCK` queries from `start`."""
    rows = slice(start, start + BLOCK)
    regulator = np.array([ensemble.place[name] for name in queries.regulator[rows]], np.int64)
    return ensemble.predict(regulator, queries.dose[rows], queries.state[rows])


def to_table(ensemble: Ensemble, queries: Queries, estimate: Estimate, start: int) -> pa.Table:
    """Rows of the file for the queries from `start`: each query's genes, programs and traits."""
    n, names = len(estimate.value["trait"]), [name for kind in KINDS for name in ensemble.names[kind]]
    states, rows = ensemble.first.names["state"], slice(start, start + n)
    sizes = [len(ensemble.names[kind]) for kind in KINDS]

    def spread(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, len(names))

    def labels(numbers: np.ndarray, dictionary: Sequence[str]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), pa.array(dictionary, pa.string()))

    def joined(parts: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([parts[kind] for kind in KINDS], axis=1).ravel()

    regulators, regulator = np.unique(np.array(queries.regulator[rows], object), return_inverse=True)
    columns = {
        "record": spread(np.arange(start, start + n)),
        "regulator": labels(spread(regulator), regulators.tolist()),
        "dose": spread(queries.dose[rows]),
        "state": labels(spread(queries.state[rows]), states),
        "kind": labels(np.tile(np.repeat(np.arange(len(KINDS)), sizes), n), KINDS),
        "name": labels(np.tile(np.arange(len(names)), n), names),
        "value": joined(estimate.value),
        "lower": pa.array(joined(estimate.lower), from_pandas=True),
        "upper": pa.array(joined(estimate.upper), from_pandas=True),
        "seeds": np.tile(np.concatenate([ensemble.seeds[kind] for kind in KINDS]), n).astype(np.int32),
    }
    return pa.table(columns, schema=SCHEMA)


def report(ensemble: Ensemble, checkpoints: Sequence[Checkpoint], queries: Queries, top: int, console: Console) -> None:
    """Print the largest changes of the one query, and what each seed's memory recalls for it."""
    first, estimate, seeds = ensemble.first, predict(ensemble, queries), len(checkpoints)
    name, dose, state = queries.regulator[0], float(queries.dose[0]), int(queries.state[0])
    say(console, f"{name} at dose {dose:g} in state {first.names['state'][state]}")
    level = first.config.evaluation.confidence
    if seeds > 1:
        say(console, f"Mean over {seeds} seeds [{level:.0%} interval, Student's t over seeds]")
    else:
        say(console, "One seed: no interval. Name the folders of trainings with other seeds to get one.")
    if not ensemble.names["gene"]:
        say(console, "The data has no changes of expression: no ΔE.")
    if (told := ensemble.seeds["program"]).size and told[0] < seeds:
        say(console, f"Programs are those of the first folder; {told[0]} of {seeds} seeds keep all their genes.")
    for kind in KINDS:
        if ensemble.names[kind]:
            console.print(change_table(ensemble, estimate, kind, top))
    for checkpoint, predictor, base in zip(checkpoints, ensemble.predictors, estimate.base, strict=True):
        say(console, f"\nRecalled by {checkpoint.path.parent}, seed {checkpoint.config.seed}")
        query = predictor.query(ensemble.place[name], dose, state, base[0])
        if query is None:
            say(console, f"  {name} is no regulator of the data: the memory is silent, the prediction is the GNN's.")
            continue
        explanation = explain(checkpoint, query)
        for line in recalled(checkpoint, explanation)[1:]:  # the first says what was asked
            say(console, line)
        if len(explanation.slots.record):
            console.print(recalled_table(checkpoint, explanation, top))
        if checkpoint.code != code_version(*CODE):
            say(console, "  The checkpoint was written by another version of the code.")


def change_table(ensemble: Ensemble, estimate: Estimate, kind: str, top: int):
    """The `top` largest changes of a kind, with limits and with what the memory adds."""
    value, names = estimate.value[kind][0], ensemble.names[kind]
    title = f"{SYMBOLS[kind]}, the largest of {len(value)}" if len(value) > top else SYMBOLS[kind]
    table = plain_table(title, [kind, "change", "lower", "upper", "by memory", "seeds"])
    for i in np.argsort(-np.abs(value), kind="stable")[:top].tolist():
        limits = (f"{side[kind][0, i]:+.4g}" for side in (estimate.lower, estimate.upper))
        limits = limits if ensemble.seeds[kind][i] > 1 else ("", "")
        numbers = f"{value[i]:+.4g}", *limits, f"{estimate.added[kind][0, i]:+.4g}", str(ensemble.seeds[kind][i])
        table.add_row(names[i], *numbers)
    return table


def say(console: Console, text: str) -> None:
    """A line as it is."""
    console.print(text, highlight=False, markup=False)
