"""`mantra bench cpu`: what the memory's forms for many records bring over the plain ones, as ratios on one machine.

Each piece of work is done in its plain form, which says what is meant, and in the form that is used; both must agree,
and both are timed in one process. Ratios hold from machine to machine where seconds do not, so that a ratio far below
an earlier one (`--against`) is a regression.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mantra_ray import terminal
from mantra_ray.bench import throughput
from mantra_ray.bench.checks import check_json
from mantra_ray.bench.made import QUICK, Size, make_model, make_records
from mantra_ray.bench.measured import deviation, seconds
from mantra_ray.bench.warming import VALUE, make_stream, single
from mantra_ray.config import NexusConfig
from mantra_ray.errors import InputError
from mantra_ray.files import atomic
from mantra_ray.nexus.adapter import trimmed
from mantra_ray.nexus.cam import EMPTY, Memory, read, visible_slots, write
from mantra_ray.nexus.warming import warm, warm_plainly
from mantra_ray.sweep.options import shown
from mantra_ray.training.inputs import Space

PARTS = ("read", "write", "warming", "step", "sweep")
SLOWER = 0.7  # of an earlier ratio: below that it is called a regression, above it the machine's noise
TOLERANCE = 1e-4
DESCRIPTION = "Read, write, warming, training step and one sweep, as ratios to their plain forms."


@dataclass(frozen=True)
class Options:
    """Options of `mantra bench cpu`."""

    parts: Annotated[tuple[str, ...], shown("PART ...", "all")] = PARTS
    """What is measured: read, write, warming, step, sweep."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff, shown("", "off")] = False
    """Tiny sizes, to see that all works; the ratios mean nothing."""
    against: Annotated[str, shown("FILE.json", "nothing")] = ""
    """Rows of an earlier run to compare the ratios with."""
    out: Annotated[str, shown("FILE.json", "none is written")] = ""
    """File of all rows."""

    def check(self) -> None:
        """Raise InputError for a value that cannot be."""
        for name in self.parts:
            if name not in PARTS:
                raise InputError("options", "--parts", name, f"must be among {', '.join(PARTS)}")
        check_json(self.out)


@dataclass(frozen=True)
class Ratio:
    """One piece of work: seconds an item in the plain form and in the one that is used."""

    work: str
    plain: float
    used: float
    error: float  # largest deviation between the two

    @property
    def ratio(self) -> float:
        """How many times faster the used form is."""
        return self.plain / self.used


def earlier_ratios(path: str) -> dict[str, float]:
    """Ratios by work of an earlier run's file; InputError if it is none."""
    try:
        return {row["work"]: float(row["ratio"]) for row in json.loads(Path(path).read_text())}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(path, "--against", type(error).__name__, f"holds no rows of this command: {error}") from error


def filled(count: int, dim: int) -> tuple[Memory, object, NexusConfig]:
    """A memory of 512 x 32 that a stream of `count` records has warmed, and the stream."""
    stream, regulators = make_stream(count, 512, dim, 0.0, 0, "cpu")
    stream, config = single(stream), NexusConfig()
    return warm(Memory.empty(512, 32, dim, VALUE, regulators), stream, config)[0], stream, config


def reading(count: int, dim: int, sample: int) -> Ratio:
    """A batch's read against one record after the other."""
    memory, stream, config = filled(count, dim)

    def some(rows: slice) -> torch.Tensor:
        new = stream.candidates.take(rows)
        seen = visible_slots(memory, new.bucket, new.record)
        return read(memory, new.key, new.bucket, new.token, new.state, seen, config.tau).value

    def one_by_one() -> torch.Tensor:
        return torch.cat([some(slice(i, i + 1)) for i in range(sample)])

    error = deviation(some(slice(sample)), one_by_one())
    plain, used = seconds(one_by_one, "cpu", 3, 1) / sample, seconds(lambda: some(slice(count)), "cpu", 5, 1) / count
    return Ratio(f"read, {count:,} records", plain, used, error)


def writing(count: int, dim: int, sample: int) -> Ratio:
    """A write in waves against one record after the other."""
    _, stream, config = filled(count, dim)
    new, tokens = stream.candidates, int(stream.candidates.token.max()) + 1
    empty, admit = Memory.empty(512, 32, dim, VALUE, tokens), torch.ones(count, dtype=torch.bool)

    def one_by_one() -> Memory:
        memory = empty
        for i in range(sample):
            row = slice(i, i + 1)
            memory = write(memory, new.take(row), stream.surprisal[row], admit[row], config.eviction)[0]
        return memory

    def in_waves(rows: slice) -> Memory:
        return write(empty, new.take(rows), stream.surprisal[rows], admit[rows], config.eviction)[0]

    same = one_by_one().equals(in_waves(slice(sample)))
    plain = seconds(one_by_one, "cpu", 1, 0) / sample
    used = seconds(lambda: in_waves(slice(count)), "cpu", 3, 1) / count
    return Ratio(f"write, {count:,} records", plain, used, 0.0 if same else float("inf"))


