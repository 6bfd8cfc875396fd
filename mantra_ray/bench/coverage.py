"""`mantra bench coverage`: how often the 95 % intervals hold the truth, on results drawn with a known one.

Results are drawn as a sweep's are: each seed tests some of the regulators, a record's paired difference is the sum of
a regulator's part (the same in all seeds), a seed's, one of both together and the record's own. The interval of the
plain percentile bootstrap of seeds and regulators stands beside ours.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mantra_ray import terminal
from mantra_ray.errors import InputError
from mantra_ray.evaluation.components import cell_sums
from mantra_ray.evaluation.robust import improvement_interval, interquartile_interval, interquartile_mean, pair_gains
from mantra_ray.evaluation.statistics import Interval, mean_interval, nested_gain, resample_counts
from mantra_ray.files import atomic
from mantra_ray.sweep.options import check_writable, shown

Tails = Literal["normal", "t3", "skewed", "few"]
STATISTICS = ("difference", "gain", "iqm", "improvement", "plain")  # the last: the difference by plain percentiles
CONFIDENCE = 0.95
GOAL = (0.93, 0.97)
GAIN = 0.2  # true gain of the simulated memory over the GNN
SPREAD = 0.3  # of what the parts add to a record's difference, in the GNN's mean error
FEW = 0.15  # share of those that differ from the others
HARDNESS = 0.4  # logarithmic standard deviation of the regulators' GNN errors
LARGE = 4_000  # regulators, and seeds times these, from which the truth of the robust statistics is computed
DESCRIPTION = "How often the intervals hold the truth, on results drawn with a known one."


@dataclass(frozen=True)
class Scenario:
    """Where simulated differences come from: standard deviations of the parts, in units that are then scaled."""

    name: str
    regulator: float
    seed: float
    both: float
    record: float
    tails: Tails = "normal"
    tested: float = 1.0  # share of the regulators that one seed tests
    records: int = 2  # of a regulator in one seed
    seeds: int = 3
    regulators: int = 100


SCENARIOS = (
    Scenario("regulators alone", 1.0, 0.0, 0.0, 0.0),
    Scenario("regulators", 1.0, 0.05, 0.5, 1.0),
    Scenario("regulators, heavy tails", 1.0, 0.05, 0.5, 1.0, "t3"),
    Scenario("regulators, skewed", 1.0, 0.05, 0.5, 1.0, "skewed"),
    Scenario("few regulators", 1.0, 0.05, 0.5, 0.5, "few"),
    Scenario("records", 0.0, 0.0, 0.0, 1.0),
    Scenario("seeds", 0.2, 0.3, 0.2, 0.5),
    Scenario("seeds alone", 0.0, 1.0, 0.0, 0.1),
    Scenario("both", 0.5, 0.1, 1.0, 1.0, "t3"),
    Scenario("other regulators each seed", 1.0, 0.1, 0.0, 1.0, tested=0.2),
)


@dataclass(frozen=True)
class Options:
    """Options of `mantra bench coverage`."""

    seeds: Annotated[tuple[int, ...], shown("N ...", "3 5 10")] = (3, 5, 10)
    """Numbers of seeds."""
    regulators: Annotated[tuple[int, ...], shown("N ...", "30 100 300")] = (30, 100, 300)
    """Numbers of regulators."""
    scenarios: Annotated[tuple[str, ...], shown("NAME ...", "all")] = field(default=())
    """Which of the scenarios are drawn."""
    runs: int = 500
    """Draws of each; 500 leave a standard error of 1 point."""
    resamples: int = 1000
    """Bootstrap resamples of an interval."""
    seed: int = 0
    """Seed of the draws."""
    out: Annotated[str, shown("FILE", "not saved")] = ""
    """Where the rows are saved (.json)."""

    def check(self) -> None:
        """Raise InputError for a value that cannot be."""
        for name in ("seeds", "regulators", "runs", "resamples"):
            least = {"regulators": 10, "resamples": 100}.get(name, 1)
            for value in np.atleast_1d(getattr(self, name)).tolist():
                if value < least:
                    raise InputError("options", f"--{name}", value, f"must be at least {least}")
        names = [scenario.name for scenario in SCENARIOS]
        for name in self.scenarios:
            if name not in names:
                raise InputError("options", "--scenarios", name, f"must be among: {'; '.join(names)}")
        if self.seed < 0:
            raise InputError("options", "--seed", self.seed, "must not be negative")
        if self.out:
            if not self.out.endswith(".json"):
                raise InputError("options", "--out", self.out, "must end in .json")
            check_writable(Path(self.out).parent)

    def chosen(self) -> Iterator[Scenario]:
        """The scenarios at every number of seeds and regulators."""
        for scenario in SCENARIOS:
            if not self.scenarios or scenario.name in self.scenarios:
                for seeds, regulators in itertools.product(self.seeds, self.regulators):
                    yield replace(scenario, seeds=seeds, regulators=regulators)


def standard(tails: Tails, shape: tuple[int, ...] | int, rng: np.random.Generator) -> np.ndarray:
    """Draws of mean 0 and variance 1.

    Normal, Student's t of 3 degrees of freedom, lognormal (skewness 2), or one of two values, the larger for `FEW`.
    """
    if tails == "normal":
        return rng.normal(size=shape)
    if tails == "t3":
        return rng.standard_t(3, size=shape) / np.sqrt(3)
    if tails == "few":
        return ((rng.random(shape) < FEW) - FEW) / np.sqrt(FEW * (1 - FEW))
    sigma = 0.5513  # of a lognormal with skewness 2
    return (rng.lognormal(0, sigma, shape) - np.exp(sigma**2 / 2)) / np.sqrt(np.exp(sigma**2) * np.expm1(sigma**2))


def draw(case: Scenario, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Error, reference error, regulator and seed of the records [n] of one simulated experiment."""
    tested = max(round(case.tested * case.regulators), 2)
    held = [rng.permutation(case.regulators)[:tested] for _ in range(case.seeds)]
    regulator = np.repeat(np.concatenate(held), case.records)
    seed = np.repeat(np.arange(case.seeds), tested * case.records)
    shape = (case.seeds, case.regulators)
    effect = (
        case.regulator * standard(case.tails, case.regulators, rng)[regulator]
        + case.seed * standard("normal", case.seeds, rng)[seed]
        + case.both * standard(case.tails, shape, rng)[seed, regulator]
        + case.record * standard(case.tails, len(seed), rng)
    )
    hard = np.exp(HARDNESS * rng.normal(size=case.regulators) - HARDNESS**2 / 2)[regulator]  # of mean 1
    return hard * (1 - GAIN - SPREAD * effect), hard, regulator, seed


