"""`mantra bench warming`: the warming pass against the plain loop, one record at a time.

What runs is what a training would run: the kernels on a GPU where they can do it, waves everywhere else (`way`).

Both fill the same cleared memory from the same stream in one process. First their memories are compared, in float64;
then float32 is timed. Beside the ratio stands the floor, which no way of computing the pass can beat.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mantra_ray import terminal
from mantra_ray.bench.checks import check_device, check_json
from mantra_ray.config import NexusConfig
from mantra_ray.errors import InputError
from mantra_ray.files import atomic
from mantra_ray.nexus.cam import Candidates, Memory
from mantra_ray.nexus.warming import Stream, kernels_run, warm, warm_plainly
from mantra_ray.sweep.options import shown

PROGRAMS = 30
VALUE = 2 * PROGRAMS + 2  # residual, base, dose and noise of a record
RECORDS_A_REGULATOR = 20
REPEATS = 3  # of the pass; their median counts
COPIED = 2**26  # numbers copied to measure the memory's bandwidth: 256 MiB, far beyond any cache
DESCRIPTION = "The warming pass, in waves or by the GPU's kernels, against the plain loop, one record at a time."


@dataclass(frozen=True)
class Options:
    """Options of `mantra bench warming`."""

    records: Annotated[tuple[int, ...], shown("N ...", "10000 100000")] = (10_000, 100_000)
    """Lengths of the stream."""
    geometry: Annotated[tuple[str, ...], shown("BxS ...", "512x32 2048x8 4096x4")] = ("512x32", "2048x8", "4096x4")
    """Buckets x slots of the memories."""
    dim: Annotated[tuple[int, ...], shown("D ...", "32 256")] = (32, 256)
    """Widths of the keys."""
    skew: Annotated[tuple[float, ...], shown("A ...", "0 1")] = (0.0, 1.0)
    """Zipf exponents of the regulators (a twentieth of the records): 0 draws them alike."""
    sample: int = 500
    """The first so many records that the plain loop runs on; its time a record stands for the others."""
    full: Annotated[bool, tyro.conf.FlagCreatePairsOff, shown("", "off")] = False
    """The plain loop runs on all records; takes minutes."""
    device: Annotated[str, shown("DEVICE", "cuda where there is one")] = ""
    """Where the memory lies."""
    out: Annotated[str, shown("FILE.json", "none is written")] = ""
    """File of all rows."""
    seed: int = 0
    """Seed of the streams."""
    eviction: Literal["pss", "fifo", "random"] = "pss"
    """Which slot of a full bucket gives way."""
    gate_signal: Literal["entropy", "residual"] = "entropy"
    """What the gate standardises."""

    def check(self) -> None:
        """Raise InputError for a value that cannot be."""
        for name, least in (("records", 1), ("geometry", None), ("dim", 2), ("skew", 0)):
            values = getattr(self, name)
            if not values:
                raise InputError("options", f"--{name}", values, "needs a value")
            for value in values:
                if least is not None and not least <= value < math.inf:
                    raise InputError("options", f"--{name}", value, f"must be at least {least}")
        for value in self.geometry:
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", value):
                raise InputError("options", "--geometry", value, "must be BUCKETSxSLOTS, as in 512x32")
        for name, least in (("sample", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError("options", f"--{name}", getattr(self, name), f"must be at least {least}")
        check_device(self.device)
        check_json(self.out)


def make_stream(records: int, buckets: int, dim: int, skew: float, seed: int, device: str) -> tuple[Stream, int]:
    """Records of N / 20 regulators by Zipf's law with random keys and values, in float64; also the regulators."""
    rng = np.random.default_rng(seed)
    regulators = max(1, records // RECORDS_A_REGULATOR)
    share = np.arange(1, regulators + 1) ** -float(skew)
    token = torch.from_numpy(rng.permutation(regulators)[rng.choice(regulators, records, p=share / share.sum())])

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape)).to(device)

    candidates = Candidates(
        bucket=(token % buckets).to(device),
        key=torch.nn.functional.normalize(normal(records, dim), dim=-1),
        value=normal(records, VALUE),
        token=token.to(device),
        record=torch.arange(records, device=device),
        state=torch.from_numpy(rng.integers(0, 2, records)).to(device),
        stamp=torch.arange(records, device=device),
    )
    surprisal = torch.from_numpy(rng.exponential(size=records)).to(device)
    target, base = normal(records, PROGRAMS), normal(records, PROGRAMS)
    return Stream(candidates, 3 + normal(records) / 2, surprisal, target, base), regulators


def single(stream: Stream) -> Stream:
    """The stream in float32."""
    floats = {name: getattr(stream, name).float() for name in ("signal", "surprisal", "target", "base")}
    new = stream.candidates
    return Stream(dataclasses.replace(new, key=new.key.float(), value=new.value.float()), **floats)


def recalled(found, base: torch.Tensor) -> torch.Tensor:
    """For the gate signal `residual`: what was read is the correction."""
    return found.value[:, :PROGRAMS]


