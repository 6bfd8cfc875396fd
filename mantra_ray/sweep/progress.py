"""What the user sees while a sweep runs: a live display, or plain lines where output is no terminal."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from mantra_ray.secrets import scrubbed

INTERVAL = 10.0  # seconds between plain lines


class Display:
    """Progress of the stages, then of the trials; a context manager."""

    def __init__(self, console: Console, interval: float = INTERVAL):
        self.console, self.interval = console, interval
        text, note = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
        self._bars = Progress(text, BarColumn(24), MofNCompleteColumn(), note, console=console)
        self._tasks: dict[str, TaskID] = {}
        self._last = -float("inf")
        self._begun = time.monotonic()
        self.total = self.done = self.running = self.failed = 0
        self.best: float | None = None

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._bars.stop()

    def say(self, text: str) -> None:
        """One line above the display, without secrets."""
        self.console.print(scrubbed(text), highlight=False)

    def stage(self, done: int, total: int, text: str) -> None:
        """Upstream stages: `done` of `total`, the last one being `text`."""
        self._show("stages", done, total, text)

    def begin(self, total: int) -> None:
        """Trials start now; time left counts from here."""
        self.total, self._begun, self._last = total, time.monotonic(), -float("inf")
        self._trials()

    def start(self) -> None:
        """A trial started."""
        self.running += 1
        self._trials()

    def end(self, failed: bool, gain: float | None = None) -> None:
        """A trial ended, with its gain on validation if it has one."""
        self.running -= 1
        self.done += not failed
        self.failed += failed
        if gain is not None:
            self.best = gain if self.best is None else max(self.best, gain)
        # While trials wait, the next one starts at once: shown now, its slot would seem empty.
        if self.done + self.failed + self.running >= self.total:
            self._trials()

    def _trials(self) -> None:
        ended = self.done + self.failed
        parts = [f"{self.running} running", f"{self.failed} failed"]
        parts += [f"best gain so far {self.best:+.1%} (validation)"] if self.best is not None else []
        if ended and ended < self.total:
            parts.append(f"{clock((time.monotonic() - self._begun) / ended * (self.total - ended))} left")
        self._show("trials", ended, self.total, ", ".join(parts))

    def _show(self, kind: str, done: int, total: int, note: str) -> None:
        if self.console.is_terminal:
            if kind not in self._tasks:
                self._tasks[kind] = self._bars.add_task(kind, total=total, note="")
            self._bars.update(self._tasks[kind], completed=done, total=total, note=note)
        elif time.monotonic() - self._last >= self.interval or done >= total:
            self._last = time.monotonic()
            self.say(f"{kind} {done}/{total}: {note}")


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
