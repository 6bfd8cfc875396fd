"""`mantra tokens build`: the records of a data set as tokens, with their vocabulary and an index."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from rich.console import Console
from rich.table import Table
from sklearn.cluster import KMeans

from mantra_ray import terminal
from mantra_ray.cascade.programs import check_rank, fit_programs
from mantra_ray.config import ExperimentConfig, SplitKind
from mantra_ray.data.catalog import load_screen
from mantra_ray.data.screen import Screen
from mantra_ray.data.splits import Split, make_split
from mantra_ray.data.tables import read_npy
from mantra_ray.errors import InputError
from mantra_ray.fields import replace
from mantra_ray.nexus.tokens import Vocabulary
from mantra_ray.sweep.options import ExperimentOptions, check_writable, flag, shown
from mantra_ray.training.stages import variable_genes

USAGE = "usage: mantra tokens build --data NAME|FILE [options]   (all options: mantra tokens build --help)"
INDEX = "example_index.parquet"  # written last: where it lies, everything lies
PARTS = tuple(field.name for field in dataclasses.fields(Split))


@dataclass(frozen=True)
class TokenOptions(ExperimentOptions):
    """Options of `mantra tokens build`; of the memory's settings only the bins and the numbers of tokens count."""

    split: Annotated[str, shown("KIND", "the first that makes sense for the data")] = ""
    """What is held out: seen, strategy, context or unseen; bins are learned on what is not."""
    seed: int = 0
    """Seed of the split, of fitted programs and of k-means."""
    states: Literal["given", "kmeans", "none"] = "given"
    """What STATE tokens tell: the data's states, clusters of --control-embedding, or nothing (all 0)."""
    clusters: int = 8
    """Clusters of --states kmeans, fitted on the training fold."""
    control_embedding: Annotated[str, shown("FILE", "none")] = ""
    """Embeddings of each record's unperturbed control (.npy [N, d], rows in the data's order), principal components
    of its basal expression for one; --states kmeans needs them, since the records hold changes alone."""
    out: Annotated[str, shown("FOLDER", "out/nexus")] = "out/nexus"
    """Folder of the files."""

    def check(self) -> None:
        """Raise InputError for a value that cannot be."""
        super().check()
        if self.split and self.split not in get_args(SplitKind):
            raise InputError("options", "--split", self.split, f"must be among {', '.join(get_args(SplitKind))}")
        for name, least in (("seed", 0), ("clusters", 1)):
            if getattr(self, name) < least:
                raise InputError("options", flag(name), getattr(self, name), f"must be at least {least}")
        if (self.states == "kmeans") != bool(self.control_embedding):
            raise InputError("options", "--states", self.states, "kmeans and --control-embedding need each other")
        check_writable(Path(self.out))


@dataclass(frozen=True, eq=False)
class Tokens:
    """All records of a data set as tokens, before they are written."""

    vocabulary: Vocabulary
    rows: np.ndarray  # [N, L] int64
    split: Split
    state: np.ndarray  # [N] int64, as tokenised
    state_names: tuple[str, ...]
    loadings: pa.Table | None  # W as `--loadings` reads it: a row a GENE token, a column a PROG token
    notes: tuple[str, ...]


def main(args: Sequence[str]) -> int:
    """Run `mantra tokens ARGS`; returns the exit code."""
    match list(args):
        case ["build", *rest]:
            options = tyro.cli(TokenOptions, args=rest, description=__doc__, prog="mantra tokens build")
            options.check()
            return run(options, terminal.console())
        case ["-h" | "--help"]:
            print(USAGE)
            return 0
        case _:
            print(USAGE, file=sys.stderr)
            return 2


