"""The command `mantra`, and the way in for every recipe in `sweeps/`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from mantra_ray import __version__
from mantra_ray.errors import InputError
from mantra_ray.sweep.options import Options, parse
from mantra_ray.sweep.report import print_summary
from mantra_ray.sweep.runner import run_sweep
from mantra_ray.sweep.spec import SweepSpec

USAGE = """usage: mantra COMMAND [options]   (mantra COMMAND --help tells more)

  sweep RECIPE.py     run a sweep
  results runs/SWEEP  print a sweep's tables again
  train               train one memory, and leave its checkpoint and diagnostics
  explain FOLDER      which records a trained memory recalls, and what each adds
  data                list, fetch, describe and import data sets
  programs            fit gene programs, or choose how many
  tokens build        records as tokens, with vocabulary and index
  bench               measure: cells, grn, recall, warming
  --version"""
# Commands by name, each a module with main(args); imported when called, since some are slow to import.
COMMANDS = {name: f"mantra_ray.commands.{name}" for name in ("train", "explain", "data", "programs", "tokens")}
BENCHES = {name: f"mantra_ray.bench.{name}" for name in ("cells", "grn", "recall", "warming")}
WIDTH = 120  # of tables that go to a file or a pipe

Recipe = Callable[[Options], SweepSpec]


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 after failed trials, 2 for unusable input, 130 after Ctrl-C."""
    args = list(sys.argv[1:] if args is None else args)
    match args:
        case ["sweep", path, *options] if not path.startswith("-"):
            return guarded(lambda: run_recipe(load_recipe(Path(path)), options))
        case ["results", folder] if not folder.startswith("-"):
            return guarded(lambda: print_summary(Path(folder), console()) or 0)
        case ["bench", name, *options] if name in BENCHES:
            return guarded(lambda: importlib.import_module(BENCHES[name]).main(options))
        case [name, *options] if name in COMMANDS:
            return guarded(lambda: importlib.import_module(COMMANDS[name]).main(options))
        case ["--version"]:
            print(f"mantra {__version__}")
        case ["-h" | "--help"]:
            print(USAGE)
        case _:
            print(USAGE, file=sys.stderr)
            return 2
    return 0


def run_recipe(recipe: Recipe, args: Sequence[str] | None = None) -> int:
    """Parse the shared options, build the recipe's sweep and run it; returns the exit code of `main`."""
    args = list(sys.argv[1:] if args is None else args)

    def run() -> int:
        options = parse(args, recipe.__doc__ or "")
        return run_sweep(recipe(options), options, console())

    return guarded(run)


def load_recipe(path: Path) -> Recipe:
    """The function `recipe` of a Python file; InputError if there is none."""
    if not path.is_file():
        raise InputError(path, "recipe", path.name, "is no file")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None:
        raise InputError(path, "recipe", path.name, "is no Python file")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not callable(getattr(module, "recipe", None)):
        raise InputError(path, "recipe", None, "the file defines no function recipe(options)")
    return module.recipe


def guarded(command: Callable[[], int]) -> int:
    """Run a command; bad input becomes a message on stderr and exit code 2."""
    try:
        return command()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)  # one line, whatever a library said
        return 2
    except BrokenPipeError:  # whoever reads our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def console() -> Console:
    """Standard output, wide enough for the tables where it is no terminal."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)
