"""Typed configuration of one experiment; every field is documented where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

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
    """Measured genes; the regulators are among them, as far as they go."""
    programs: int = 30
    """Planted gene programs."""
    idiosyncratic_share: float = 0.3
    """Share of regulators with effects that the prior graph does not contain (0 to 1)."""
    class_share: float = 0.0
    """Share of those whose extra effects are the same for their whole class, so that a class tells of its members."""
    missing_edges: float = 0.2
    """Share of true edges that the prior graph lacks."""
    added_edges: float = 0.2
    """False edges in the prior graph, as a share of the true ones."""
    cells: int = 50
    """Mean number of cells measured for a record; sets the sampling noise."""
    seed: int = 0
    """Seed of the simulated biology, apart from the experiment's seed."""


@dataclass(frozen=True)
class TraitsConfig:
    """How gene effects on traits are read and turned into program-to-trait weights."""

    heidi: float = 0.01
    """Genes whose p_HEIDI lies below this are left out: linkage, not one shared variant (0 keeps all)."""
    p_smr: float = 1.0
    """Genes whose p_SMR lies above this are left out (1 keeps all)."""
    ridge: bool = False
    """Shrink the weights by a ridge penalty chosen by leaving out genes."""


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
    """Gene effects on traits, each NAME=FILE with columns symbol or ensg, b and se (or SMR's); b is the effect of
    higher expression, or with NAME=FILE:loss that of losing the gene."""
    classes: str = ""
    """Functional classes of regulators (.csv; regulator, class)."""
    genes: int = 2000
    """Most variable genes of the training fold that are kept (0 keeps all)."""
    clip: float = 5.0
    """Expression changes are clipped to plus or minus this many log2 units."""
    trait: TraitsConfig = field(default_factory=TraitsConfig)
    """Settings of the trait tables."""
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
    density: float = 0.5
    """Spectra are dropped whose mean distance to their nearest ones exceeds this (2 keeps all)."""
    iterations: int = 100
    """Most iterations of a restart."""
    tolerance: float = 1e-3
    """A restart ends when its relative progress falls below this."""


@dataclass(frozen=True)
class GrnConfig:
    """The graph neural network and its cross-fitting."""

    prior: Literal["given", "coexpression", "both", "none"] = "given"
    """Graph of genes: the given one (by co-expression where there is none), one by co-expression of unperturbed cells
    (of the training fold's changes where there are none), both together, or no edges."""
    top_k: int = 10
    """Edges into a gene by co-expression, from those that it correlates most with."""
    threshold: float = 0.0
    """Least absolute correlation of such an edge."""
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
    memory: float = 4.0
    """GiB of node states that a step keeps; a larger batch goes through in parts, computed again for the gradient."""
    accumulate: int = 1
    """Parts of a batch that go through one after another, their gradients added up: the same step in less memory."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of node states in training; auto is bfloat16 on GPUs that have it, float32 elsewhere. Predictions are float32."""
    replicas: int = 0
    """Workers that train one network together, each a share of every batch; 0: on whole GPUs all that would be idle."""


@dataclass(frozen=True)
class ManifoldConfig:
    """The manifold that predictions are projected on."""

    smooth: bool = False
    """Apply the graph-Laplacian smoother (I + lambda L)^-1."""
    smoothing: float = 0.1
    """Lambda of the smoother."""
    energy: bool = False
    """Descend the energy of unperturbed cells, after smoothing."""
    steps: int = 5
    """Steps of the descent."""
    reach: float = 0.5
    """Most that the descent may move a prediction, as a share of its size."""
    penalty: float = 0.0
    """Weight of the predicted states' relative energy in the network's training loss."""
    controls: str = "auto"
    """Unperturbed cells, log2 scale: .npy [cells, genes] in the data's gene order, or .parquet with a column a gene
    and, if known, `state`; auto: those of the simulator, or none."""
    cells: int = 2000
    """Unperturbed cells that the simulator makes."""
    space: Literal["pca", "genes"] = "pca"
    """The energy's network sees principal components of the cells, or their most variable genes alone."""
    components: int = 30
    """How many of them."""
    noise: float = 0.5
    """Noise level at which the energy is read, in standard deviations of a gene."""
    hidden: int = 128
    """Width of the energy's network."""
    updates: int = 1000
    """Training steps of the energy."""
    replicas: int = 1
    """Workers that train the energy together, each on its share of every batch; 0 as for the network."""


@dataclass(frozen=True)
class NexusConfig:
    """The memory, its reader and its writer."""

    mode: Literal["residual", "language"] = "residual"
    """Training: regression on the residual (Mode B), or a language model of records, then a decoding head (Mode A)."""
    correct: Literal["programs", "genes"] = "programs"
    """What a record's value holds and the correction is added to: changes of programs or of genes."""
    correction: Literal["additive", "recursive"] = "additive"
    """The correction is added to the GNN's prediction, or fed into every layer of the GNN."""
    routing: Literal["regulator", "class", "levels", "hash", "random"] = "regulator"
    """What sets a record's bucket: its regulator, its functional class, both (a memory of each, with learned fusion),
    several hashes of the regulator, or chance (a control, which knows nothing of the regulator)."""
    hash_heads: int = 2
    """Memories behind `routing hash`, each with another prime number of buckets."""
    pathway_gamma: float = -4.0
    """Gate of the pathway-level memory of `routing levels`; permissive, since a class has many regulators."""
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
    read: Literal["hard", "soft"] = "hard"
    """hard: slots of the own regulator, if any, are read alone; soft (always by class in `levels`): the bucket."""
    transport: Literal["learned", "none"] = "learned"
    """What is recalled: the residual, moved by a learned share towards the observation, or the residual alone."""
    start: Literal["fitted", "plain"] = "fitted"
    """Where training starts: gate and transport at least squares on the training records, or half open and at 0."""
    priming: int = 2
    """First records of a token that are admitted while its statistics form."""
    eviction: Literal["pss", "fifo", "random"] = "pss"
    """Which slot of a full bucket gives way: lowest priority, oldest, or any."""
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
    top_genes: int = 0
    """Genes written into a record's tokens after the programs."""
    magnitude_bins: int = 9
    """Bins of |change of program|."""
    dose_bins: int = 4
    """Bins of dose."""
    d_model: int = 256
    """Width of the transformer and of keys."""
    layers: int = 4
    """Transformer layers."""
    heads: int = 4
    """Attention heads."""
    window: int = 1024
    """Tokens of the stream that a token attends to, itself among them."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the transformer's products; auto is bfloat16 on GPUs that have it, float32 elsewhere."""
    dropout: float = 0.0
    """Dropout of the transformer."""
    epochs: int = 10
    """Passes over the training fold: of the whole model in Mode B, of the decoding head in Mode A."""
    language_epochs: int = 10
    """Passes of Mode A's language model over the record stream."""
    batch: int = 128
    """Records a step."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 1e-2
    """Decoupled weight decay."""
    language_weight: float = 0.1
    """Weight of the auxiliary next-token loss."""
    language_share: float = 0.125
    """Share of a batch's records that the next-token loss reads; its cost is that of whole records."""


# What small data need, and what a laptop trains in a second: the default of the sweeps.
LAPTOP = {"d_model": 32, "layers": 1, "learning_rate": 2e-2}


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
