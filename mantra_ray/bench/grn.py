"""`mantra bench grn`: a round of the GRN-GNN over sparse edges against the same round with a dense adjacency matrix.

For each number of genes both are first compared, result and gradients, then timed on the same records; then one
training step of the whole network is timed, beside the floor that its states' bytes set.
"""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mantra_ray import terminal
from mantra_ray.bench.checks import check_device, check_json
from mantra_ray.bench.warming import bandwidth, timed
from mantra_ray.cascade.grn import SLOPE, Grn, GrnInputs, grn_inputs
from mantra_ray.cascade.rounds import Round, SignedEdges, block_of
from mantra_ray.config import GrnConfig
from mantra_ray.errors import InputError
from mantra_ray.files import atomic
from mantra_ray.sweep.options import shown

PARTS = ("forward", "both")  # forward alone, and with the backward pass
DOSES, STATES = (0.3, 0.6, 0.95), 2
TOLERANCE = 1e-3  # of the largest number, for sums in another order in float32
DESCRIPTION = "A round of the GRN-GNN over sparse edges against a dense adjacency matrix, and a training step."


@dataclass(frozen=True)
class Options:
    """Options of `mantra bench grn`."""

    genes: Annotated[tuple[int, ...], shown("G ...", "2000 8000 20000")] = (2_000, 8_000, 20_000)
    """Sizes of the graph; an eighth of the genes are regulators."""
    edges: int = 10
    """Edges a gene."""
    hidden: int = 128
    """Width of a node's state."""
    layers: int = 3
    """Rounds of message passing of the network."""
    batch: int = 64
    """Records of the network's training step."""
    layer_batch: int = 8
    """Records of the comparison; a dense layer takes the same time for each."""
    repeats: int = 1
    """Timed runs after the first; their median counts."""
    device: Annotated[str, shown("DEVICE", "cuda where there is one")] = ""
    """Where all of it runs."""
    out: Annotated[str, shown("FILE.json", "none is written")] = ""
    """File of all rows."""
    seed: int = 0
    """Seed of graph and records."""

    def check(self) -> None:
        """Raise InputError for a value that cannot be."""
        for genes in self.genes or (0,):
            if genes < 16:
                raise InputError("options", "--genes", genes, "must be at least 16")
        for name in ("edges", "hidden", "layers", "batch", "layer_batch", "repeats"):
            if getattr(self, name) < 1:
                raise InputError("options", f"--{name.replace('_', '-')}", getattr(self, name), "must be at least 1")
        if self.seed < 0:
            raise InputError("options", "--seed", self.seed, "must be at least 0")
        check_device(self.device)
        check_json(self.out)


