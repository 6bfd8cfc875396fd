"""Where a training run stands: its curves and generators, and the file from which it goes on after an interruption."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mantra_ray.cascade.replicas import Replicas
from mantra_ray.files import atomic
from mantra_ray.nexus.gather import workers
from mantra_ray.training.networks import read_tensors

OnEpoch = Callable[[int, dict[str, float]], None]
PHASES = ("language", "correction", "recursion")  # in the order in which a run goes through them
SECONDS = 10.0  # between two savings: what an interruption costs at most, and shorter runs pay nothing
SHARE = 0.05  # of a run's time that saving may take
STALE = 7 * 86_400.0  # seconds without a write, after which nobody is thought to go on from a state
TIMED = ("records_per_second",)  # metrics that are measured times: listeners hear of them, curves do without


class Part(Protocol):
    """What has a state that training changes: a module, a stepper, the weights to choose from."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class Keeper:
    """The file of one training run's state: plain tensors, numbers and text, written whole or not at all.

    `identity` says whose state it is (a trial's id, which covers settings, data and code). A state is written at the
    end of an epoch, once `seconds` have passed since the last one (0: at the end of every epoch). Of several workers
    the first writes and reads, and hands what it read to the others; `replicas` are these workers (None: all).
    """

    def __init__(self, path: Path, identity: str, seconds: float = SECONDS, replicas: Replicas | None = None):
        self.path, self.seconds, self.replicas = path, seconds, replicas
        self.stamp = {"identity": identity, "torch": str(torch.__version__), "cuda": torch.cuda.is_available()}
        self._due = time.monotonic() + seconds

    def load(self) -> dict[str, Any]:
        """What `save` wrote; empty, with a warning, where the file is damaged or another's, and where there is none."""
        return self._together().same(self._read)

    def save(self, state: Callable[[], dict[str, Any]]) -> None:
        """Write the state if it is time to; where it cannot be written the run goes on, with a warning."""
        started = time.monotonic()
        if started < self._due or not self._together().first:
            return
        try:
            with atomic(self.path) as partial:
                torch.save(self.stamp | state(), partial)
        except (OSError, RuntimeError) as error:  # torch wraps what the disk says
            warnings.warn(f"{self.path}: the state of training cannot be written: {error}", stacklevel=2)
        ended = time.monotonic()
        self._due = ended + max(self.seconds, (ended - started) / SHARE) if self.seconds else ended

    def remove(self) -> None:
        """Take the file away: the run has ended."""
        self.path.unlink(missing_ok=True)

    def _together(self) -> Replicas:
        return self.replicas or Replicas(dist.group.WORLD if workers()[1] > 1 else None)

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        try:
            state = read_tensors(self.path)
            wrong = [name for name, own in self.stamp.items() if state[name] != own]
        except Exception as error:  # whatever the unpickler makes of a damaged file
            return self._refuse(f"is damaged ({type(error).__name__}: {error})")
        return self._refuse(f"is of another {', '.join(wrong)}") if wrong else state

    def _refuse(self, problem: str) -> dict[str, Any]:
        warnings.warn(f"{self.path}: the state of training {problem}: training starts anew", stacklevel=5)
        return {}


def clear_states(folder: Path, suffix: str, ended: Collection[str] = ()) -> None:
    """Remove the states (files with `suffix`) of runs that `ended`, by name, and those not written to for a week.

    A run that is killed leaves its state; where settings or code have changed since, nobody asks for it again. Who
    does, trains anew.
    """
    for path in folder.glob(f"*{suffix}"):
        with contextlib.suppress(FileNotFoundError):  # its own run removed it
            if path.stem in ended or time.time() - path.stat().st_mtime > STALE:
                path.unlink()


