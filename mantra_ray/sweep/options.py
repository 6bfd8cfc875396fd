"""Command-line options that every recipe shares; `--help` shows the text that stands under each field."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro

from mantra_ray.config import (
    LAPTOP,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    GrnConfig,
    ManifoldConfig,
    NexusConfig,
    ProgramsConfig,
    SimulationConfig,
    SplitConfig,
    SplitKind,
    TraitsConfig,
)
from mantra_ray.errors import InputError
from mantra_ray.fields import flatten
from mantra_ray.files import place
from mantra_ray.sweep.knobs import NUISANCE, Knob, product, unpinned
from mantra_ray.sweep.racing import FIRST
from mantra_ray.sweep.spec import Scheduler, Search, SweepSpec


def shown(metavar: str, default: str = "") -> Any:
    """How `--help` shows an option: what its value is called, and its default in words."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})" if default else "")


@dataclass(frozen=True)
class ExperimentOptions:
    """Options of every command that works on an experiment's data."""

    data: Annotated[str, shown("NAME|FILE", "sim")] = "sim"
    """A built-in data set (sim, morphic) or a file of yours (.npz or .parquet)."""
    data_dir: Annotated[str, shown("FOLDER", "the environment variable MANTRA_DATA_DIR")] = ""
    """Folder of the built-in data sets' files."""
    graph: Annotated[str, shown("FILE", "made by co-expression")] = ""
    """Prior gene graph (.csv, .tsv, .parquet: source, target, optional weight)."""
    loadings: Annotated[str, shown("FILE", "fitted")] = ""
    """Gene-to-program loadings W (.npy [G, K], .csv/.parquet with gene names, or cnmf's folder)."""
    traits: Annotated[tuple[str, ...], shown("NAME=FILE ...", "traits are left out")] = ()
    """Gene effects on traits (symbol or ensg, b, se; or an SMR table); NAME=FILE:loss where b is that of losing it."""
    classes: Annotated[str, shown("FILE", "unknown")] = ""
    """Functional classes of the regulators (.csv: regulator, class)."""
    genes: int = 2000
    """Most variable genes of the training fold that are kept (0 keeps all)."""
    clip: float = 5.0
    """Expression changes are clipped to plus or minus this many log2 units."""

    test_fraction: float = 0.2
    """Share of the eligible units that are tested."""
    validation_fraction: float = 0.1
    """Share of the eligible units on which choices are made."""
    nexus: NexusConfig = field(default_factory=lambda: NexusConfig(**LAPTOP))
    """The memory."""
    grn: GrnConfig = field(default_factory=GrnConfig)
    programs: ProgramsConfig = field(default_factory=ProgramsConfig)
    manifold: ManifoldConfig = field(default_factory=ManifoldConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    trait: TraitsConfig = field(default_factory=TraitsConfig)

    def check(self) -> None:
        """Raise InputError for a value that cannot be."""
        if self.genes < 0:
            raise InputError("options", "--genes", self.genes, "must be at least 0")
        if not self.clip > 0:
            raise InputError("options", "--clip", self.clip, "must be above 0")
        check_ranges(self.experiment(0))

    def experiment(self, seed: int) -> ExperimentConfig:
        """The configuration that these options describe."""
        data = DataConfig(
            data=self.data,
            data_dir=self.data_dir,
            graph=self.graph,
            loadings=self.loadings,
            traits=self.traits,
            classes=self.classes,
            genes=self.genes,
            clip=self.clip,
            simulation=self.simulation,
            trait=self.trait,
        )
        split = SplitConfig(test_fraction=self.test_fraction, validation_fraction=self.validation_fraction)
        return ExperimentConfig(data, split, self.programs, self.grn, self.manifold, self.nexus, self.evaluation, seed)


@dataclass(frozen=True)
class Options(ExperimentOptions):
    """Options of a sweep."""

    splits: Annotated[tuple[str, ...], shown("KIND ...", "all that make sense for the data")] = ()
    """What is held out: seen, strategy, context, unseen."""
    seeds: int = 3
    """How many seeds; every configuration runs on each of them."""
    first_seed: int = 0
    """The first seed; the others follow it."""
    effect: float = 0.02
    """Wished-for difference of gains, as a share of the GNN's error; before the trials start it is said how many seeds
    find it."""
    power: float = 0.8
    """Probability with which a difference that is there is to be found."""

    search: Annotated[Search, shown("{grid,sample,tpe,multi}", "grid, or the recipe's own")] = "grid"
    """grid: every configuration of the recipe; sample: some drawn at random; tpe: proposed by Optuna from what gained
    on validation; multi: the same for gain, write density and records per second together."""
    num_trials: Annotated[int, shown("INT", "8; 40 with tpe and multi")] = 0
    """Configurations that a search other than grid tries; each runs on every seed and split."""
    batch_configs: int = 8
    """Configurations that tpe and multi propose at a time: more run side by side, fewer learn more from each."""
    nuisance_trials: int = 1
    """Settings of the nuisance knobs (learning rate) tried for each configuration, its own among them; the tables
    compare each at its best on validation."""
    racing: Annotated[bool, tyro.conf.FlagCreatePairsOff, shown("", "off")] = False
    """Run seeds in rounds, and stop configurations that are behind the best on validation with the confidence of
    --evaluation.confidence."""
    confirm: int = 0
    """Fresh seeds on which the winner of validation and the default are run again and judged."""
    scheduler: Scheduler = "none"
    """Stop trials that lag behind on validation: successive halving (asha), below the median; or let them go on from
    better ones with other nuisance knobs (pbt). Trials compete within a seed and split."""
    retry_failed: Annotated[bool, tyro.conf.FlagCreatePairsOff, shown("", "off")] = False
    """Run again only the trials that failed; otherwise all that are not finished run."""
    trial_timeout: Annotated[float, shown("SECONDS", "none")] = 0.0
    """A trial that takes longer is ended and counts as failed."""
    smoke: Annotated[bool, tyro.conf.FlagCreatePairsOff, shown("", "off")] = False
    """Tiny data and few passes, to see that all works; other options still apply on top."""

    name: Annotated[str, shown("NAME", "the recipe's name")] = ""
    """Name of the sweep and of its folder."""
    out: Annotated[str, shown("FOLDER", "runs")] = "runs"
    """Folder of the sweeps; on a cluster, one that all machines share."""
    copy_to: Annotated[str, shown("ADDRESS", "nowhere")] = ""
    """Another folder, or an address such as s3://bucket/runs, to which the tables are copied when the sweep ends."""
    address: Annotated[str, shown("ADDRESS", "start Ray on this machine")] = ""
    """Address of a Ray cluster, or auto."""
    cpus_per_trial: float = 1.0
    """CPU cores of a trial, or of each of its workers."""
    gpus_per_trial: float = 0.0
    """GPUs of a trial, or of each of its workers; 0.25 lets four trials share one."""
    workers_per_trial: int = 1
    """Processes that work on one trial together."""
    given: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()  # dotted names of the options on the command line

    def check(self) -> None:
        """Raise InputError for a value that cannot be."""
        for kind in self.splits:
            if kind not in get_args(SplitKind):
                raise InputError("options", "--splits", kind, f"must be among {', '.join(get_args(SplitKind))}")
        least_values = {"seeds": 1, "workers_per_trial": 1, "first_seed": 0, "num_trials": "num_trials" in self.given}
        for name, least in (least_values | {"batch_configs": 1, "nuisance_trials": 1, "confirm": 0}).items():
            if getattr(self, name) < least:
                raise InputError("options", flag(name), getattr(self, name), f"must be at least {least}")
        if not self.effect > 0:
            raise InputError("options", "--effect", self.effect, "must be above 0")
        if not 0.5 <= self.power < 1:
            raise InputError("options", "--power", self.power, "must be at least 0.5 and below 1")
        if not self.cpus_per_trial > 0:
            raise InputError("options", flag("cpus_per_trial"), self.cpus_per_trial, "must be above 0")
        if not self.gpus_per_trial >= 0:
            raise InputError("options", flag("gpus_per_trial"), self.gpus_per_trial, "must not be negative")
        if not self.trial_timeout >= 0:
            raise InputError("options", flag("trial_timeout"), self.trial_timeout, "must not be negative")
        if self.racing and self.seeds <= FIRST:
            raise InputError("options", "--seeds", self.seeds, f"must be above {FIRST}, the seeds before racing drops")
        super().check()
        if self.name != Path(self.name).name or self.name == "..":
            raise InputError("options", "--name", self.name, "must be a plain name; --out sets the folder")
        if "://" in self.out:
            problem = "must be a folder that all machines share; --copy-to takes the tables to an address"
            raise InputError("options", "--out", self.out, problem)
        try:
            place(self.copy_to)
        except ValueError as error:
            raise InputError("options", "--copy-to", self.copy_to, str(error)) from None
        check_writable(Path(self.out))

    @property
    def configurations(self) -> int:
        """How many configurations a search other than grid tries."""
        return self.num_trials or (8 if self.search == "sample" else 40)

    def sweep(
        self, name: str, arms: Sequence[dict[str, Any]] = (), space: Sequence[Knob] = (), search: Search = "grid"
    ) -> SweepSpec:
        """The sweep of a recipe's arms, or of every combination of its space, as these options want it.

        `search` is the recipe's own, for users who give none. Raises InputError for options that it has no use for.
        """
        search = self.search if "search" in self.given or self.search != "grid" else search
        for option, users in (("num_trials", ("sample", "tpe", "multi")), ("batch_configs", ("tpe", "multi"))):
            if option in self.given and search not in users:
                raise InputError("options", flag(option), getattr(self, option), f"needs --search {', '.join(users)}")
        space = unpinned([*space, *(() if any(k.kind == "nuisance" for k in space) else NUISANCE)], self.given)
        seeds = tuple(range(self.first_seed, self.first_seed + self.seeds))
        base, arms = self.experiment(self.first_seed), tuple(arms) or product(space)
        spec = SweepSpec(self.name or name, base, arms, seeds, self.splits, space, search).pin(self.given)
        return spec.sample(self.configurations, self.first_seed) if search == "sample" else spec


# The default of `--smoke`, under the options given beside it.
SMOKE = Options(
    seeds=2,
    num_trials=4,
    batch_configs=2,
    genes=60,
    nexus=NexusConfig(**LAPTOP | {"d_model": 16}, epochs=2, heads=2, top_programs=3),
    grn=GrnConfig(hidden=8, layers=1, epochs=1, folds=2),
    programs=ProgramsConfig(k=6, restarts=1),
    manifold=ManifoldConfig(updates=50, hidden=32, cells=200),
    simulation=SimulationConfig(regulators=24, doses=(0.5, 0.95), states=2, genes=60, programs=6),
    evaluation=EvaluationConfig(bootstrap=100),
)


SMALLEST = 1e-6  # of what must be above 0
RANGES = {
    "data.trait.heidi data.trait.p_smr": (0, 1),
    "nexus.surprisal_weight nexus.rarity_weight nexus.novelty_weight": (0, math.inf),
    "nexus.load nexus.priming nexus.epochs nexus.layers nexus.weight_decay nexus.language_weight": (0, math.inf),
    "nexus.buckets nexus.slots nexus.batch nexus.heads nexus.d_model": (1, math.inf),
    "nexus.top_programs nexus.magnitude_bins nexus.dose_bins nexus.window nexus.hash_heads": (1, math.inf),
    "nexus.top_genes nexus.language_epochs": (0, math.inf),
    "nexus.tau nexus.learning_rate grn.learning_rate grn.memory": (SMALLEST, math.inf),
    "grn.threshold": (0, 1),
    "nexus.query_alpha nexus.hide_state nexus.hide_regulator nexus.language_share": (0, 1),
    "nexus.ema nexus.dropout": (0, 1 - SMALLEST),
    "grn.hidden grn.layers grn.epochs grn.batch grn.top_k grn.accumulate": (1, math.inf),
    "programs.k programs.restarts": (1, math.inf),
    "programs.iterations": (1, math.inf),
    "programs.density programs.tolerance": (SMALLEST, math.inf),
    "grn.folds": (2, math.inf),
    "grn.weight_decay grn.replicas manifold.replicas manifold.smoothing": (0, math.inf),
    "evaluation.rare_records": (0, math.inf),
    "manifold.steps manifold.reach manifold.penalty manifold.updates": (0, math.inf),
    "manifold.cells manifold.components manifold.hidden": (1, math.inf),
    "manifold.noise": (SMALLEST, math.inf),
    "evaluation.bootstrap": (1, math.inf),
    "evaluation.confidence": (SMALLEST, 1 - SMALLEST),
    "evaluation.outlier_quantile": (0, 1),
}


def flag(name: str) -> str:
    """The option that sets a dotted field."""
    return "--" + name.replace("_", "-")


def parse(args: Sequence[str], description: str, program: str | None = None) -> Options:
    """Options from the command line, checked; exits with help or with a message as argparse does."""
    default = SMOKE if "--smoke" in args else Options()
    given = tuple(arg[2:].partition("=")[0].replace("-", "_") for arg in args if arg.startswith("--"))
    options = tyro.cli(Options, args=list(args), default=default, description=description, prog=program)
    options = dataclasses.replace(options, given=given)
    options.check()
    return options


def check_ranges(config: ExperimentConfig) -> None:
    """InputError for the first setting of memory, network, programs or judging that lies outside its range."""
    values = flatten(config)
    for names, (low, high) in RANGES.items():
        for name in names.split():
            if not low <= values[name] <= high:
                wanted = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
                raise InputError("options", flag(name), values[name], f"must be {wanted}")
    for name in ("nexus.regret_gamma", "nexus.pathway_gamma"):  # may be infinite
        if math.isnan(values[name]):
            raise InputError("options", flag(name), values[name], "must be a number")
    if config.nexus.d_model % config.nexus.heads:
        raise InputError("options", flag("nexus.d_model"), config.nexus.d_model, "must be a multiple of the heads")


def check_writable(folder: Path) -> None:
    """InputError unless `folder` can be written to, or made where it does not exist yet; nothing is made."""
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        problem = "cannot be written to" if place.is_dir() else f"{place} is no folder"
        raise InputError("options", "--out", str(folder), problem)
