"""`mantra bench recall`: how much of a long stream of tokens each geometry of the memory can still recall.

Modelled on Table 2 of the Nexus paper (three geometries of 16,384 slots, 1 M tokens). The paper read PG-19 books
with trained hidden states; here tokens follow Zipf's law, contexts are made by rule (`mantra_ray.bench.zipf`) and the
probes are our own (`mantra_ray.bench.probes` defines each recall). The numbers stand beside the paper's and are no
reproduction of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.stats import binomtest
from scipy.stats import t as student

from mantra_ray import terminal
from mantra_ray.bench.checks import check_device
from mantra_ray.bench.probes import CURVE, fill, recalls
from mantra_ray.bench.zipf import COHERENCE, TOPICS, StreamConfig, make_stream
from mantra_ray.config import NexusConfig
from mantra_ray.errors import InputError
from mantra_ray.files import atomic
from mantra_ray.sweep.options import check_writable, shown

CONFIDENCE = 0.95
MAIN = ("dictionary", "rare", "common", "semantic")
PAPER = {  # Table 2 at 1 M tokens, percent
    "512x32": (100.0, 82.4, 95.1, 91.8),
    "2048x8": (100.0, 93.2, 97.6, 94.4),
    "4096x4": (100.0, 98.1, 99.9, 99.8),
}
ABLATIONS = {
    "no PSS (fifo)": {"eviction": "fifo"},
    "random eviction": {"eviction": "random"},
    "no gate": {"regret_gamma": -math.inf},
    "no PSS, no gate": {"eviction": "fifo", "regret_gamma": -math.inf},
}
DESCRIPTION = "How much of a long stream of tokens each geometry of the memory can still recall."


@dataclass(frozen=True)
class Options:
    """Options of `mantra bench recall`."""

    tokens: Annotated[tuple[int, ...], shown("N ...", "40000")] = (40_000,)
    """Lengths of the stream, injected pairs included; the paper's is 1000000."""
    geometry: Annotated[tuple[str, ...], shown("BxS ...", "512x32 2048x8 4096x4")] = tuple(PAPER)
    """Buckets x slots of the memories."""
    dim: int = 64
    """Width of keys and values."""
    seeds: int = 3
    """Streams a row; their spread gives the interval."""
    seed: int = 0
    """The first seed; the others follow it."""
    gamma: float = 0.25
    """Gate: above 0, a token is written if it surprises more than it usually does, and more so where a like one is
    held already."""
    paraphrase: float = 0.8
    """Cosine of a probe of semantic recall to the context that it paraphrases (0 to 1)."""
    pairs: int = 1_000
    """Injected key-value pairs."""
    vocabulary: int = 50_000
    """Ordinary tokens."""
    exponent: float = 1.1
    """Zipf exponent."""
    ablations: bool = True
    """Also without PSS, with random eviction, without the gate, and with neither."""
    device: Annotated[str, shown("DEVICE", "cuda where there is one")] = ""
    """Where the memory lies."""
    out: Annotated[str, shown("FILE", "none is written")] = ""
    """File of all rows, .parquet or .json."""

    def check(self) -> None:
        """Raise InputError for a value that cannot be."""
        for name, least in (("dim", 2), ("seeds", 1), ("seed", 0), ("pairs", 1), ("vocabulary", 1)):
            self._demand(getattr(self, name) >= least, name, getattr(self, name), f"must be at least {least}")
        self._demand(self.pairs <= self.vocabulary, "pairs", self.pairs, "must not exceed the vocabulary")
        for count in self.tokens:
            self._demand(count > self.pairs, "tokens", count, f"must be above the {self.pairs} pairs")
        self._demand(len(self.tokens) > 0, "tokens", self.tokens, "needs a length")
        self._demand(len(self.geometry) > 0, "geometry", self.geometry, "needs a geometry")
        for name in self.geometry:
            fits = re.fullmatch(r"[1-9]\d*x[1-9]\d*", name) is not None
            self._demand(fits, "geometry", name, "must be BUCKETSxSLOTS, as in 512x32")
        self._demand(not math.isnan(self.gamma), "gamma", self.gamma, "must be a number")
        self._demand(0 <= self.paraphrase <= 1, "paraphrase", self.paraphrase, "must be from 0 to 1")
        self._demand(0 < self.exponent < math.inf, "exponent", self.exponent, "must be above 0")
        check_device(self.device)
        if self.out:
            fits = Path(self.out).suffix in (".parquet", ".json") and not Path(self.out).is_dir()
            self._demand(fits, "out", self.out, "must be a .parquet or .json file")
            check_writable(Path(self.out).parent)

    @staticmethod
    def _demand(fits: bool, name: str, value: Any, problem: str) -> None:
        if not fits:
            raise InputError("options", f"--{name}", value, problem)

    def memories(self) -> dict[str, NexusConfig]:
        """Settings of the memory by name, the full one first."""
        full = NexusConfig(regret_gamma=self.gamma)
        changes = ABLATIONS if self.ablations else {}
        return {"PSS and gate": full} | {name: dataclasses.replace(full, **c) for name, c in changes.items()}


