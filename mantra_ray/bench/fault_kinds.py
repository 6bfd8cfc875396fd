"""The faults: each lets a sweep's command run, disturbs it for real, and says whether that came off."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mantra_ray.bench.fault_host import STAGE, TRIAL, TRIALS, Scene
from mantra_ray.bench.fault_sweep import APPETITE, SURVIVED
from mantra_ray.sweep.schema import SCHEMAS

Begin = Literal["nothing", "stages", "whole"]
TWO = ("--seeds", "1", "--splits", "seen", "--workers-per-trial", "2")  # few trials: each starts its own workers
SEARCH = ("--search", "tpe", "--num-trials", "3", "--batch-configs", "1", "--confirm", "1")  # each needs the one before
TIMEOUT = "20"  # seconds, of a trial that hangs


@dataclass(frozen=True)
class Fault:
    """One kind of fault."""

    strike: Callable[[Scene], bool]  # the first command, disturbed; False if it ended before the fault could happen
    times: int  # rounds of a whole measurement
    nodes: int = 1  # of the cluster; 0: the command starts its own Ray
    begin: Begin = "nothing"  # what of an undisturbed run lies in the folder before
    options: tuple[str, ...] = ()
    kind: str = "none"  # of misbehaviour
    prunes: bool = False  # whether trials may be stopped early, which depends on timing


def nothing(scene: Scene) -> bool:
    """No fault: the comparison itself is put to the test."""
    scene.wait(scene.start())
    return True


def kill_driver(scene: Scene) -> bool:
    """SIGKILL of the sweep's own process."""
    process = scene.start()
    running = scene.until(process, lambda: True, scene.moment * scene.usual["seconds"])
    hit = running and scene.strike(process.pid)
    scene.wait(process)
    return hit


def kill_pruning(scene: Scene) -> bool:
    """As `kill_driver`, while successive halving stops trials."""
    scene.options += ("--scheduler", "asha")
    return kill_driver(scene)


def interrupt(scene: Scene) -> bool:
    """SIGINT of the command's process group, as Ctrl-C sends it, once it has begun to talk."""
    length = scene.usual["seconds"] - scene.usual["silent"]
    return press_ctrl_c(scene, lambda: "Sweep" in scene.told(), length)


def interrupt_trials(scene: Scene) -> bool:
    """The same while trials run."""
    return press_ctrl_c(scene, lambda: scene.working(TRIAL), scene.usual["trials"])


def press_ctrl_c(scene: Scene, ready: Callable[[], object], length: float) -> bool:
    """SIGINT at the scene's moment of the `length` seconds after `ready()`."""
    process = scene.start()
    if not scene.until(process, ready, scene.moment * length):
        scene.wait(process)
        return False
    scene.phase = scene.where()
    os.killpg(process.pid, signal.SIGINT)
    code = scene.wait(process)
    if code == 0:  # it had come to its end
        return False
    must_end_with(scene, 130)
    scene.complaints += [f"half-written {path.name}" for path in scene.root.rglob("*.partial")]
    return True


def must_end_with(scene: Scene, code: int) -> None:
    """Complain unless the command ended with this code, said how to go on and spared its user a traceback."""
    told = scene.told()
    last = next((line for line in reversed(told.splitlines()) if line.strip()), "")[:200]
    if scene.codes[-1] != code:
        scene.complaints.append(f"ended with {scene.codes[-1]} in {scene.phase}, not {code}: {last}")
    if "give the same command again" not in told:
        scene.complaints.append(f"in {scene.phase} does not say how to go on: {last}")
    if "Traceback" in told:
        scene.complaints.append(f"shows a traceback in {scene.phase}: {last}")


def kill_worker(title: str, part: str) -> Callable[[Scene], bool]:
    """SIGKILL of one process with a title, at a moment of the part of the run in which there are such."""

    def strike(scene: Scene) -> bool:
        process = scene.start()
        running = scene.until(process, lambda: scene.working(title), scene.moment * scene.usual[part])
        victims = scene.working(title) if running else []
        hit = bool(victims) and scene.strike(random.Random(scene.moment).choice(victims))
        scene.wait(process)
        return hit

    return strike