def make_inputs(genes: int, edges: int, seed: int) -> GrnInputs:
    """A signed graph whose regulators' numbers of targets fall off as in Zipf's law."""
    rng = np.random.default_rng(seed)
    regulators = genes // 8
    share = 1 / np.arange(10, regulators + 10)
    source = rng.choice(regulators, edges * genes, p=share / share.sum())
    pairs = np.unique(source * genes + rng.integers(0, genes, edges * genes))
    weight = rng.choice([-1.0, 1.0], len(pairs)).astype(np.float32)
    changes = rng.normal(size=(32, genes)).astype(np.float32)
    return grn_inputs(pairs // genes, pairs % genes, weight, np.arange(regulators), changes, STATES)


def dense_operators(inputs: GrnInputs, edges: SignedEdges, device: str) -> list[torch.Tensor]:
    """The two operators as matrices [V, V]: messages down the edges, and up."""
    nodes, ends = len(inputs.features), (inputs.target, inputs.source)
    matrices = []
    for (to, come), weight in ((ends, edges.down), (ends[::-1], edges.up)):
        matrix = torch.zeros(nodes, nodes, device=device)
        place = [torch.from_numpy(end).to(device) for end in (to, come)]
        matrices.append(matrix.index_put_(place, torch.from_numpy(weight.astype(np.float32)).to(device)))
    return matrices


def edge_bytes(edges: SignedEdges) -> int:
    """Bytes of the sparse operators and of their transposes."""
    weights = [weight for _, weight in (*edges.forth, *edges.back)]
    return sum(t.nbytes for t in (*weights, *(t for side, _ in edges.forth for t in (side, *side.get_csr()[0]))))


def dense_round(
    operators: Sequence[torch.Tensor],
    states: torch.Tensor,
    weight: torch.Tensor,
    gain: torch.Tensor,
    offset: torch.Tensor,
    condition: torch.Tensor,
) -> torch.Tensor:
    """What `Round` computes, by dense products and autograd alone."""
    halves = (states @ weight.T).chunk(2, -1)
    sums = [(matrix @ half.flatten(1)).view(half.shape) for matrix, half in zip(operators, halves, strict=True)]
    return F.leaky_relu(states + offset[condition] + gain[condition] * torch.cat(sums, -1), SLOPE)


class Peak:
    """The most memory that a block of code takes beyond what was in use, in bytes; on a CPU only under Linux."""

    def __init__(self, device: str):
        self.cuda, self.bytes = torch.device(device).type == "cuda", math.nan

    def __enter__(self) -> Peak:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            try:
                ctypes.CDLL(None).malloc_trim(0)  # else freed memory that the allocator keeps is used again unseen
                Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
            except (OSError, AttributeError):
                return self
            self._before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            self.bytes = torch.cuda.max_memory_allocated() - self._before
        elif hasattr(self, "_before"):
            self.bytes = _status("VmHWM") - self._before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def measured(name: str, device: str, repeats: int, work: Callable) -> dict[str, float]:
    """Median seconds of a piece of work, and its peak memory."""
    with Peak(device) as peak:
        seconds = timed(device, repeats, work)
    return {f"{name}_seconds": seconds, f"{name}_bytes": peak.bytes}


def compare(inputs: GrnInputs, options: Options, device: str) -> dict[str, Any]:
    """One round over sparse edges and by dense matrices: whether they agree, seconds and bytes of both."""
    nodes, hidden = len(inputs.features), 2 * math.ceil(options.hidden / 2)
    edges = SignedEdges(inputs, nodes, torch.device(device))
    torch.manual_seed(options.seed)
    states = torch.randn(nodes, options.layer_batch, hidden, device=device, requires_grad=True)
    kinds = len(DOSES) * STATES
    weight, gain, offset = (torch.randn(rows, hidden, device=device) / 8 for rows in (hidden, kinds, kinds))
    arguments = [states, *(tensor.requires_grad_() for tensor in (weight, gain, offset))]
    condition = torch.randint(kinds, (options.layer_batch,), device=device)
    operators = dense_operators(inputs, edges, device)
    forms = {
        "sparse": lambda: Round.apply(*arguments, condition, edges, SLOPE, block_of(states)),
        "dense": lambda: dense_round(operators, *arguments, condition),
    }
    direction = torch.randn_like(states)
    found, row = [], {"sparse_operator_bytes": edge_bytes(edges), "dense_operator_bytes": 2 * operators[0].nbytes}
    for form in forms.values():
        result = form()
        found.append([result.detach(), *torch.autograd.grad(result, arguments, direction)])
        del result
    row["same"] = all(float((a - b).abs().max() / b.abs().max()) < TOLERANCE for a, b in zip(*found, strict=True))
    del found
    for name, form in forms.items():
        with torch.no_grad():
            row |= measured(f"{name}_forward", device, options.repeats, form)
        both = lambda form=form: torch.autograd.grad(form(), arguments, direction)  # noqa: E731
        row |= measured(f"{name}_both", device, options.repeats, both)
    return row | {f"{part}_ratio": row[f"dense_{part}_seconds"] / row[f"sparse_{part}_seconds"] for part in PARTS}


def train_step(inputs: GrnInputs, options: Options, device: str) -> dict[str, Any]:
    """A forward pass and a training step of the whole network: seconds and bytes."""
    rng = np.random.default_rng(options.seed)
    model = Grn(inputs, GrnConfig(hidden=options.hidden, layers=options.layers), device)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    regulator = rng.integers(0, len(inputs.regulator_node), options.batch)
    dose = rng.choice(DOSES, options.batch).astype(np.float32)
    state = rng.integers(0, STATES, options.batch)
    rows = [torch.from_numpy(array).to(device) for array in (regulator, dose, state)]
    target = torch.randn(options.batch, inputs.genes, device=device)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return model(*rows)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        F.mse_loss(model(*rows), target).backward()
        optimiser.step()

    step()
    row = measured("step", device, options.repeats, step)
    return row | measured("model", device, options.repeats, forward)


def least_bytes(nodes: int, options: Options) -> int:
    """What a step moves at least: node states [V, B, H] read or written, each whole.

    Forward: written once spread out, read and written in every round from the third on, read out. Backward: read
    and a gradient written at the readout; in each of those rounds states, result and gradient read and a gradient
    written; at the spread a gradient and the result read.
    """
    states = 4 * nodes * options.batch * 2 * math.ceil(options.hidden / 2)
    return (6 + 6 * max(0, options.layers - 2)) * states


def run(options: Options, progress: Progress) -> Iterator[dict[str, Any]]:
    """A row of each number of genes."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    speed = bandwidth(device)
    task = progress.add_task("message passing", total=2 * len(options.genes))
    for genes in options.genes:
        inputs = make_inputs(genes, options.edges, options.seed)
        row = {"genes": genes, "edges": len(inputs.source), "device": device, "threads": torch.get_num_threads()}
        row |= compare(inputs, options, device)
        progress.advance(task)
        row |= train_step(inputs, options, device)
        floor = least_bytes(genes, options) / speed
        yield row | {"bytes_per_second": speed, "floor_seconds": floor, "over_floor": row["step_seconds"] / floor}
        progress.advance(task)


def show(rows: Sequence[dict[str, Any]], options: Options, console: Console) -> None:
    """The rows as a table, and how they were measured."""
    layer = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, title="One round", title_justify="left")
    names = ("genes", "edges", "same", "sparse ms", "dense ms", "ratio", "sparse ms", "dense ms", "ratio")
    for name in (*names, "sparse GiB", "dense GiB"):
        layer.add_column(name, justify="right")
    model = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, title="\nThe whole network", title_justify="left")
    for name in ("genes", "forward s", "step s", "peak GiB", "floor s", "x floor", "records/s"):
        model.add_column(name, justify="right")
    for row in rows:
        cells = [f"{row['genes']:,}", f"{row['edges']:,}", "yes" if row["same"] else "NO"]
        for part in PARTS:
            times = [f"{1e3 * row[f'{form}_{part}_seconds']:,.4g}" for form in ("sparse", "dense")]
            cells += [*times, f"{row[f'{part}_ratio']:.1f}"]
        memory = [row[f"{form}_both_bytes"] + row[f"{form}_operator_bytes"] for form in ("sparse", "dense")]
        layer.add_row(*cells, *(f"{size / 2**30:.3f}" for size in memory))
        numbers = ("model_seconds", "step_seconds"), ("floor_seconds", "over_floor")
        cells = [f"{row[name]:.3g}" for name in numbers[0]] + [f"{row['step_bytes'] / 2**30:.2f}"]
        cells += [f"{row[name]:.3g}" for name in numbers[1]] + [f"{options.batch / row['step_seconds']:,.0f}"]
        model.add_row(f"{row['genes']:,}", *cells)
    console.print(layer)
    console.print(model)
    console.print(
        f"\nHidden {options.hidden}; {rows[0]['device']}, {rows[0]['threads']} threads. One round: "
        f"{options.layer_batch} records, forward, then forward and backward; peak memory of the latter beyond its "
        f"inputs, with the adjacency. same: result and gradients of sparse and dense agree within {TOLERANCE:g} of the "
        f"largest. Network: {options.layers} rounds, batch {options.batch}, a step with AdamW. Floor: the node "
        f"states' bytes that a step reads and writes, at the {rows[0]['bytes_per_second'] / 1e9:.1f} GB/s of a copy.",
        highlight=False,
    )


def main(args: Sequence[str]) -> int:
    """Measure, print and save; returns 0, or 1 if sparse and dense differ."""
    options = tyro.cli(Options, args=list(args), description=DESCRIPTION, prog="mantra bench grn")
    options.check()
    console = terminal.console()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        rows = list(run(options, progress))
    show(rows, options, console)
    if options.out:
        with atomic(options.out) as partial:
            partial.write_text(json.dumps(rows, indent=1))
    return 0 if all(row["same"] for row in rows) else 1