def interval(values: Sequence[float], probes: Sequence[int]) -> tuple[float, float, float]:
    """Mean of the seeds' shares with limits, all NaN where a seed has no probe.

    The limits are Student's t over seeds, cut to [0, 1], or the Wilson interval of all probes where that is wider
    (seeds that agree by luck, or a single seed).
    """
    mean, total = float(np.mean(values)), sum(probes)
    if math.isnan(mean):
        return mean, mean, mean
    limits = binomtest(round(mean * total), total).proportion_ci(CONFIDENCE, "wilson")
    low, high = float(limits.low), float(limits.high)
    if len(values) > 1:
        reach = student.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
        low, high = min(low, max(0.0, mean - reach)), max(high, min(1.0, mean + reach))
    return mean, float(low), float(high)


def run(options: Options, progress: Progress) -> Iterator[dict[str, Any]]:
    """Rows (tokens, geometry, memory, metric, value, lower, upper, probes, seeds) of all that the options ask for."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    memories, seeds = options.memories(), range(options.seed, options.seed + options.seeds)
    lengths, geometries = dict.fromkeys(options.tokens), dict.fromkeys(options.geometry)  # each once
    passes = len(lengths) * options.seeds * len(geometries) * len(memories)
    task = progress.add_task("warming and probing", total=passes)
    for tokens in lengths:
        config = StreamConfig(tokens, options.vocabulary, options.exponent, options.pairs, options.dim)
        cells: dict[tuple[str, str], list[tuple[dict, dict]]] = {}
        for seed in seeds:
            stream = make_stream(config, seed)
            for geometry in geometries:
                buckets, slots = map(int, geometry.split("x"))
                for name, memory in memories.items():
                    filled = fill(stream, buckets, slots, config.ids, memory, seed, device)
                    found = recalls(filled, stream, options.paraphrase, seed)
                    cells.setdefault((geometry, name), []).append((found, filled.diagnostics))
                    progress.advance(task)
        for (geometry, name), results in cells.items():
            yield from summary({"tokens": tokens, "geometry": geometry, "memory": name}, results)


def summary(labels: dict[str, Any], results: Sequence[tuple[dict, dict]]) -> Iterator[dict[str, Any]]:
    """Rows of one memory from its seeds' recalls and diagnostics."""
    for metric in results[0][0]:
        found = [recall[metric] for recall, _ in results]
        value, lower, upper = interval([value for value, _ in found], [count for _, count in found])
        counts = {"probes": sum(count for _, count in found), "seeds": len(results)}
        yield labels | {"metric": metric, "value": value, "lower": lower, "upper": upper} | counts
    for metric in ("records_per_second", "memory_bytes", "write_density", "occupancy"):
        measured = [diagnostics[metric] for _, diagnostics in results]
        span = {"value": float(np.mean(measured)), "lower": min(measured), "upper": max(measured)}
        name = "tokens_per_second" if metric == "records_per_second" else metric
        yield labels | {"metric": name} | span | {"probes": 0, "seeds": len(results)}


