"""`mantra bench gpu`: the memory, its training and the network on one or several GPUs, each beside its floor.

Every part first compares its result with a plain reference on fresh random numbers, then measures. The floors are the
device's own: the bandwidth of a large copy and the rate of a large bfloat16 product, measured in the same run.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mantra_ray import terminal
from mantra_ray.bench.checks import check_device
from mantra_ray.bench.measured import Card, Row, measure_card
from mantra_ray.errors import InputError
from mantra_ray.files import atomic
from mantra_ray.sweep.options import check_writable, shown

PARTS = ("read", "warming", "language", "training")  # modules gpu_PART, each with rows(card, quick)
SEVERAL = ("exchange", "scaling-network", "scaling-memory", "side-by-side", "sweep")
DESCRIPTION = "Check, then measure the memory, its training and the network on GPUs, each beside its floor."
Column = tuple[str, Callable[[Row], str]]


@dataclass(frozen=True)
class Options:
    """Options of `mantra bench gpu`."""

    parts: Annotated[tuple[str, ...], shown("PART ...", "all")] = (*PARTS, *SEVERAL)
    """What is measured: read, warming, language, training (on one device); exchange, scaling-network, scaling-memory,
    side-by-side, sweep (how work spreads over processes and devices)."""
    device: Annotated[str, shown("DEVICE", "cuda where there is one")] = ""
    """Where the parts of one device run."""
    gpus: Annotated[int, shown("N", "all there are")] = 0
    """GPUs of the parts that spread work."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff, shown("", "off")] = False
    """Tiny sizes, to see that all works; the numbers mean nothing."""
    out: Annotated[str, shown("FOLDER", "none is written")] = ""
    """Folder of the tables, as JSON and as Markdown; the file is named by the device and the day."""

    def check(self) -> None:
        """Raise InputError for a value that cannot be."""
        for name in self.parts:
            if name not in (*PARTS, *SEVERAL):
                raise InputError("options", "--parts", name, f"must be among {', '.join((*PARTS, *SEVERAL))}")
        if self.gpus < 0:
            raise InputError("options", "--gpus", self.gpus, "must be at least 0")
        check_device(self.device)
        if self.out:
            check_writable(Path(self.out))


def measure(options: Options, card: Card, tell: Callable[[str], None]) -> Iterator[Row]:
    """The rows of the parts that one device runs."""
    for part in (part for part in PARTS if part in options.parts):
        tell(f"{part} ...")
        for row in importlib.import_module(f"mantra_ray.bench.gpu_{part}").rows(card, options.quick):
            tell(f"  {row.work}: {amount(row.rate)} {row.unit}{'' if row.sound else '  WRONG'}")
            yield row


