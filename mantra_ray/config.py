"""Typed configuration of one experiment; every field is documented where it stands."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

SplitKind = Literal["seen", "strategy", "context", "unseen"]


@dataclass(frozen=True)
class SimulationConfig:
    """The built-in mechanistic simulator (`--data sim`)."""

    regulators: int = 300
    """Perturbed genes."""
    doses: tuple[float, ...] = (0.3, 0.6, 0.95)
    """Knock-down strengths, each in (0, 1]."""
    states: int = 2
    """Cell states, each with its own basal expression and active edges."""
    genes: int = 1000
    """Measured genes, the regulators among them."""
    programs: int = 30
    """Planted gene programs."""
    idiosyncratic_share: float = 0.3
    """Share of regulators with effects that the prior graph does not contain (0 to 1)."""
    missing_edges: float = 0.2
    """Share of true edges that the prior graph lacks."""
    added_edges: float = 0.2
    """False edges in the prior graph, as a share of the true ones."""
    cells: int = 50
    """Mean number of cells measured for a record; sets the sampling noise."""
    seed: int = 0
    """Seed of the simulated biology, apart from the experiment's seed."""


@dataclass(frozen=True)
class DataConfig:
    """Where the records come from and what goes with them."""

    data: str = "sim"
    """A catalogued name (sim, morphic) or a file of yours (.npz or .parquet)."""
    data_dir: str = ""
    """Folder with catalogued files (default: the environment variable MANTRA_DATA_DIR)."""
    graph: str = ""
    """Edge list (.csv, .tsv, .parquet; source, target and optional weight); made by co-expression if absent."""
    loadings: str = ""
    """Gene-to-program loadings W (.npy [G, K], or .csv/.parquet with gene names); fitted if absent."""
    traits: tuple[str, ...] = ()
    """Gene effects on traits, each NAME=FILE with columns symbol or ensg, b and se."""
    classes: str = ""
    """Functional classes of regulators (.csv; regulator, class)."""
    genes: int = 2000
    """Most variable genes of the training fold that are kept (0 keeps all)."""
    clip: float = 5.0
    """Expression changes are clipped to plus or minus this many log2 units."""
    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    """Settings of the simulator; used when data is sim."""


@dataclass(frozen=True)
class SplitConfig:
    """Which records are held out."""

    kind: SplitKind = "seen"
    """seen: a record of a seen regulator; strategy: another dose or allele in a context seen with the regulator;
    context: all records of a (regulator, state) pair of a seen regulator; unseen: whole regulators."""
    test_fraction: float = 0.2
    """Share of the eligible units that are tested."""
    validation_fraction: float = 0.1
    """Share of the eligible units on which choices are made."""


@dataclass(frozen=True)
class ProgramsConfig:
    """Gene programs, when no loadings are given."""

    method: Literal["nmf", "pca"] = "nmf"
    """Consensus NMF of the up and down halves of the changes, or principal components."""
    k: int = 30
    """Number of programs."""
    restarts: int = 5
    """NMF restarts that vote on the consensus."""


@dataclass(frozen=True)
class GrnConfig:
    """The graph neural network and its cross-fitting."""

    hidden: int = 16
    """Width of a node's hidden state."""
    layers: int = 2
    """Rounds of message passing."""
    epochs: int = 15
    """Passes over the training fold."""
    batch: int = 64
    """Records a step."""
    learning_rate: float = 5e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 1e-3
    """Decoupled weight decay."""
    folds: int = 3
    """Cross-fitting folds; a record's residual comes from models that did not train on it."""
    calibrate: bool = True
    """Scale predictions by the slope of observed on out-of-fold predicted changes (in [0, 1])."""


@dataclass(frozen=True)
class ManifoldConfig:
    """The manifold that predictions are projected on."""

    smooth: bool = False
    """Apply the graph-Laplacian smoother (I + lambda L)^-1."""
    smoothing: float = 0.1
    """Lambda of the smoother."""


