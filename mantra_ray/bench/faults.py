"""`mantra bench faults`: a small sweep is disturbed for real, and its tables held against an undisturbed run's.

A round: the sweep's command runs in a process of its own, a fault happens at a random moment (the rounds' moments
cover the whole run), and the same command is given until it ends with exit code 0. Linux.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mantra_ray import terminal
from mantra_ray.bench.fault_host import Cluster, Scene, small_disk
from mantra_ray.bench.fault_kinds import FAULTS, Fault, furnish
from mantra_ray.bench.fault_sweep import MIB
from mantra_ray.bench.fault_tables import compare, leftovers
from mantra_ray.errors import InputError
from mantra_ray.files import atomic
from mantra_ray.provenance import provenance
from mantra_ray.sweep.options import check_writable, shown
from mantra_ray.sweep.summary import read_description

COMMANDS = 6  # in a round at most
TRIES = 4  # at a fault whose moment comes too late, each earlier than the last
PATIENCE, LEAST = 5, 120.0  # a command hangs after so many times what it usually takes, or so many seconds
EPOCHS = ("--nexus.epochs", "6", "--grn.epochs", "3")  # longer trials than a smoke test's, for faults to hit
FEW = ("--seeds", "1", "--splits", "seen")  # 4 trials of the memory, 1 of baselines
PAGE = 4096  # bytes that a file takes at least
DESCRIPTION = (
    "Disturb a sweep for real, finish it by the same command, and compare its tables with an undisturbed run's."
)


@dataclass(frozen=True)
class BenchOptions:
    """Options of `mantra bench faults`."""

    faults: Annotated[tuple[str, ...], shown("FAULT ...", "all")] = tuple(FAULTS)
    """Faults to cause: none, driver, driver-own-ray, driver-search, driver-asha, actor, stage-worker, trial-worker,
    node, disk, corrupt, raise, nan, hang, memory, outgrow, interrupt, interrupt-trials."""
    times: Annotated[int, shown("N", "30 of driver, 1 to 10 of the others")] = 0
    """How often each fault is caused."""
    seed: int = 0
    """Of the moments and victims."""
    small: Annotated[bool, tyro.conf.FlagCreatePairsOff, shown("", "off")] = False
    """A sweep of 5 trials instead of 20."""
    out: Annotated[str, shown("FILE.json", "none is written")] = ""
    """File of all rounds, written anew after each."""

    def check(self) -> None:
        """Raise InputError for a value that cannot be."""
        for name in self.faults:
            if name not in FAULTS:
                raise InputError("options", "--faults", name, f"must be among {', '.join(FAULTS)}")
        if self.times < 0:
            raise InputError("options", "--times", self.times, "must be at least 0")
        if self.out:
            check_writable(Path(self.out).parent)
            if Path(self.out).suffix != ".json" or Path(self.out).is_dir():
                raise InputError("options", "--out", self.out, "must be a .json file")
        if not Path("/proc/self/stat").exists():
            raise InputError("options", "--faults", sys.platform, "processes can be found on Linux alone")


@dataclass(frozen=True)
class Round:
    """What became of one round."""

    fault: str
    moment: float  # of the fault, as a share of the run or of the part that it strikes
    phase: str  # in which it happened
    happened: bool
    codes: list[int]  # exit codes of the commands, the last 0 where the sweep ended
    ended: bool
    lost: int
    doubled: int
    wrong: int
    examples: list[str]  # of rows that differ
    leftovers: list[str]
    complaints: list[str]
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether all is as it should be."""
        rows = self.lost + self.doubled + self.wrong
        return self.happened and self.ended and not (rows or self.leftovers or self.complaints)