def run(options: TokenOptions, console: Console) -> int:
    """Build the tokens that the options describe, write them to `--out` and print what they hold."""
    with console.status("reading the data"):
        experiment = options.experiment(options.seed)
        screen = load_screen(experiment.data)
        kind = options.split or screen.splits[0]
        experiment = replace(experiment, **{"split.kind": kind})
        split = make_split(screen.data, experiment.split, options.seed)
        states = read_states(options, screen, split.train)
    with console.status("programs and tokens"):
        tokens = build(screen, experiment, split, *states)
    write(tokens, screen, Path(options.out))
    for note in tokens.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    print_counts(tokens, kind, console)
    console.print(f"written to {options.out}", markup=False, highlight=False)
    return 0


def read_states(options: TokenOptions, screen: Screen, train: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """State of each record [N] int64 and the states' names, as `--states` asks.

    Clusters are fitted on the training rows `train` of the control embeddings; other rows join the nearest one.
    Raises InputError where the embeddings do not fit the data or have fewer distinct training rows than clusters.
    """
    data, path = screen.data, options.control_embedding
    if options.states == "given":
        return data.state, data.state_names
    if options.states == "none":
        return np.zeros(len(data), np.int64), ("any",)
    embedding = read_npy(Path(path), "--control-embedding")
    shape = embedding.shape
    if len(shape) != 2 or shape[0] != len(data) or not shape[1] or embedding.dtype.kind not in "iuf":
        raise InputError(path, "--control-embedding", shape, f"a numeric matrix [{len(data)}, d] is wanted")
    for row in np.flatnonzero(~np.isfinite(embedding).all(1))[:1]:
        raise InputError(path, "--control-embedding", int(row), "the row is not finite")
    distinct = len(np.unique(embedding[train], axis=0))
    if options.clusters > distinct:
        raise InputError(path, "--clusters", options.clusters, f"the training fold has {distinct} distinct embeddings")
    model = KMeans(options.clusters, n_init=10, random_state=options.seed).fit(embedding[train].astype(np.float64))
    state = model.predict(embedding.astype(np.float64)).astype(np.int64)
    return state, tuple(f"cluster{i}" for i in range(options.clusters))


def build(
    screen: Screen, experiment: ExperimentConfig, split: Split, state: np.ndarray, state_names: tuple[str, ...]
) -> Tokens:
    """Tokens of all records; genes, programs and bins come from the training rows alone.

    Changes of programs are those of expression, ΔE @ W, as in training; a file's own count where it has no
    expression. Raises InputError for gene tokens without expression, and where W cannot be fitted or used.
    """
    data, config = screen.data, experiment.nexus
    expression, loadings, program, notes = None, None, data.delta_program, list(screen.notes)
    if data.delta_expression is not None:
        if program is not None:
            notes.append("changes of programs are computed from expression; those in the file are not used")
        clip = experiment.data.clip
        genes = variable_genes(np.clip(data.delta_expression[split.train], -clip, clip), experiment.data.genes)
        expression = np.clip(data.delta_expression[:, genes], -clip, clip).astype(np.float32)
        weights = _loadings(screen, experiment, genes, expression[split.train])
        program = expression @ weights
        given = screen.loadings is not None
        names = screen.program_names if given else tuple(f"program{i}" for i in range(weights.shape[1]))
        columns = [pa.array([data.gene_names[i] for i in genes]), *(pa.array(column) for column in weights.T)]
        loadings = pa.Table.from_arrays(columns, names=["gene", *names])
    elif config.top_genes:
        raise InputError("options", flag("nexus.top_genes"), config.top_genes, "the data has no changes of expression")
    vocabulary = Vocabulary.learn(
        data.dose[split.train],
        program[split.train],
        regulators=len(data.regulator_names),
        states=len(state_names),
        dose_bins=config.dose_bins,
        magnitude_bins=config.magnitude_bins,
        top_programs=config.top_programs,
        delta_expression=None if expression is None else expression[split.train],
        top_genes=config.top_genes,
    )
    rows = vocabulary.record(data.regulator, data.dose, state, program, expression)
    return Tokens(vocabulary, rows, split, state, state_names, loadings, tuple(notes))


def _loadings(screen: Screen, experiment: ExperimentConfig, genes: np.ndarray, changes: np.ndarray) -> np.ndarray:
    """W [G, K] of the kept genes, given or fitted on the training rows' changes [n, G]."""
    if screen.loadings is None:
        return fit_programs(changes, experiment.programs, experiment.seed)
    loadings = screen.loadings[genes]
    check_rank(loadings, "loadings of the kept genes (--genes)")
    return loadings


def write(tokens: Tokens, screen: Screen, out: Path) -> None:
    """Write vocab.json, tokens_PART.pt of every part, loadings.parquet and, last, the index to the folder `out`.

    A tokens file holds `tokens` [n, L], their `record` numbers [n] and the `stream` of which they are a view; the
    index's `offset` counts in it. Earlier files of these names are replaced, each whole or not at all; an index never
    lies beside files of another build.
    """
    vocabulary, made = tokens.vocabulary, not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".tokens_", dir=out))
    try:
        vocabulary.save(partial / "vocab.json")
        if tokens.loadings is not None:
            pq.write_table(tokens.loadings, partial / "loadings.parquet")
        index = []
        for part in PARTS:
            record = getattr(tokens.split, part)
            stream, offset = vocabulary.stream(tokens.rows[record])
            whole = torch.from_numpy(stream)
            rows = whole[1 : 1 + tokens.rows[record].size].view(len(record), vocabulary.length)
            stored = {"tokens": rows, "record": torch.from_numpy(record), "stream": whole}
            torch.save(stored, partial / f"tokens_{part}.pt")
            index.append(_index(tokens, screen, part, record, offset))
        names = sorted(path.name for path in partial.iterdir())
        pq.write_table(pa.concat_tables(index), partial / INDEX)
        (out / INDEX).unlink(missing_ok=True)
        (out / "loadings.parquet").unlink(missing_ok=True)  # an earlier build's, which this one may lack
        for name in (*names, INDEX):
            os.replace(partial / name, out / name)
    except BaseException:
        shutil.rmtree(out if made else partial, ignore_errors=True)
        raise
    partial.rmdir()


