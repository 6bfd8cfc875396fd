"""`mantra explain`: which records a prediction recalled, and what each of them added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from rich.box import SIMPLE_HEAD
from rich.table import Table

from mantra_ray import terminal
from mantra_ray.errors import InputError
from mantra_ray.files import atomic
from mantra_ray.nexus.cam import EMPTY
from mantra_ray.nexus.reader import NOBODY
from mantra_ray.provenance import code_version
from mantra_ray.sweep.options import check_writable, shown
from mantra_ray.training.checkpoint import CODE, Checkpoint, load_folder
from mantra_ray.training.explanation import Explanation, Query, ask, explain, training_records

SYMBOLS = {"gene": "ΔE", "program": "ΔP", "trait": "ΔT"}
NAMED = 3  # records that are named beside a sum


@dataclass(frozen=True)
class ExplainOptions:
    """Tell which records the memory recalls for a regulator, dose and state, and what each adds to the prediction."""

    folder: Annotated[tyro.conf.Positional[str], shown("OUT")]
    """Folder that `mantra train` wrote."""
    regulator: Annotated[str, shown("NAME")]
    """What is perturbed."""
    dose: float
    """How strongly, from 0 to 1."""
    state: Annotated[str, shown("NAME", "the only one")] = ""
    """In which cell state."""
    top: int = 10
    """Records, programs, genes and traits that are printed, the largest first."""
    hide_own: Annotated[bool, tyro.conf.FlagCreatePairsOff, shown("", "off")] = False
    """Hide the records of this very regulator, dose and state: what others say of them."""
    out: Annotated[str, shown("FILE", "none")] = ""
    """Parquet file of all that every record adds."""

    def check(self) -> None:
        """Raise InputError for a value that cannot be."""
        if not 0 <= self.dose <= 1:
            raise InputError("options", "--dose", self.dose, "must be from 0 to 1")
        if self.top < 1:
            raise InputError("options", "--top", self.top, "must be at least 1")
        if self.out:
            if Path(self.out).suffix != ".parquet" or Path(self.out).is_dir():
                raise InputError("options", "--out", self.out, "must be a file that ends in .parquet")
            check_writable(Path(self.out).parent)


def main(args: Sequence[str]) -> int:
    """Run `mantra explain ARGS`; returns the exit code."""
    options = tyro.cli(ExplainOptions, args=list(args), prog="mantra explain")
    options.check()
    checkpoint = load_folder(Path(options.folder))
    query = ask(checkpoint, options.regulator, options.dose, options.state)
    explanation = explain(checkpoint, query, options.hide_own)
    if options.out:
        with atomic(Path(options.out)) as partial:
            pq.write_table(to_table(checkpoint, explanation), partial, compression="zstd")
    console = terminal.console()
    for line in describe(checkpoint, explanation):
        console.print(line, highlight=False, markup=False)
    for table in tables(checkpoint, explanation, options.top):
        console.print(table)
    if options.out:
        console.print(f"written to {options.out}", highlight=False, markup=False)
    return 0


def describe(checkpoint: Checkpoint, explanation: Explanation) -> list[str]:
    """What stands above the tables: what was asked, where it was looked for, and what to bear in mind."""
    query, lines = explanation.query, recalled(checkpoint, explanation)
    if query.stand_in != NOBODY and any(reader.transport.item() for reader in checkpoint.model.readers):
        lines.append(f"  {base_note(checkpoint, query)}")
    if checkpoint.config.nexus.correction == "recursive":
        lines.append("  What is recalled enters the layers of the GNN, which transform it: the sums below go in.")
    if checkpoint.config.manifold.energy:
        lines.append("  The sums leave out the descent on the energy, which is not linear in what is recalled.")
    if checkpoint.code != code_version(*CODE):
        lines.append("  The checkpoint was written by another version of the code.")
    return lines


def recalled(checkpoint: Checkpoint, explanation: Explanation) -> list[str]:
    """What was asked, and what each manifold holds of it."""
    query, names, correction = explanation.query, checkpoint.names, explanation.correction
    who, name = query.regulator, names["regulator"][query.regulator]
    own, of_class = training_records(checkpoint, who), int(checkpoint.regulator_class[who])
    family = names["class"][of_class] if of_class >= 0 else "unknown"
    trained = f"{own} training records" if own else "not in training: its token is unknown, and is read as none"
    lines = [f"{name} at dose {query.dose:g} in state {names['state'][query.state]}", f"  class {family}; {trained}"]
    for h, (route, memory) in enumerate(zip(checkpoint.model.routes, checkpoint.memories, strict=True)):
        bucket, read = int(query.records.bucket[0, h]), correction.found[h]
        held = memory.token[bucket][memory.record[bucket] != EMPTY]
        mine, kind = int((held == who).sum()), f" (class {family})" if route.by == "class" else ""
        how = "nothing recalled" if not read.weight.any() else "hard read" if read.hard[0] else "soft read"
        lines.append(
            f"  manifold {route.name}: bucket {bucket} of {route.buckets}{kind} holds {len(held)} records, {mine} of "
            f"{name}; {how}, gate {float(correction.gate[0, h]):.3f}, share {float(correction.share[0, h]):.3f}"
        )
    if not len(explanation.slots.record):
        lines.append("  Nothing was recalled: the correction is exactly 0, and the prediction is that of the GNN.")
    return lines


def base_note(checkpoint: Checkpoint, query: Query) -> str:
    """Whose base prediction the recalled observations were set against."""
    records, names, row = checkpoint.records, checkpoint.names, query.stand_in
    who, where = int(records["regulator"][row]), int(records["state"][row])
    dose = float(records["dose"][row])
    if (who, where, dose) == (query.regulator, query.state, query.dose):
        return f"base prediction: that of record {row}, the same regulator, dose and state"
    return (
        f"base prediction: no record of the data is the one asked for; taken from the nearest, record {row} "
        f"({names['regulator'][who]}, dose {dose:g}, {names['state'][where]})"
    )


def tables(checkpoint: Checkpoint, explanation: Explanation, top: int) -> list[Table]:
    """The records recalled, by size of what they add, and the largest sums with the records behind them."""
    if not len(explanation.slots.record):
        return []
    found, record = [recalled_table(checkpoint, explanation, top)], explanation.slots.record.numpy()
    for kind, parts in explanation.added.items():
        if parts.shape[1]:
            found.append(_sums(kind, checkpoint.names[kind], parts, record, top))
    return found


def recalled_table(checkpoint: Checkpoint, explanation: Explanation, top: int) -> Table:
    """The `top` records recalled, by size of what they add."""
    slots, added, names = explanation.slots, explanation.added, checkpoint.names
    size = np.linalg.norm(explanation.slots.value.numpy(), axis=1) * checkpoint.scale
    order = np.argsort(-size, kind="stable")
    unit = SYMBOLS[next(iter(added))]
    headings = ["record", "regulator", "dose", "state", "manifold", "read", "weight", "similarity", f"|{unit}|"]
    title = f"recalled: {len(order)} slots" + (f", the largest {top}" if len(order) > top else "")
    table = plain_table(title, headings)
    for i in order[:top].tolist():
        who, where = names["regulator"][int(slots.token[i])], names["state"][int(slots.state[i])]
        route, how = checkpoint.model.routes[int(slots.manifold[i])].name, "hard" if slots.hard[i] else "soft"
        numbers = (f"{float(value):.3f}" for value in (slots.weight[i], slots.similarity[i]))
        dose = f"{float(slots.dose[i]):g}"
        table.add_row(str(int(slots.record[i])), who, dose, where, route, how, *numbers, f"{size[i]:.4g}")
    return table


def _sums(kind: str, names: Sequence[str], parts: np.ndarray, record: np.ndarray, top: int) -> Table:
    """The `top` largest sums over slots of parts [C, ·], each with the records that add most to it."""
    total = parts.sum(0)
    table = plain_table(f"added to {SYMBOLS[kind]}, the largest of {len(total)}", [kind, "sum", "of which by record"])
    for i in np.argsort(-np.abs(total), kind="stable")[:top].tolist():
        most = np.argsort(-np.abs(parts[:, i]), kind="stable")[:NAMED]
        behind = ", ".join(f"{record[j]}: {parts[j, i]:+.4g}" for j in most)
        table.add_row(names[i], f"{total[i]:+.4g}", behind + (", ..." if len(record) > NAMED else ""))
    return table


def plain_table(title: str, headings: Sequence[str]) -> Table:
    """An empty table without a frame; names stand to the left, numbers to the right."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in headings:
        left = heading in ("regulator", "state", "manifold", "read", "gene", "program", "trait", "of which by record")
        table.add_column(heading, justify="left" if left else "right")
    return table


def to_table(checkpoint: Checkpoint, explanation: Explanation) -> pa.Table:
    """One row a slot and gene, program or trait: the record that was recalled, how, and what it adds."""
    slots, names = explanation.slots, checkpoint.names
    routes = [route.name for route in checkpoint.model.routes]
    columns = {
        "manifold": np.array(routes)[slots.manifold],
        "record": slots.record.numpy(),
        "regulator": np.array(names["regulator"])[slots.token],
        "dose": slots.dose.numpy(),
        "state": np.array(names["state"])[slots.state],
        "weight": slots.weight.numpy(),
        "similarity": slots.similarity.numpy(),
        "read": np.where(slots.hard, "hard", "soft"),
    }
    tables = []
    for kind, parts in explanation.added.items():
        count = parts.shape[1]
        repeated = {name: np.repeat(column, count) for name, column in columns.items()}
        what = {"kind": np.full(parts.size, kind), "name": np.tile(np.array(names[kind], str), len(parts))}
        tables.append(pa.table(repeated | what | {"added": parts.ravel()}))
    return pa.concat_tables(tables)
