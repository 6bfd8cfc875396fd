"""Tables of a sweep with the splits side by side: configurations, paired comparisons, arms; and how numbers look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mantra_ray.evaluation.statistics import Interval
from mantra_ray.sweep.paired import Paired
from mantra_ray.sweep.spec import GEOMETRIES
from mantra_ray.sweep.summary import CEILING, DEFAULTS, Arm, Configuration, best_on_validation

SHORT = {"nexus.regret_gamma": "gamma", "nexus.query_alpha": "alpha"}
GEOMETRY = ("nexus.buckets", "nexus.slots")
WIDEST = 4  # settings that get a column each; beyond, one column says what differs from the default
COMPARED = 48  # configurations at most for which every comparison with the default is printed
OUTCOMES = ("seeds", "density", "occupancy")  # columns that are no settings
NAMES = {shape: name for name, shape in GEOMETRIES.items()}


def print_by_split(console: Console, splits: list[str], build: Callable[[list[str]], Table]) -> None:
    """Print the table of all splits side by side, or several tables where the console is too narrow for one."""
    count, unlimited = len(splits), console.options.update(width=10_000)
    while count > 1 and console.measure(build(splits[:count]), options=unlimited).maximum > console.width:
        count -= 1
    console.print(build(splits[:count]))
    if splits[count:]:
        print_by_split(console, splits[count:], build)


def columns(group: Sequence[Configuration]) -> dict[str, list[str]]:
    """Cells of a group's configurations by column, results apart: geometry, the other knobs, load and density."""
    found = {"geometry": [geometry(item) for item in group]} if GEOMETRY[0] in group[0].knobs else {}
    others = [name for name in group[0].knobs if name not in (*GEOMETRY, "nexus.load")]
    if len(others) > WIDEST:
        found["configuration"] = [changes(item, others) for item in group]
    else:
        for name in others:
            found[shortened(name)] = [text(item.knobs[name]) for item in group]
    seeds = [[len(result.trials) for result in item.results.values()] for item in group]
    found["load"] = [f"{item.mean('load'):.3g}" for item in group]
    found["seeds"] = ["/".join(str(count) for count in dict.fromkeys(counts)) for counts in seeds]
    found["density"] = [f"{item.mean('write_density'):.1%}" for item in group]
    if under_load(group[0]):  # elsewhere it is the load times the density
        found["occupancy"] = [f"{item.mean('occupancy'):.1%}" for item in group]
    return found


def changes(item: Configuration, names: Sequence[str]) -> str:
    """The settings among `names` in which a configuration differs from the default."""
    differs = [name for name in names if item.values[name] != DEFAULTS[name]]
    return ", ".join(f"{shortened(name)} {text(item.values[name])}" for name in differs) or "default"


def shortened(name: str) -> str:
    """A setting's name in a table."""
    return SHORT.get(name, name.removeprefix("nexus."))


def under_load(item: Configuration) -> bool:
    """Whether the configuration sets its load, from which its number of buckets follows."""
    return item.values["nexus.load"] > 0


def constant(cells: dict[str, list[str]]) -> dict[str, str]:
    """Columns that say the same in every row; they stand in the heading instead."""
    return {name: values[0] for name, values in cells.items() if len(set(values)) == 1}


def heading(group: Sequence[Configuration]) -> str:
    """What a group of configurations is, with everything that its rows share."""
    shared = constant(columns(group))
    title = "Under load, with as many buckets as it takes" if under_load(group[0]) else "Full size"
    return ", ".join([f"{title} (load = training records / slots)", *(f"{k} {v}" for k, v in shared.items())])


def group_table(group: Sequence[Configuration], found: Sequence[Configuration], splits: Sequence[str]) -> Table:
    """One row a configuration of the group; the best on validation among all of `found` is marked on each split."""
    cells = columns(group)
    for name in constant(cells):
        del cells[name]
    table = empty_table(cells, splits)
    marked = {split: best_on_validation(found, split) for split in splits}
    for split in splits:  # where all are the GNN, none is chosen
        if all(item.results[split].is_gnn for item in found if split in item.results):
            marked[split] = []
    for i, item in enumerate(group):
        results = []
        for split in splits:
            best = item in marked[split]
            shown = span(item.results[split].test) if split in item.results else "-"
            results.append(Text(shown + ("*" if best else " "), style="bold" if best else ""))
        table.add_row(*(values[i] for values in cells.values()), *results)
    return table