def save(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the rows as .parquet or .json (what is not a number as null)."""
    with atomic(path) as partial:
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(list(rows)), partial, compression="zstd")
        else:
            plain = [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]
            partial.write_text(json.dumps(plain, indent=1))


def show(rows: Sequence[dict[str, Any]], options: Options, console: Console) -> None:
    """Two tables a length: the four recalls beside the paper's, and what they are made of."""
    cells: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        cells.setdefault((row["tokens"], row["geometry"], row["memory"]), {})[row["metric"]] = row
    for tokens in dict.fromkeys(options.tokens):
        chosen = {key[1:]: found for key, found in cells.items() if key[0] == tokens}
        console.print(f"\n{tokens:,} tokens, {options.seeds} seeds: % recalled", style="bold", highlight=False)
        console.print(main_table(chosen))
        console.print("Behind them, % (gate and eviction as above)", style="bold")
        console.print(detail_table(chosen))
    console.print(notes(options), highlight=False, soft_wrap=False)


def main_table(cells: dict[tuple[str, str], dict[str, dict]]) -> Table:
    """The four recalls of every memory, with the paper's row under each geometry that it has."""
    table = empty_table("geometry", "memory", *MAIN, "written", "filled", "tokens/s", "MB")
    for i, ((geometry, memory), found) in enumerate(cells.items()):
        cost = (f"{found['tokens_per_second']['value']:,.0f}", f"{found['memory_bytes']['value'] / 1e6:.1f}")
        shares = (f"{100 * found[name]['value']:.1f}" for name in ("write_density", "occupancy"))
        table.add_row(geometry, memory, *(percent(found[name]) for name in MAIN), *shares, *cost)
        following = list(cells)[i + 1 : i + 2]
        if geometry in PAPER and (not following or following[0][0] != geometry):
            paper = (f"{value:.1f}      " for value in PAPER[geometry])
            table.add_row(geometry, "paper, 1 M, PG-19", *paper, *("",) * 4, style="dim", end_section=True)
    return table


def detail_table(cells: dict[tuple[str, str], dict[str, dict]]) -> Table:
    """Ceilings, recall weighted by use, and semantic recall as the paraphrase gets worse."""
    names = {
        "dict. max": "dictionary_ceiling",
        **{f"{name} max": f"{name}_ceiling" for name in MAIN[1:3]},
        **{f"{name} by use": f"{name}_by_use" for name in MAIN[1:3]},
        **{f"s{cosine:.1f}": f"semantic_at_{cosine:g}" for cosine in CURVE},
        **{label: f"semantic_{name}" for label, name in (("held", "held"), ("swap", "swapped"), ("free", "free"))},
    }
    table = empty_table("geometry", "memory", *names)
    for (geometry, memory), found in cells.items():
        values = (found[name]["value"] for name in names.values())
        table.add_row(geometry, memory, *("-" if math.isnan(v) else f"{100 * v:.1f}" for v in values))
    return table


def empty_table(*labels: str) -> Table:
    """A narrow table; the first two columns are text."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for i, label in enumerate(labels):
        table.add_column(label, justify="left" if i < 2 else "right", no_wrap=i < 2)
    return table


def percent(row: dict[str, Any]) -> str:
    """A share in percent and how far its interval reaches at most."""
    if math.isnan(row["value"]):
        return "-"
    reach = max(row["upper"] - row["value"], row["value"] - row["lower"])
    return f"{100 * row['value']:.1f} ±{100 * reach:4.1f}"


def notes(options: Options) -> str:
    """What the recalls mean and where they differ from the paper's."""
    return (
        f"\nDictionary: {options.pairs:,} injected pairs; the top slot is the key's and the value the nearest of all. "
        "Rare, common: distinct tokens of frequency < 1e-4, of id <= 5,000 (a token may be both); the top slot is the "
        f"token's. Semantic: random occurrences, asked by a paraphrase at cosine {options.paraphrase:g} to the "
        f"context; what is read is nearest to the occurrence's topic (chance 1 in {TOPICS}).\n"
        "max: all that so many slots could hold. by use: tokens weighted by occurrences. s0.6: semantic at cosine 0.6. "
        "held: own record still held. swap: asked with another occurrence's context. free: token withheld, so that "
        "meaning alone finds it in the bucket.\n"
        f"±: reach of the {CONFIDENCE:.0%} interval over seeds (Student's t, or Wilson's where wider). Gamma "
        f"{options.gamma:g}, exponent {options.exponent:g}, {options.vocabulary:,} token types, width {options.dim}.\n"
        "Differs from the paper: it read PG-19 books with a trained model's hidden states and entropies. Here tokens "
        f"are drawn from Zipf's law ({COHERENCE:.0%} of a content word's occurrences in one topic), contexts are topic "
        "plus noise, gate and priority see surprisal by running counts, and the probes are ours. A rare recall above "
        "`rare max` would need a stream with fewer distinct tokens than this one (--vocabulary, --exponent)."
    )


def main(args: Sequence[str] | None = None) -> int:
    """Run the benchmark, print its tables and write `--out`; returns the exit code. Raises InputError."""
    options = tyro.cli(
        Options, args=None if args is None else list(args), prog="mantra bench recall", description=DESCRIPTION
    )
    options.check()
    console = terminal.console()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        rows = list(run(options, progress))
    if options.out:
        save(rows, Path(options.out))
    show(rows, options, console)
    return 0