def warmings(count: int, dim: int, sample: int) -> Ratio:
    """A warming pass in waves against one record after the other."""
    stream, regulators = make_stream(count, 512, dim, 0.0, 0, "cpu")
    stream, config = single(stream), NexusConfig()
    memory, part = Memory.empty(512, 32, dim, VALUE, regulators), stream.take(slice(sample))
    plainly, found = warm_plainly(memory, part, config), warm(memory, part, config)[0]
    error = deviation(found.value, plainly.value) if torch.equal(found.record, plainly.record) else float("inf")
    plain = seconds(lambda: warm_plainly(memory, part, config), "cpu", 1, 0) / sample
    used = seconds(lambda: warm(memory, stream, config), "cpu", 3, 1) / count
    return Ratio(f"warming, {count:,} records", plain, used, error)


def stepping(quick: bool, sample: int) -> Ratio:
    """A Mode B step's gradients on a batch against those of one record after the other, added up."""
    size, batch = QUICK if quick else Size(), 32 if quick else 256
    vocabulary, records = make_records(size, batch, "cpu")
    model = make_model(size, vocabulary, "cpu", compiled=False)
    memories, space = trimmed(model.warm(records)[0]), Space(lift=torch.eye(records.base.shape[1]))

    def gradients(parts: Iterator[slice], count: int) -> torch.Tensor:
        model.zero_grad()
        for rows in parts:
            some = records.take(rows)
            hidden = torch.full_like(some.state, EMPTY)
            error = space.error(some.residual, model(memories, some, hidden, hidden).value).sum() / count
            tokens = torch.cat([some.header, some.content], dim=1)
            (error + model.language_loss(tokens, some.known) * len(some) / count).backward()
        return model.transformer.embedding.weight.grad.clone()

    def one_by_one() -> torch.Tensor:
        return gradients((slice(i, i + 1) for i in range(sample)), sample)

    error = deviation(gradients(iter([slice(sample)]), sample), one_by_one())
    plain = seconds(one_by_one, "cpu", 1, 0) / sample
    used = seconds(lambda: gradients(iter([slice(batch)]), batch), "cpu", 3, 1) / batch
    return Ratio(f"Mode B step, {batch} records", plain, used, error)


def sweeping(quick: bool) -> Ratio:
    """A sweep's wall time against the same trials as plain Ray Tune function trainables, a new process each."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in ("sweep", "tune"):  # each in a process of its own, whose Ray begins afresh
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                count = 2 * throughput.SEEDS if quick else 30
                rows[way] = process.submit(throughput.measure, way, count, True, Path(folder) / way).result()
    return by_ways(rows)


def by_ways(rows: dict[str, dict[str, Any]]) -> Ratio:
    """What `throughput.measure` found of the same trials, by way."""
    agree = throughput.agree(list(rows.values()))
    times = [rows[way]["wall"] / rows[way]["count"] for way in ("tune", "sweep")]
    return Ratio(f"sweep, {rows['sweep']['count']} tiny trials", *times, 0.0 if agree else float("inf"))


def measure(options: Options) -> Iterator[Ratio]:
    """The rows, one after the other."""
    count, dim, sample = (500, 16, 50) if options.quick else (20_000, 64, 500)
    work: dict[str, Callable[[], Ratio]] = {
        "read": lambda: reading(count, dim, sample),
        "write": lambda: writing(count, dim, sample),
        "warming": lambda: warmings(count, dim, sample),
        "step": lambda: stepping(options.quick, 4 if options.quick else 32),
        "sweep": lambda: sweeping(options.quick),
    }
    for part in (part for part in PARTS if part in options.parts):
        yield work[part]()


def show(rows: Sequence[Ratio], earlier: dict[str, float], console: Console) -> None:
    """One row a piece of work."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    names = ("work", "plain µs", "used µs", "ratio", *(("earlier ratio",) if earlier else ()), "error")
    for name in names:
        table.add_column(name, justify="left" if name == "work" else "right")
    for row in rows:
        before = (f"{earlier[row.work]:.1f}" if row.work in earlier else "",) if earlier else ()
        wrong = "" if row.error <= TOLERANCE else " WRONG"
        cells = (f"{1e6 * row.plain:,.1f}", f"{1e6 * row.used:,.1f}", f"{row.ratio:.1f}", *before)
        table.add_row(row.work, *cells, f"{row.error:.0e}{wrong}")
    console.print(table)
    console.print(f"\nMicroseconds an item, {torch.get_num_threads()} threads.", highlight=False)


def main(args: Sequence[str]) -> int:
    """Measure, print and save; returns 0, or 1 if forms disagree or a ratio fell far below an earlier one."""
    options = tyro.cli(Options, args=list(args), description=DESCRIPTION, prog="mantra bench cpu")
    options.check()
    earlier = earlier_ratios(options.against) if options.against else {}
    rows = list(measure(options))
    console = terminal.console()
    show(rows, earlier, console)
    slower = [row for row in rows if row.ratio < SLOWER * earlier.get(row.work, 0.0)]
    for row in slower:
        console.print(f"[red]{row.work}: {row.ratio:.1f} times, was {earlier[row.work]:.1f}[/red]", highlight=False)
    if options.out:
        with atomic(options.out) as partial:
            partial.write_text(json.dumps([asdict(row) | {"ratio": row.ratio} for row in rows], indent=1))
    return int(bool(slower) or any(row.error > TOLERANCE for row in rows))