def compared_arms(found: Sequence[Configuration]) -> tuple[str, ...]:
    """Arms that are compared with the default's: the GNN alone too, where the sweep changes it; none of very many."""
    if len(found) > COMPARED:
        return ()
    own = all(name.startswith("nexus.") for item in found for name in item.knobs)
    return ("memory_on",) if own else ("memory_off", "memory_on")


def compared_table(
    found: Sequence[Configuration], compared: dict[tuple[int, str], Paired], splits: Sequence[str]
) -> Table:
    """One row a configuration that was compared with the default; for each split difference, p, middle and chance.

    Those that have the default's errors on every record are counted in the last row.
    """
    labels = [label for split in splits for label in (split, "p", "IQM", "better, %")]
    table, same = empty_table(["configuration"], labels), 0
    for i in dict.fromkeys(i for i, _ in compared):
        cells = [compared.get((i, split)) for split in splits]
        if all(cell is not None and cell.same for cell in cells):
            same += 1
            continue
        shown = [
            text
            for cell in cells
            for text in (
                (span(cell.difference), f"{cell.p_value:.2g}", span(cell.middle), span(cell.improved, ""))
                if cell and not cell.same
                else ("equal" if cell else "-", "-", "-", "-")
            )
        ]
        table.add_row(changes(found[i], list(found[i].knobs)), *shown)
    if same:
        table.add_row(f"{same} other{'s' * (same > 1)}", *("equal", "-", "-", "-") * len(splits))
    return table


def arm_table(arms: dict[str, dict[str, Arm]]) -> Table:
    """One row an arm, best first on the first split, the noise ceiling last; for each split the error and the gain."""
    first = next(iter(arms.values()))
    names = dict.fromkeys(name for of_split in arms.values() for name in of_split)
    order = sorted(names, key=lambda name: (name == CEILING, first[name].error if name in first else np.inf))
    sizes = {split: max((arm.gain.n for arm in found.values()), default=0) for split, found in arms.items()}
    table = empty_table(["arm"], [f"{split}, n = {n}" for split, n in sizes.items()])
    for name in order:
        found = [of_split.get(name) for of_split in arms.values()]
        cells = [f"{number(arm.error)}  {span(arm.gain):>20}" if arm else "-" for arm in found]
        table.add_row(name, *cells, style="bold" if name == "memory_on" else None)
    return table


def empty_table(labels: Sequence[str], splits: Sequence[str]) -> Table:
    """A narrow table, `labels` and then a column a split."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for label in [*labels, *splits]:
        table.add_column(
            label,
            justify="left" if label in ("arm", "geometry", "configuration") else "right",
            no_wrap=label != "configuration",  # which may be long, and gives way to the numbers
        )
    return table


def describe(item: Configuration) -> str:
    """A configuration by the knobs that the sweep varies."""
    cells = {name: values[0] for name, values in columns([item]).items() if name not in OUTCOMES}
    return ", ".join(value if name == "geometry" else f"{name} {value}" for name, value in cells.items())


def geometry(item: Configuration) -> str:
    """A geometry's name, or its buckets x slots."""
    shape = tuple(item.values[name] for name in GEOMETRY)
    return NAMES.get(shape) or f"{shape[0]}x{shape[1]}"


def text(value: Any) -> str:
    """A knob's value."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def number(value: float) -> str:
    """Four significant digits, zeros kept."""
    return f"{value:#.4g}".rstrip(".")


def percent(share: float, sign: str = "") -> str:
    """A share in percent with one decimal and never a negative zero."""
    return f"{round(100 * share, 1) + 0.0:{sign}.1f}"


def span(interval: Interval, sign: str = "+") -> str:
    """A gain in percent with its interval, where there is one."""
    value = percent(interval.value, sign)
    return value if np.isnan(interval.lower) else f"{value} [{percent(interval.lower)}, {percent(interval.upper)}]"


def gain(arm: Arm) -> str:
    """An arm's gain, in a sentence."""
    return span(arm.gain).replace(" ", " % ", 1)