def lose_node(scene: Scene) -> bool:
    """SIGKILL of the raylet of a node that is not the head."""
    scene.cluster.mend()
    process = scene.start()
    running = scene.until(process, lambda: True, scene.moment * scene.usual["seconds"])
    if running:
        scene.phase = scene.where()
        scene.cluster.lose(random.Random(scene.moment).randrange(len(scene.cluster.others)))
    scene.wait(process)
    return running


def fill_disk(scene: Scene) -> bool:
    """A file takes all room but a part of what the sweep needs; it goes away when the command has ended."""
    ballast, runs = scene.folder / "runs" / "ballast", scene.folder / "runs"
    free = os.statvfs(runs).f_bavail * os.statvfs(runs).f_frsize
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - int(scene.moment * scene.usual["bytes"]))
    code = scene.wait(scene.start())
    scene.phase = "trials" if TRIALS.search(scene.told()) else "stages"
    ballast.unlink()
    if code != 0:
        must_end_with(scene, 2)
    return code != 0


def corrupt(scene: Scene) -> bool:
    """Row files of a finished sweep: one cut off, one zeroed, one with junk in it, one with a bit turned, one gone."""
    draw = random.Random(scene.moment)
    files = [path for table in SCHEMAS for path in sorted((scene.root / "results" / table).glob("*.parquet"))]
    for path, damage in zip(draw.sample(files, len(DAMAGES)), DAMAGES, strict=True):
        damage(path, draw)
    scene.wait(scene.start())
    return True


def _cut(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def _zero(path: Path, draw: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _junk(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(path.stat().st_size))


def _turn(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def _delete(path: Path, draw: random.Random) -> None:
    path.unlink()


DAMAGES = (_cut, _zero, _junk, _turn, _delete)


def misbehave(scene: Scene) -> bool:
    """Two trials do, once; all else is as it should be."""
    scene.wait(scene.start())
    return any(scene.notes.glob("*"))


def hang(scene: Scene) -> bool:
    """As `misbehave`, with a timeout."""
    scene.options += ("--trial-timeout", TIMEOUT)
    return misbehave(scene)


def outgrow(scene: Scene) -> bool:
    """Two trials take memory until Ray's monitor ends their process."""
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
    total, used = sizes["MemTotal"], sizes["MemTotal"] - sizes["MemAvailable"]
    room = APPETITE / 2**10  # for the sweep's own processes, and some of the appetite
    if total - used < 4 * room:
        raise MemoryError("too little memory is free to let a trial take some")
    scene.wait(scene.start(RAY_memory_usage_threshold=f"{(used + room) / total:.4f}"))
    return any(note.read_text() != SURVIVED for note in scene.notes.glob("*"))


FAULTS = {
    "none": Fault(nothing, 1),
    "driver": Fault(kill_driver, 30),
    "driver-own-ray": Fault(kill_driver, 5, nodes=0),
    "driver-search": Fault(kill_driver, 5, begin="stages", options=SEARCH),
    "driver-asha": Fault(kill_pruning, 5, begin="stages", prunes=True),
    "actor": Fault(kill_worker(TRIAL, "trials"), 10, begin="stages"),
    "stage-worker": Fault(kill_worker(STAGE, "stages"), 5),
    "trial-worker": Fault(kill_worker(STAGE, "trials"), 5, begin="stages", options=TWO),
    "node": Fault(lose_node, 5, nodes=3),
    "disk": Fault(fill_disk, 5),
    "corrupt": Fault(corrupt, 5, begin="whole"),
    "raise": Fault(misbehave, 1, begin="stages", kind="raise"),
    "nan": Fault(misbehave, 1, begin="stages", kind="nan"),
    "hang": Fault(hang, 1, begin="stages", kind="hang"),
    "memory": Fault(misbehave, 1, begin="stages", kind="memory"),
    "outgrow": Fault(outgrow, 1, nodes=0, begin="stages", kind="outgrow"),
    "interrupt": Fault(interrupt, 5, nodes=0),
    "interrupt-trials": Fault(interrupt_trials, 5, begin="stages"),
}


def furnish(scene: Scene, begin: Begin, source: Path) -> None:
    """Copy what of the undisturbed run at `source` a round begins with."""
    if begin == "stages":
        shutil.copytree(source / "artifacts", scene.root / "artifacts")
    elif begin == "whole":
        shutil.copytree(source, scene.root)
    with contextlib.suppress(FileExistsError):
        (scene.folder / "runs").mkdir(parents=True)