def truths(case: Scenario, rng: np.random.Generator) -> dict[str, float]:
    """The values that infinitely many seeds and regulators would give.

    A pair's gain does not depend on how hard its regulator is, so difference and gain are exact; the robust
    statistics are those of `LARGE` independent pairs a seed, averaged over seeds' own parts as a pool does.
    """
    many = replace(case, seeds=1, regulators=1, tested=1.0)
    n = 100 * LARGE
    own = many.record * standard(case.tails, (n, many.records), rng).mean(1)
    parts = [scale * standard(case.tails, n, rng) for scale in (many.regulator, many.both)]
    gain = GAIN + SPREAD * (sum(parts) + own + many.seed * standard("normal", n, rng))
    middle = interquartile_mean(np.sort(gain), np.ones((1, n)))[0]
    return {
        "difference": GAIN,
        "gain": GAIN,
        "iqm": float(middle),
        "improvement": float((gain > 0).mean()),
        "plain": GAIN,
    }


def plain_interval(value: np.ndarray, regulator: np.ndarray, seed: np.ndarray, resamples: int) -> Interval:
    """The mean of records [n] with percentiles of resampled seeds and, alike in all of them, regulators."""
    cells = cell_sums(np.stack([value, np.ones(len(value))], axis=1), regulator, seed)
    seeds, regulators = (resample_counts(cells.shape[axis], resamples, 0, axis) for axis in (0, 1))
    sums = np.einsum("bs,bsm->bm", seeds, np.einsum("br,srm->bsm", regulators, cells))
    sums = sums[sums[:, 1] > 0]
    tail = (1 - CONFIDENCE) / 2
    return Interval(value.mean(), *np.quantile(sums[:, 0] / sums[:, 1], [tail, 1 - tail]), len(value))


