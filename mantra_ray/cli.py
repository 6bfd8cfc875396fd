"""The command `mantra`, and the way in for every recipe in `sweeps/`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from mantra_ray import __version__
from mantra_ray.errors import InputError
from mantra_ray.fields import replace
from mantra_ray.sweep.options import Options, parse
from mantra_ray.sweep.spec import SweepSpec
from mantra_ray.terminal import console, guarded

USAGE = """usage: mantra COMMAND [options]   (mantra COMMAND --help tells more)

  sweep RECIPE.py     run a sweep
  status runs/SWEEP   how far it is, and what failed
  results runs/SWEEP  print its tables again, or any rows of them, also as CSV or Parquet
  report runs/SWEEP   write its conclusions, tables and figures as one page
  reproduce runs/SWEEP TRIAL   run one trial again from its row, and compare
  merge, compact      join the folders of two sweeps; make few files of many
  train               train one memory, and leave its checkpoint and diagnostics
  explain FOLDER      which records a trained memory recalls, and what each adds
  predict FOLDER...   what perturbations do, by one or several trainings
  data                list, fetch, describe and import data sets
  programs            fit gene programs, or choose how many
  tokens build        records as tokens, with vocabulary and index
  bench               measure: cells, coverage, cpu, faults, gpu, grn, recall, throughput, warming
  --version"""
# Commands by name, each a module with main(args); imported when called, since some are slow to import.
NAMES = (
    "train",
    "explain",
    "predict",
    "data",
    "programs",
    "tokens",
    "status",
    "results",
    "report",
    "reproduce",
    "merge",
    "compact",
)
COMMANDS = {name: f"mantra_ray.commands.{name}" for name in NAMES}
MEASURED = ("cells", "coverage", "cpu", "faults", "gpu", "grn", "recall", "throughput", "warming")
BENCHES = {name: f"mantra_ray.bench.{name}" for name in MEASURED}

Recipe = Callable[[Options], SweepSpec]


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 after failed trials, 2 for unusable input, 130 after Ctrl-C."""
    args = list(sys.argv[1:] if args is None else args)
    match args:
        case ["sweep", path, *options] if not path.startswith("-"):
            return guarded(lambda: run_recipe(load_recipe(Path(path)), options))
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
        spec = recipe(options)
        if not isinstance(spec, SweepSpec):
            raise InputError(inspect.getfile(recipe), "recipe", type(spec).__name__, "must return a SweepSpec")
        for arm in spec.arms:
            try:
                replace(spec.base, **arm)
            except KeyError as error:
                raise InputError(inspect.getfile(recipe), "arms", ", ".join(arm), error.args[0]) from error
        return run_sweep(spec, options, console())

    return guarded(run)


def run_sweep(spec: SweepSpec, options: Options, out: Console) -> int:
    """As `mantra_ray.sweep.runner.run_sweep`."""
    from mantra_ray.sweep import runner  # seconds to import, which `--help` and most commands need not wait for

    return runner.run_sweep(spec, options, out)


def load_recipe(path: Path) -> Recipe:
    """The function `recipe` of a Python file; InputError if there is none."""
    if not path.is_file():
        raise InputError(path, "recipe", path.name, "is no file")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None:
        raise InputError(path, "recipe", path.name, "is no Python file")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(path, "recipe", error.text, f"line {error.lineno}: {error.msg}") from error
    if not callable(getattr(module, "recipe", None)):
        raise InputError(path, "recipe", None, "the file defines no function recipe(options)")
    return module.recipe
