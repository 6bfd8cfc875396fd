"""What faults are made on: commands as processes of their own, Ray's processes, a cluster of several nodes, a disk."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mantra_ray.bench.fault_sweep import MIB, NAME
from mantra_ray.sweep.cluster import QUIET, private

STORE = 128 * MIB  # object store of a node
PATIENCE = 90.0  # seconds for processes to end that nobody needs any more; Ray's agents take 61 without a raylet
HUNG = 1000  # stands for the exit code of a command that had to be killed
TRIAL, STAGE = "ray::ImplicitFunc", "ray::RayTrainWorker"  # how Ray calls the processes that work
TRIALS = re.compile(r"^trials \d", re.MULTILINE)  # how a command says that trials run
WORK = (TRIAL, STAGE, "ray::TrainController")


class Cluster:
    """A Ray cluster on this machine that it alone can reach, one raylet a node; a context manager. Linux."""

    def __init__(self, cpus: tuple[int, ...], folder: Path):
        from ray._private.authentication.authentication_token_setup import enable_token_auth_by_default
        from ray.cluster_utils import Cluster as Nodes

        os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
        os.environ["RAY_TMPDIR"] = str(folder)
        self.cpus, self.within = cpus, contextlib.ExitStack()
        self.within.enter_context(private())  # until the end, so that drivers too listen here alone
        enable_token_auth_by_default()  # as `ray.init` does for a Ray of its own
        head = {"num_cpus": cpus[0], "include_dashboard": False, "object_store_memory": STORE}
        self.nodes = Nodes(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
        self.others = []
        self.mend()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.nodes.shutdown()
        self.within.close()

    @property
    def address(self) -> str:
        """What `--address` takes."""
        return self.nodes.address

    def mend(self) -> None:
        """Add the nodes that are missing."""
        for node in [node for node in self.others if not node.any_processes_alive()]:
            self.others.remove(node)
        for cpus in self.cpus[1 + len(self.others) :]:
            self.others.append(self.nodes.add_node(num_cpus=cpus, object_store_memory=STORE))

    def lose(self, index: int) -> None:
        """Kill the raylet of one node that is not the head; its workers end with it."""
        node = self.others[index]
        os.kill(raylet(node), signal.SIGKILL)
        self.nodes.remove_node(node, allow_graceful=False)  # what else runs there
        self.others.remove(node)

    @property
    def raylets(self) -> set[int]:
        """Process ids of the nodes' raylets."""
        return {raylet(node) for node in (self.nodes.head_node, *self.others)}


def raylet(node) -> int:
    """Process id of a node's raylet."""
    return node.all_processes["raylet"][0].process.pid


def processes() -> dict[int, tuple[int, int, str]]:
    """Parent, session and title of every process that runs."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, parent, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if state != "Z":
                title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found[int(folder.name)] = (int(parent), int(session), title)
    return found


@dataclass
class Scene:
    """One round: a folder, the command that is given until the sweep has ended, and what became of it."""

    folder: Path
    options: tuple[str, ...]
    cluster: Cluster | None  # None: the command starts a Ray of its own
    moment: float  # when the fault is to happen, from 0 (at once) to 1
    usual: dict[str, float]  # seconds that an undisturbed command takes, as a whole and in its parts
    limit: float  # seconds until a command counts as hung
    kind: str = "none"  # of misbehaviour
    codes: list[int] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    phase: str = ""  # in which the fault happened
    sessions: list[int] = field(default_factory=list)

    @property
    def root(self) -> Path:
        """The sweep's folder."""
        return self.folder / "runs" / NAME

    @property
    def notes(self) -> Path:
        """Where trials note that they misbehaved."""
        return self.folder / "notes"

    def told(self) -> str:
        """What the commands have printed so far."""
        log = self.folder / "log.txt"
        return log.read_text(errors="replace") if log.exists() else ""

    def start(self, **environment: str) -> subprocess.Popen:
        """Give the command, in a session of its own as a terminal does."""
        where = ["--address", self.cluster.address] if self.cluster else []
        arguments = [self.kind, str(self.notes), "--smoke", *self.options, "--out", str(self.folder / "runs"), *where]
        quiet = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(self.folder.parent)}
        with open(self.folder / "log.txt", "a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "mantra_ray.bench.fault_sweep", *arguments],
                env=os.environ | quiet | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.sessions.append(process.pid)
        return process

    def wait(self, process: subprocess.Popen) -> int:
        """The command's exit code; a command that takes longer than the limit is killed and complained of."""
        try:
            code = process.wait(self.limit)
        except subprocess.TimeoutExpired:
            self.complaints.append(f"a command hung for {self.limit:.0f} s")
            self.end_session(process.pid)
            process.wait()
            code = HUNG
        self.codes.append(code)
        return code

    def until(self, process: subprocess.Popen, ready: Callable[[], object], extra: float = 0.0) -> bool:
        """Wait for `ready()` and `extra` seconds more; False if the command ends before or hangs."""
        deadline = time.monotonic() + self.limit
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(extra, 1e-3))
        return process.poll() is None

    def working(self, title: str) -> list[int]:
        """Processes of the round's Ray whose title begins so."""
        raylets = self.cluster.raylets if self.cluster else set()
        return sorted(
            pid
            for pid, (parent, session, name) in processes().items()
            if name.startswith(title) and (parent in raylets or session in self.sessions)
        )

    def strike(self, process: int, how: int = signal.SIGKILL) -> bool:
        """Send a signal and note the phase; False if the process has ended."""
        self.phase = self.where()
        try:
            os.kill(process, how)
        except ProcessLookupError:
            return False
        return True

    def where(self) -> str:
        """Phase in which the sweep is."""
        told = self.told()
        if any(self.root.glob(".tune/*/")):
            return "trials"
        if TRIALS.search(told):
            return "tables"
        if any(self.root.glob("artifacts/*ray*")):
            return "stages"
        return "Ray" if "Ray" in told else "data" if "loading" in told else "import"

    def finish(self, most: int) -> bool:
        """Give the same command again until it ends with 0, `most` times in all; whether it did."""
        while self.codes[-1:] != [0] and len(self.codes) < most:
            self.wait(self.start())
        return self.codes[-1] == 0

    def orphans(self) -> list[str]:
        """Titles of processes that still run for the commands, though all have ended and some time has passed."""
        deadline = time.monotonic() + PATIENCE
        while True:
            mine = [name for _, session, name in processes().values() if session in self.sessions]
            if self.cluster:
                mine += [processes().get(pid, (0, 0, "ray"))[2] for title in WORK for pid in self.working(title)]
            if not mine or time.monotonic() > deadline:
                return [f"process {name.split()[0]}" for name in mine]
            time.sleep(0.5)

    def end_session(self, *leaders: int) -> None:
        """Kill commands and every process of their sessions."""
        for pid, (_, session, _) in processes().items():
            if session in leaders:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes in memory, mounted at `folder`; PermissionError where this process may not."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