def timed(device: str, repeats: int, work: Callable, *args: Any) -> float:
    """Median seconds of `work(*args)`."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work(*args)
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def bandwidth(device: str) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.zeros(COPIED, device=device)
    target = torch.empty_like(source).copy_(source)
    return 2 * source.numel() * source.element_size() / timed(device, 5, target.copy_, source)


def same(one: Memory, other: Memory) -> bool:
    """The same records in the same slots, and values to float tolerance."""
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(Memory)]
    return all(
        torch.allclose(a, b, rtol=1e-9, atol=1e-9) if a.is_floating_point() else torch.equal(a, b) for a, b in pairs
    )


def least_bytes(memory: Memory, stream: Stream) -> int:
    """What any pass moves: every key read once, each record that stays read and written, the memory copied."""
    key, value = stream.candidates.key, stream.candidates.value
    kept = int((memory.record >= 0).sum())
    return key.nbytes + 2 * kept * (key[0].nbytes + value[0].nbytes) + 2 * memory.bytes


def way(memory: Memory, config: NexusConfig) -> str:
    """What does the pass: kernels or waves."""
    return "kernels" if kernels_run(memory, config) else "waves"


def run(options: Options, progress: Progress) -> Iterator[dict[str, Any]]:
    """A row of each length, geometry, width and skew."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    cases = [
        (records, geometry, dim, skew)
        for records in options.records
        for geometry in options.geometry
        for dim in options.dim
        for skew in options.skew
    ]
    config = NexusConfig(eviction=options.eviction, gate_signal=options.gate_signal)
    speed = bandwidth(device)
    task = progress.add_task("warming", total=len(cases))
    for records, geometry, dim, skew in cases:
        buckets, slots = map(int, geometry.split("x"))
        exact, regulators = make_stream(records, buckets, dim, skew, options.seed, device)
        stream, count = single(exact), records if options.full else min(options.sample, records)
        part, part_exact = stream.take(slice(count)), exact.take(slice(count))
        precise = Memory.empty(buckets, slots, dim, VALUE, regulators, torch.float64, device)
        memory = Memory.empty(buckets, slots, dim, VALUE, regulators, torch.float32, device)
        plain = warm_plainly(precise, part_exact, config, recalled)
        equal = same(warm(precise, part_exact, config, recalled)[0], plain)
        warmed, seen = warm(memory, stream, config, recalled)
        loop = timed(device, 1, warm_plainly, memory, part, config, recalled) / count
        seconds = timed(device, REPEATS, warm, memory, stream, config, recalled)
        floor = least_bytes(warmed, stream) / speed
        yield {
            "records": records,
            "geometry": geometry,
            "dim": dim,
            "skew": skew,
            "device": device,
            "threads": torch.get_num_threads(),
            "way": way(memory, config),
            "same": equal,
            "loop_records": count,
            "loop_seconds_per_record": loop,
            "seconds": seconds,
            "records_per_second": records / seconds,
            "ratio": loop * records / seconds,
            "write_density": seen["write_density"],
            "longest_bucket": int(seen["waves"]),
            "bytes_per_second": speed,
            "floor_seconds": floor,
            "over_floor": seconds / floor,
        }
        progress.advance(task)


def show(rows: Sequence[dict[str, Any]], options: Options, console: Console) -> None:
    """The rows as a table, and how they were measured."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    names = ("records", "geometry", "D", "skew", "way", "same", "loop µs/rec", "ms", "records/s", "ratio", "floor ms")
    for name in (*names, "x floor", "longest", "µs/step"):
        table.add_column(name, justify="right")
    for row in rows:
        seconds = row["seconds"]
        table.add_row(
            f"{row['records']:,}",
            row["geometry"],
            str(row["dim"]),
            f"{row['skew']:g}",
            row["way"],
            "yes" if row["same"] else "NO",
            f"{1e6 * row['loop_seconds_per_record']:.0f}",
            f"{1e3 * seconds:.1f}",
            f"{row['records_per_second']:,.0f}",
            f"{row['ratio']:.0f}",
            f"{1e3 * row['floor_seconds']:.2f}",
            f"{row['over_floor']:.0f}",
            f"{row['longest_bucket']:,}",
            f"{1e6 * seconds / row['longest_bucket']:.0f}",
        )
    console.print(table)
    loop = (
        "all records"
        if options.full
        else f"the first {options.sample:,} records at most; the ratio takes all for alike"
    )
    console.print(
        f"\nway: waves of at most one record a bucket, or kernels with a program a bucket. same: it and the loop leave "
        f"the same memory (float64, the loop's records). Loop: timed on {loop}. ms: "
        f"median of {REPEATS}, all records, float32, {rows[0]['threads']} threads, {rows[0]['device']}. Floor: bytes "
        "that any pass moves (each key read, what stays read and written, the memory copied) at the "
        f"{rows[0]['bytes_per_second'] / 1e9:.1f} GB/s of a copy. longest: records of the fullest bucket, which come "
        f"one after the other (a step each). Gate {options.gate_signal}, eviction {options.eviction}.",
        highlight=False,
    )


def main(args: Sequence[str]) -> int:
    """Measure, print and save; returns 0, or 1 if the pass and the loop differ."""
    options = tyro.cli(Options, args=list(args), description=DESCRIPTION, prog="mantra bench warming")
    options.check()
    console = terminal.console()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        rows = list(run(options, progress))
    show(rows, options, console)
    if options.out:
        with atomic(options.out) as partial:
            partial.write_text(json.dumps(rows, indent=1))
    return 0 if all(row["same"] for row in rows) else 1