def spread(options: Options, device: str, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """What several processes or devices bring: rows of part, work and numbers."""
    from mantra_ray.bench import gpu_sweep, gpu_training, gpu_workers

    gpus = options.gpus or torch.cuda.device_count()
    runs: dict[str, Callable[[], Any]] = {
        "exchange": lambda: gpu_workers.exchange(max(2, gpus), options.quick),
        "scaling-network": lambda: gpu_training.scaling(max(2, gpus), options.quick),
        "scaling-memory": lambda: gpu_workers.scaling(max(2, gpus), options.quick),
        "side-by-side": lambda: gpu_workers.side_by_side(device, options.quick),
        "sweep": lambda: gpu_sweep.sweep_scaling(max(2, gpus), options.quick),
    }
    for part in (part for part in SEVERAL if part in options.parts):
        if part not in ("exchange", "side-by-side") and gpus < 2 and not options.quick:
            tell(f"{part}: needs 2 GPUs, left out")
            continue
        tell(f"{part} ...")
        found = runs[part]()
        for row in found if isinstance(found, list) else [found]:
            tell("  " + ", ".join(f"{name} {value}" for name, value in row.items()))
            yield {"part": part, **row}


def amount(value: float) -> str:
    """A rate in few digits: 12.3 M."""
    for size, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= size:
            return f"{value / (size if letter != ' k' else 1e3):.3g}{letter}"
    return f"{value:.3g}"


def columns(card: Card) -> list[Column]:
    """Names and cells of the table's columns."""
    return [
        ("work", lambda row: row.work),
        ("rate", lambda row: f"{amount(row.rate)} {row.unit}"),
        ("floor", lambda row: f"{amount(row.floor)} ({row.bound})"),
        ("of floor", lambda row: f"{row.rate / row.floor:.0%}"),
        ("goal", lambda row: "" if row.goal is None else f"{amount(row.goal)}{' ✓' if row.rate >= row.goal else ' ✗'}"),
        ("peak GiB", lambda row: f"{row.peak_bytes / 2**30:.2f}"),
        ("error", lambda row: f"{row.error:.0e}{'' if row.sound else ' WRONG'}"),
        ("note", lambda row: row.note),
    ]


def told(card: Card) -> str:
    """The device, its ceilings, versions and the day, in a line."""
    cuda = f"CUDA {torch.version.cuda}, " if torch.version.cuda else ""
    return (
        f"{card.name}: copy {card.bandwidth / 1e12:.2f} TB/s, bfloat16 product {card.arithmetic / 1e12:.0f} TFLOP/s; "
        f"torch {torch.__version__}, {cuda}Python {platform.python_version()}; {datetime.now(UTC):%Y-%m-%d}"
    )


def markdown(rows: Sequence[Row], several: Sequence[dict[str, Any]], card: Card) -> str:
    """Both tables as a page."""
    lines = [f"# `mantra bench gpu` on {card.name}", "", told(card), ""]
    if rows:
        names = [name for name, _ in columns(card)]
        lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
        lines += ["| " + " | ".join(cell(row) for _, cell in columns(card)) + " |" for row in rows]
    for part in dict.fromkeys(row["part"] for row in several):
        mine = [row for row in several if row["part"] == part]
        names = list(dict.fromkeys(name for row in mine for name in row if name != "part"))
        lines += ["", f"**{part}**", "", "| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
        lines += ["| " + " | ".join(number(row.get(name, "")) for name in names) + " |" for row in mine]
    return "\n".join(lines) + "\n"


def number(value: Any) -> str:
    """A cell of the second table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show(rows: Sequence[Row], several: Sequence[dict[str, Any]], card: Card, console: Console) -> None:
    """Print both tables."""
    console.print(told(card), highlight=False)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name, _ in columns(card) if rows else ():
        table.add_column(name, justify="left" if name in ("work", "note") else "right")
    for row in rows:
        table.add_row(*(cell(row) for _, cell in columns(card)))
    console.print(table)
    for row in several:
        console.print(", ".join(f"{name} {number(value)}" for name, value in row.items()), highlight=False)


def main(args: Sequence[str]) -> int:
    """Check, measure, print and save; returns 0, or 1 if anything differs from its reference."""
    options = tyro.cli(Options, args=list(args), description=DESCRIPTION, prog="mantra bench gpu")
    options.check()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    card = measure_card(device)
    rows, several = [], []
    try:
        for row in measure(options, card, tell):
            rows.append(row)
        for row in spread(options, device, tell) if set(options.parts) & set(SEVERAL) else ():
            several.append(row)
    finally:  # what was measured before something broke is worth having
        show(rows, several, card, terminal.console())
        if options.out:
            save(Path(options.out), rows, several, card)
    return int(not all(row.sound for row in rows))


def save(folder: Path, rows: Sequence[Row], several: Sequence[dict[str, Any]], card: Card) -> None:
    """Write both tables as JSON and as Markdown."""
    name = f"gpu_{'_'.join(card.name.lower().split())}_{datetime.now(UTC):%Y%m%d}"
    kept = {"card": asdict(card), "told": told(card), "rows": [asdict(row) for row in rows], "several": several}
    with atomic(folder / f"{name}.json") as partial:
        partial.write_text(json.dumps(kept, indent=1))
    with atomic(folder / f"{name}.md") as partial:
        partial.write_text(markdown(rows, several, card))