def _index(tokens: Tokens, screen: Screen, part: str, record: np.ndarray, offset: np.ndarray) -> pa.Table:
    data = screen.data
    regulator, state = data.regulator[record], tokens.state[record]
    columns = {
        "split": pa.array([part] * len(record)),
        "offset": offset,
        "record": record,
        "regulator": regulator,
        "regulator_name": _named(regulator, data.regulator_names),
        "known": np.isin(regulator, data.regulator[tokens.split.train]),  # whether its token is ever trained
        "dose": data.dose[record],
        "state": state,
        "state_name": _named(state, tokens.state_names),
    }
    return pa.table(columns)


def _named(index: np.ndarray, names: Iterable[str]) -> pa.Array:
    return pa.array(list(names), pa.string()).take(pa.array(index))


def print_counts(tokens: Tokens, kind: str, console: Console) -> None:
    """Print the records of every part and the tokens of every type."""
    vocabulary = tokens.vocabulary
    table = Table(title=f"records, split {kind}")
    for heading in ("part", "records", "tokens of the stream"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for part in PARTS:
        count = len(getattr(tokens.split, part))
        table.add_row(part, f"{count:,}", f"{count * vocabulary.length + 2:,}")
    console.print(table)
    signed = "{} {} x 2 signs x {} bins, {} a record"
    shapes = {
        "DOSE": f"{len(vocabulary.dose_edges) + 1} bins",
        "PROG": signed.format(vocabulary.programs, "programs", vocabulary.bins, vocabulary.top_programs),
        "GENE": signed.format(vocabulary.genes, "genes", vocabulary.gene_bins, vocabulary.top_genes),
    }
    table = Table(title=f"vocabulary, {vocabulary.size:,} tokens")
    for heading in ("type", "first id", "count", "what"):
        table.add_column(heading, justify="right" if heading in ("first id", "count") else "left")
    for entry in vocabulary.types():
        if entry["count"]:
            table.add_row(entry["type"], str(entry["first"]), f"{entry['count']:,}", shapes.get(entry["type"], ""))
    console.print(table)
