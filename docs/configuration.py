"""Writes docs/configuration.md: every field of the configuration, from the code that defines it.

Run it after a change of `mantra_ray/config.py`, of an option's default or of what a recipe turns; a test fails until
then. Imports and prints nothing that depends on the machine.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mantra_ray import config
from mantra_ray.cli import load_recipe
from mantra_ray.config import ExperimentConfig
from mantra_ray.fields import LOCATIONS, flatten
from mantra_ray.sweep.knobs import space_of
from mantra_ray.sweep.options import RANGES, SMALLEST, ExperimentOptions, Options

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "configuration.md"
INFINITE = ("nexus.regret_gamma", "nexus.pathway_gamma")  # numbers without a range
INTRO = """# Every setting

Made from the code by `python docs/configuration.py`; a test fails when this page is stale.

A setting is an option of the recipes, of `mantra train` and of `mantra tokens build`: `--nexus.tau 0.2`, a switch as
`--manifold.smooth` or `--manifold.no-smooth`, several values with blanks between them. Rows of results hold each
setting in a column of its dotted name. In a recipe it is a key of an arm: `{"nexus.tau": 0.2}`.

- **Default** is that of the commands. Where the class of `mantra_ray/config.py` has another, for code that makes one by
  itself, that stands in brackets.
- **Values** are those that options accept; anything else ends with a message and exit code 2.
- **Turned by** names the recipes in `sweeps/` whose configurations differ in the setting: there it is a *scientific*
  knob, which the sweep asks about. A *nuisance* knob must only be set well; `--nuisance-trials` tunes it for each
  configuration.
- An option that you give fixes the setting in every configuration of a recipe.
"""
NOTES = {
    "data": "The options are these names without `data.`: `--graph`, `--simulation.regulators`, `--trait.heidi`.",
    "split": "The options are `--test-fraction` and `--validation-fraction`; the kind is `--split KIND` of\n"
    "`mantra train` and `--splits KIND ...` of a recipe, which by default runs all that make sense for the data.",
    "seed": "`--seed` of `mantra train`; a recipe takes `--seeds 3` from `--first-seed 0` on.",
}


def docstrings(module: Any) -> dict[str, dict[str, str]]:
    """The text under each field, by class and field; ValueError for a field without one."""
    found: dict[str, dict[str, str]] = {}
    for item in ast.parse(inspect.getsource(module)).body:
        if not isinstance(item, ast.ClassDef):
            continue
        texts = found[item.name] = {}
        for field, text in zip(item.body, [*item.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                written = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
                texts[field.target.id] = " ".join(text.value.value.split()) if written else ""
    return found


def allowed(hint: Any, name: str) -> str:
    """A field's type and what values of it the options take, in words."""
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return f"several: {allowed(get_args(hint)[0], '')}"
    kind = {int: "whole number", float: "number", str: "text", bool: "on or off"}[hint]
    low, high = next((limits for names, limits in RANGES.items() if name in names.split()), (None, None))
    if name in INFINITE:
        return f"{kind}, also inf and -inf"
    if low is None:
        return kind
    if low == SMALLEST:
        return f"{kind} above 0" + ("" if high == math.inf else f" and below {high + SMALLEST:g}")
    if high == math.inf:
        return f"{kind}, at least {low:g}"
    return f"{kind}, from {low:g} to {high:g}" if high == 1 else f"{kind}, at least {low:g}, below {high + SMALLEST:g}"


def shown(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return f"`{' '.join(map(str, value))}`" if value else "none"
    return "none" if value == "" else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def turned() -> dict[str, list[str]]:
    """The recipes that turn a field, by its dotted name; `nuisance` for what is tuned beside them."""
    found: dict[str, list[str]] = {}
    options = Options()
    for path in sorted((ROOT / "sweeps").glob("*.py")):
        spec = load_recipe(path)(options)
        for knob in (*space_of(spec.arms, spec.base), *spec.space):
            for name in knob.fields():
                word = "*nuisance*" if knob.kind == "nuisance" else path.stem
                found.setdefault(name, [])
                found[name] += [word] if word not in found[name] else []
    return found


def sections(cls: type = ExperimentConfig, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Every section of the configuration, outer ones first, by its dotted name."""
    yield prefix, cls
    for name, hint in get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from sections(hint, f"{prefix}.{name}" if prefix else name)


def table(prefix: str, cls: type, knobs: dict[str, list[str]], texts: dict[str, str]) -> Iterator[str]:
    """The rows of one section; ValueError for a field that its class does not explain."""
    own, used = flatten(ExperimentConfig()), flatten(ExperimentOptions().experiment(0))
    yield "| setting | default | values | meaning | turned by |"
    yield "|---|---|---|---|---|"
    for field, hint in get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            continue
        name = f"{prefix}.{field}" if prefix else field
        if not texts[field]:
            raise ValueError(f"{cls.__name__}.{field} has no text")
        default = shown(used[name]) + (f" ({shown(own[name])})" if own[name] != used[name] else "")
        cells = f"`{name}`", default, allowed(hint, name), texts[field], ", ".join(knobs.get(name, ()))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page() -> str:
    """The whole page."""
    knobs, texts = turned(), docstrings(config)
    parts = [INTRO]
    for prefix, cls in [*[part for part in sections() if part[0]], ("", ExperimentConfig)]:
        title = f"`{prefix}`" if prefix else "The seed"
        parts += [f"## {title}", cls.__doc__.strip() if prefix else texts[cls.__name__]["seed"]]
        parts += [NOTES[prefix or "seed"]] if (prefix or "seed") in NOTES else []
        parts += ["\n" + "\n".join(table(prefix, cls, knobs, texts[cls.__name__])) + "\n"]
    places = ", ".join(f"`{name}`" for name in LOCATIONS)
    parts += [
        "## What a trial's id depends on",
        f"All of these but where files lie ({places},\nand the files in `data.traits`): data count by the hash of "
        "their content.",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"written to {PAGE.relative_to(ROOT)}")
    sys.exit(0)