@dataclass(frozen=True)
class NexusConfig:
    """The memory, its reader and its writer."""

    buckets: int = 512
    """B, buckets of the Centroid-Addressable Manifold."""
    slots: int = 32
    """S, slots a bucket."""
    load: float = 0.0
    """Records a slot; above 0 it replaces `buckets` so that training records / (B * S) comes nearest to it."""
    regret_gamma: float = -2.0
    """Gate: a record is written if z * (1 - sim_max) exceeds this."""
    query_alpha: float = 0.5
    """Share of the hidden state in the query; the rest is the bucket's centroid."""
    tau: float = 0.1
    """Read temperature."""
    priming: int = 2
    """First records of a token that are admitted while its statistics form."""
    eviction: Literal["pss", "fifo"] = "pss"
    """Which slot of a full bucket gives way: lowest priority, or oldest."""
    surprisal_weight: float = 1.0
    """Priority share of the language head's surprisal."""
    rarity_weight: float = 1.0
    """Priority share of the token's rarity."""
    novelty_weight: float = 1.0
    """Priority share of 1 - sim_max."""
    ema: float = 0.9
    """Decay of a token's running entropy mean and variance."""
    gate_signal: Literal["entropy", "residual"] = "entropy"
    """What the gate standardises: the head's entropy at the header, or the residual left after the read."""
    hide_state: float = 0.5
    """Share of training records for which all slots of their own state are hidden."""
    hide_regulator: float = 0.1
    """Share of training records for which all slots of their own regulator are hidden, and its token too."""
    top_programs: int = 8
    """P, programs written into a record's tokens."""
    magnitude_bins: int = 9
    """Bins of |change of program|."""
    dose_bins: int = 4
    """Bins of dose."""
    d_model: int = 32
    """Width of the transformer, of keys and of values."""
    layers: int = 1
    """Transformer layers."""
    heads: int = 4
    """Attention heads."""
    dropout: float = 0.0
    """Dropout of the transformer."""
    epochs: int = 10
    """Passes over the training fold (Mode B)."""
    batch: int = 128
    """Records a step."""
    learning_rate: float = 2e-2
    """Peak learning rate of AdamW."""
    weight_decay: float = 1e-2
    """Decoupled weight decay."""
    language_weight: float = 0.1
    """Weight of the auxiliary next-token loss."""
    language_share: float = 0.125
    """Share of a batch's records that the next-token loss reads; its cost is that of whole records."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How results are judged."""

    bootstrap: int = 1000
    """Bootstrap resamples behind each interval."""
    confidence: float = 0.95
    """Coverage of the intervals."""
    rare_records: int = 2
    """A regulator with at most this many training records is rare."""
    outlier_quantile: float = 0.8
    """Regulators above this quantile of GNN error on training data are outliers."""


@dataclass(frozen=True)
class ExperimentConfig:
    """One trial: everything that its numbers depend on."""

    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    programs: ProgramsConfig = field(default_factory=ProgramsConfig)
    grn: GrnConfig = field(default_factory=GrnConfig)
    manifold: ManifoldConfig = field(default_factory=ManifoldConfig)
    nexus: NexusConfig = field(default_factory=NexusConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0
    """Seeds the split, the folds and every generator, so that configurations are paired."""


LOCATIONS = ("data.data", "data.data_dir", "data.graph", "data.loadings", "data.classes")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Fields of a nested dataclass by their dotted names, tuples as JSON-like lists."""
    out: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value, name = getattr(config, item.name), prefix + item.name
        if dataclasses.is_dataclass(value):
            out.update(flatten(value, name + "."))
        else:
            out[name] = list(value) if isinstance(value, tuple) else value
    return out


def replace(config: Any, **changes: Any) -> Any:
    """A copy of a nested dataclass with dotted fields replaced: `replace(c, **{"nexus.tau": 0.2})`.

    Raises KeyError if a name is not a field.
    """
    for dotted, value in changes.items():
        head, _, rest = dotted.partition(".")
        if not dataclasses.is_dataclass(config) or head not in {item.name for item in dataclasses.fields(config)}:
            raise KeyError(f"{type(config).__name__} has no field {head!r}")
        value = replace(getattr(config, head), **{rest: value}) if rest else value
        config = dataclasses.replace(config, **{head: value})
    return config


def unflatten(cls: type, values: dict[str, Any]) -> Any:
    """The dataclass of `flatten`'s output; fields left out keep their defaults, unknown ones raise KeyError."""
    config = cls()
    hints = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return replace(config, **hints)


def identity(config: ExperimentConfig) -> dict[str, Any]:
    """The fields, by dotted name, that numbers depend on once the data's content is known by its hash.

    Where the inputs lie is left out; of the traits their names stay, whose order is that of the columns.
    """
    fields = {name: value for name, value in flatten(config).items() if name not in LOCATIONS}
    return fields | {"data.traits": [trait.partition("=")[0] for trait in config.data.traits]}


def digest(value: Any) -> str:
    """Content hash (16 hex digits of SHA-256) of a dataclass or of JSON-like data."""
    if dataclasses.is_dataclass(value):
        value = flatten(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