class Progress:
    """A training run's generators, its curves, told to a listener as they come, and its state, if a keeper is given.

    Seeds torch and the generator `draw`. A run that was interrupted is repeated with the same arguments: `begin` says
    where to go on, and everything is then what it was there, on the CPU bit for bit.
    """

    def __init__(
        self, seed: int, on_epoch: OnEpoch | None = None, keeper: Keeper | None = None, rows: Iterable[dict] = ()
    ):
        torch.manual_seed(seed)
        self.draw = torch.Generator().manual_seed(seed)
        self.on_epoch, self.keeper, self.rows = on_epoch, keeper, list(rows)  # rows: epoch, metric, value
        self.state = keeper.load() if keeper else {}
        self.phase, self.next, self.parts = "", 0, dict[str, Part]()

    @property
    def curves(self) -> list[dict]:
        """What of the epochs a run of the same arguments repeats: all but measured times."""
        return [row for row in self.rows if row["metric"] not in TIMED]

    @property
    def epochs(self) -> int:
        """How many epochs the curves have."""
        return 1 + max((row["epoch"] for row in self.rows), default=-1)

    def recall(self) -> None:
        """Take the curves of the interrupted run, and tell the listener of its epochs again."""
        self.rows = list(self.state.get("rows", ()))
        for epoch in range(self.epochs):
            self._tell(epoch)

    def past(self, phase: str) -> bool:
        """Whether the interrupted run had left a phase behind."""
        return bool(self.state) and PHASES.index(self.state["phase"]) > PHASES.index(phase)

    def restore(self, name: str, part: Part) -> None:
        """Give one part the state that it had."""
        part.load_state_dict(self.state["parts"][name])

    def begin(self, phase: str, **parts: Part) -> int:
        """Start a phase that changes `parts`; the epoch of it to go on at, parts and generators as they were there."""
        self.phase, self.parts, self.next = phase, parts, 0
        if self.state.get("phase") == phase:
            for name, part in parts.items():
                self.restore(name, part)
            self.next = self.state["next"]
            self.draw.set_state(self.state["draw"])
            torch.set_rng_state(self.state["random"])
            if torch.cuda.is_available():
                torch.cuda.set_rng_state(self.state["cuda_random"])
        return self.next

    def end_epoch(self, metrics: dict[str, float]) -> None:
        """Note an epoch's metrics, keep the state and then tell: a listener that ends the run loses nothing."""
        epoch, self.next = self.epochs, self.next + 1
        self.rows += [{"epoch": epoch, "metric": name, "value": value} for name, value in metrics.items()]
        if self.keeper:
            self.keeper.save(self._state)
        self._tell(epoch)

    def _tell(self, epoch: int) -> None:
        if self.on_epoch:
            self.on_epoch(epoch, {row["metric"]: row["value"] for row in self.rows if row["epoch"] == epoch})

    def _state(self) -> dict[str, Any]:
        return {
            "phase": self.phase,
            "next": self.next,
            "rows": self.rows,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "draw": self.draw.get_state(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }


class Candidates:
    """The weights among which validation chooses in the end: those of the first epoch and of the best so far.

    `choose` picks an epoch by errors [epochs, records]; what it picks among all epochs it must pick as soon as it has
    seen it, as the least mean error does.
    """

    def __init__(self, parameters: Sequence[Tensor], choose: Callable[[np.ndarray], int]):
        self.parameters, self.choose = parameters, choose
        self.errors: list[Tensor] = []
        self.weights: dict[int, list[Tensor]] = {}

    def add(self, error: Tensor) -> None:
        """Another epoch's validation errors [records], with the weights of this moment."""
        self.errors.append(error.detach().double().cpu())
        epoch = len(self.errors) - 1
        if epoch == 0 or self._chosen() == epoch:
            first = {0: self.weights[0]} if epoch else {}
            self.weights = first | {epoch: [parameter.detach().clone() for parameter in self.parameters]}

    @torch.no_grad()
    def take_(self) -> int:
        """Give the parameters the chosen epoch's values; returns the epoch."""
        chosen = self._chosen()
        for parameter, value in zip(self.parameters, self.weights[chosen], strict=True):
            parameter.copy_(value)
        return chosen

    def state_dict(self) -> dict[str, Any]:
        return {"errors": self.errors, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.errors, self.weights = list(state["errors"]), dict(state["weights"])

    def _chosen(self) -> int:
        return int(self.choose(torch.stack(self.errors).numpy()))