def measure(case: Scenario, options: Options) -> dict:
    """A row of the table: the share of the intervals that hold the truth, and their mean width, by statistic."""
    index = [scenario.name for scenario in SCENARIOS].index(case.name)
    rng = np.random.default_rng((options.seed, index, case.seeds, case.regulators))
    truth = truths(case, rng)
    held, width = dict.fromkeys(STATISTICS, 0), dict.fromkeys(STATISTICS, 0.0)
    for _ in range(options.runs):
        error, reference, regulator, seed = draw(case, rng)
        gained, settings = reference - error, (options.resamples, CONFIDENCE)
        pairs = pair_gains(gained, reference, regulator, seed)
        found = {
            "difference": mean_interval(gained, regulator, seed, *settings),
            "gain": nested_gain(error, reference, regulator, seed, *settings),
            "iqm": interquartile_interval(*pairs, *settings),
            "improvement": improvement_interval(*pairs, *settings),
            "plain": plain_interval(gained, regulator, seed, options.resamples),
        }
        for name, interval in found.items():
            held[name] += bool(interval.lower <= truth[name] <= interval.upper)
            width[name] += (interval.upper - interval.lower) / options.runs
    shares = {name: count / options.runs for name, count in held.items()}
    return {"scenario": asdict(case), "runs": options.runs, "coverage": shares, "truth": truth, "width": width}


def show(rows: Sequence[dict], console: Console) -> None:
    """Print coverage in percent, and how many of the cells lie in the goal."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for label in ("scenario", "seeds", "regulators", *STATISTICS):
        table.add_column(label, justify="left" if label == "scenario" else "right", no_wrap=True)
    for row in rows:
        case = row["scenario"]
        shares = (f"{100 * row['coverage'][name]:.1f}" for name in STATISTICS)
        table.add_row(case["name"], str(case["seeds"]), str(case["regulators"]), *shares)
    console.print(table)
    low, high = GOAL
    for name in STATISTICS:
        shares = np.array([row["coverage"][name] for row in rows])
        inside = np.count_nonzero((shares >= low) & (shares <= high))
        console.print(
            f"{name}: {inside} of {len(rows)} within {low:.0%} to {high:.0%}, {np.count_nonzero(shares < low)} below; "
            f"{100 * shares.min():.1f} to {100 * shares.max():.1f} %, mean {100 * shares.mean():.1f} %",
            highlight=False,
        )
    error = 100 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / rows[0]["runs"])
    console.print(f"Share of {CONFIDENCE:.0%} intervals that hold the truth, percent; standard error {error:.1f}.")


def main(args: Sequence[str] | None = None) -> int:
    """Run the benchmark, print its table and write `--out`; returns the exit code. Raises InputError."""
    options = tyro.cli(
        Options, args=None if args is None else list(args), prog="mantra bench coverage", description=DESCRIPTION
    )
    options.check()
    rows, cases = [], list(options.chosen())
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for case in progress.track(cases, description="coverage"):
            rows.append(measure(case, options))
    if options.out:
        with atomic(options.out) as partial:
            partial.write_text(json.dumps(rows, indent=1))
    show(rows, terminal.console())
    return 0