class Bench:
    """Runs the rounds; undisturbed runs are made once for each cluster and set of options."""

    def __init__(self, folder: Path, options: BenchOptions, tell: Callable[[str], None]):
        self.folder, self.options, self.tell = folder, options, tell
        self.undisturbed: dict[tuple, tuple[Path, dict[str, float]]] = {}
        self.count = 0

    def rounds(self) -> Iterator[Round]:
        """All rounds, those on one cluster together."""
        wanted = {name: FAULTS[name] for name in self.options.faults}
        for nodes in sorted({fault.nodes for fault in wanted.values()}, key=(1, 3, 0).index):
            cpus = {0: (), 1: (2,), 3: (1, 1, 1)}[nodes]
            with Cluster(cpus, self.folder) if cpus else nullcontext() as cluster:
                for name, fault in wanted.items():
                    times = self.options.times or fault.times
                    for turn in range(times if fault.nodes == nodes else 0):
                        draw = random.Random(f"{self.options.seed} {name} {turn}")
                        yield self.round(name, fault, cluster, (turn + draw.random()) / times)

    def round(self, name: str, fault: Fault, cluster: Cluster | None, moment: float) -> Round:
        """One round; where the fault came too late, another with an earlier moment."""
        expected, usual = self.reference(fault, cluster)
        begun = time.monotonic()
        for _ in range(TRIES):
            scene = self.scene(fault, cluster, moment, usual)
            with ExitStack() as stack:
                stack.callback(lambda scene=scene: scene.end_session(*scene.sessions))
                if name == "disk":
                    stack.enter_context(small_disk(scene.folder / "runs", int(usual["bytes"]) + 64 * MIB))
                furnish(scene, fault.begin, expected)
                happened = fault.strike(scene)
                if not happened:
                    moment *= 0.7
                    continue
                ended = scene.finish(COMMANDS)
                left = [*leftovers(scene.root, expected), *scene.orphans()]
                found = compare(scene.root / "results", expected / "results", fault.prunes)
            break
        else:
            ended, left, found = False, [], compare(expected / "results", expected / "results")
        done = Round(
            name, moment, scene.phase, happened, scene.codes, ended, **asdict(found), leftovers=left,
            complaints=scene.complaints, seconds=time.monotonic() - begun,
        )  # fmt: skip
        if not ended:
            self.tell(scene.told()[-3000:])
        return done

    def reference(self, fault: Fault, cluster: Cluster | None) -> tuple[Path, dict[str, float]]:
        """Folder of an undisturbed run on such a cluster with such options, and how long it and its parts took."""
        case = (fault.nodes, fault.options)
        if case not in self.undisturbed:
            begun = time.monotonic()
            scene = self.scene(fault, cluster, 0.0, {"seconds": 600 / PATIENCE})
            scene.kind = "none"
            process = scene.start()
            scene.until(process, lambda: "Sweep" in scene.told())
            silent = time.monotonic() - begun
            if scene.wait(process):
                raise RuntimeError(f"the undisturbed sweep failed:\n{scene.told()}")
            timing, seconds = read_description(scene.root)["timing"], time.monotonic() - begun
            usual = {"seconds": seconds, "silent": silent, "stages": timing["stages"]}
            usual["trials"] = timing["trials"] - timing["starting"]
            sizes = [path.stat().st_size for path in scene.root.rglob("*") if path.is_file()]
            usual["bytes"] = sum(-(-size // PAGE) * PAGE for size in sizes)
            told = " ".join(f"{name} {value:.1f}" for name, value in usual.items())
            self.tell(f"undisturbed, {fault.nodes or 'own'} nodes {' '.join(fault.options)}: {told}")
            self.undisturbed[case] = scene.root, usual
        return self.undisturbed[case]

    def scene(self, fault: Fault, cluster: Cluster | None, moment: float, usual: dict[str, float]) -> Scene:
        """A folder for a round."""
        self.count += 1
        folder = self.folder / f"{self.count}"
        folder.mkdir()
        options = (*EPOCHS, *(FEW if self.options.small else ()), *fault.options)
        limit = max(LEAST, PATIENCE * usual["seconds"])
        return Scene(folder, options, cluster, moment, usual, limit, fault.kind)


def show(rounds: Sequence[Round], console: Console) -> None:
    """One row a fault, then all that is not as it should be."""
    columns: dict[str, Callable[[list[Round]], Any]] = {
        "fault": lambda of: of[0].fault,
        "times": lambda of: sum(r.happened for r in of),
        "hit in": lambda of: ", ".join(f"{phase} {n}" for phase, n in Counter(r.phase for r in of if r.phase).items()),
        "rows lost": lambda of: sum(r.lost for r in of),
        "rows doubled": lambda of: sum(r.doubled for r in of),
        "wrong values": lambda of: sum(r.wrong for r in of),
        "commands": lambda of: " ".join(f"{n}x{k}" for n, k in sorted(Counter(len(r.codes) for r in of).items())),
        "never ended": lambda of: sum(not r.ended for r in of),
        "leftovers": lambda of: sum(len(r.leftovers) for r in of),
        "complaints": lambda of: sum(len(r.complaints) for r in of),
    }
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in ("fault", "hit in") else "right", no_wrap=name == "fault")
    for name in dict.fromkeys(r.fault for r in rounds):
        mine = [r for r in rounds if r.fault == name]
        table.add_row(*(str(cell(mine)) for cell in columns.values()))
    console.print(table)
    told = "commands: 2x5 means that five rounds took two commands until exit code 0, the disturbed one among them."
    console.print(f"\n{told}", highlight=False)
    problems = Counter(f"{r.fault}: {text}" for r in rounds for text in (*r.examples, *r.leftovers, *r.complaints))
    for text, count in problems.most_common():
        console.print(f"{count} x {text}", highlight=False, markup=False)


def main(args: Sequence[str]) -> int:
    """Disturb, compare, print and save; returns 0, or 1 if anything was not as it should be."""
    options = tyro.cli(BenchOptions, args=list(args), description=DESCRIPTION, prog="mantra bench faults")
    options.check()
    for kind in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # both end what runs; a command started in the background ignores SIGINT
        signal.signal(kind, signal.default_int_handler)
    console = terminal.console()
    progress, rounds, origin = Console(stderr=True), [], provenance()
    tell = lambda text: progress.print(text, highlight=False, markup=False, soft_wrap=True)  # noqa: E731
    with tempfile.TemporaryDirectory(prefix="faults_", ignore_cleanup_errors=True) as folder:
        for done in Bench(Path(folder), options, tell).rounds():
            rounds.append(done)
            place = f"in {done.phase}" if done.phase else ""
            tell(
                f"{len(rounds)} {done.fault} {place}: exit codes {done.codes}, {done.lost} rows lost, {done.doubled} "
                f"doubled, {done.wrong} wrong, {len(done.leftovers)} left over, {len(done.complaints)} complaints, "
                f"{done.seconds:.0f} s"
            )
            if options.out:
                with atomic(options.out) as partial:
                    kept = {"origin": origin, "rounds": [asdict(r) for r in rounds]}
                    partial.write_text(json.dumps(kept, indent=1))
    show(rounds, console)
    return int(not all(r.clean for r in rounds))
