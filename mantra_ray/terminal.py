"""What every command of the terminal does alike: tables that fit, and bad input as one line and exit code 2."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from types import TracebackType

from rich.console import Console

from mantra_ray.errors import InputError
from mantra_ray.secrets import scrubbed

FULL = (errno.ENOSPC, errno.EDQUOT)
WIDTH = 120  # of tables that go to a file or a pipe


def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error that nobody expected as Python does, without secrets: an address may stand in it."""
    print(scrubbed("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def guarded(command: Callable[[], int]) -> int:
    """Run a command; bad input becomes a message on stderr and exit code 2."""
    sys.excepthook = tell
    try:
        return command()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)  # one line, whatever a library said
        return 2
    except BrokenPipeError:  # whoever reads our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("Stopped: give the same command again to go on.", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"error: {error}: make room and give the same command again", file=sys.stderr)
        return 2


def console() -> Console:
    """Standard output, wide enough for the tables where it is no terminal."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)
