"""Where the results come from: trials that failed and why, versions, commits, data and commands, and cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mantra_ray.report.findings import Findings, Row
from mantra_ray.report.page import Part, Section, absent, listing, paragraph, preformatted
from mantra_ray.sweep.progress import clock
from mantra_ray.sweep.summary import DEFAULTS, PAIRED, value
from mantra_ray.sweep.tables import shortened

LONGEST = 40  # lines of a traceback that are shown, its end
NAMED = 12  # trials that an error names
DISTINCT = 4  # values of a field that are named one by one
PREFIX = "provenance."


def failed_section(findings: Findings) -> Section:
    """Each error once, with the trials that ended by it."""
    failed = findings.ended("failed")
    if not failed:
        return Section("Failed trials", [absent("No trial failed.")])
    by_error: dict[str, list[Row]] = {}
    for row in failed:
        by_error.setdefault((row["error"] or "no reason was given").strip(), []).append(row)
    parts: list[Part] = []
    for error, rows in sorted(by_error.items(), key=lambda item: -len(item[1])):
        parts.append(paragraph(f"{len(rows)} failed: {error.splitlines()[-1]}", "verdict"))
        cells = [(row["trial"], row["kind"], row["split.kind"], str(row["seed"]), changed(row)) for row in rows[:NAMED]]
        rest = f", the first {NAMED} of {len(rows)}" if len(rows) > NAMED else ""
        labels = ("trial", "kind", "split", "seed", "settings")
        parts.append(listing(cells, labels, f"Trials that ended by this error{rest}."))
        told = error.splitlines()
        parts.append(preformatted("\n".join((["..."] if len(told) > LONGEST else []) + told[-LONGEST:])))
    return Section("Failed trials", parts)


def provenance_section(findings: Findings) -> Section:
    """Code, data, versions, machines and command of the trials, and the settings that all share."""
    names = [name for name in findings.trials[0] if name.startswith(PREFIX)]
    rows = [(name.removeprefix(PREFIX), told([row[name] for row in findings.trials])) for name in names]
    rows = [row for row in rows if row[1]]
    parts: list[Part] = [paragraph(text) for text in cost(findings)]
    if rows:
        parts.append(
            listing(rows, ("what", "value"), "Provenance of the trials; where they differ, with their number.")
        )
    else:
        parts.append(absent("The rows tell nothing of their provenance."))
    if settings := fixed(findings.compared):
        caption = "Settings that are the same in all trials of the memory and are not the default."
        parts.append(listing(settings, ("setting", "value"), caption))
    return Section("Provenance", parts)


def told(values: Sequence[Any]) -> str:
    """Distinct values, each with how many trials have it where there are several; empty where none is known."""
    counts = Counter(str(one) for one in values if one not in (None, ""))
    if len(counts) < 2:
        return next(iter(counts), "")
    named = [f"{one} ({count})" for one, count in counts.most_common(DISTINCT)]
    rest = len(counts) - len(named)
    return "; ".join(named) + (f"; and {rest} more" if rest else "")


def changed(row: Row) -> str:
    """The settings of a trial that are not the default, seed and split apart."""
    differs = [name for name in plain_defaults() if name not in PAIRED and differs_from_default(row, name)]
    return ", ".join(f"{shortened(name)} {row[name]}" for name in differs) or "default"


def fixed(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Settings that all trials of the memory share and that are not the default."""
    nexus = [row for row in rows if row["kind"] == "nexus"]
    names = [name for name in plain_defaults() if name not in PAIRED]
    same = [name for name in names if len({str(value(row, name)) for row in nexus}) == 1]
    return [(name, str(nexus[0][name])) for name in same if differs_from_default(nexus[0], name)]


def differs_from_default(row: Row, name: str) -> bool:
    """Whether a trial's setting is known and is not the default."""
    return row.get(name) is not None and row[name] != plain_defaults()[name]


def plain_defaults() -> dict[str, Any]:
    """The default of every setting as a row has it, lists as JSON."""
    return {name: json.dumps(one) if isinstance(one, list) else one for name, one in DEFAULTS.items()}


def cost(findings: Findings) -> list[str]:
    """What the sweep took."""
    seconds = [row["seconds"] for row in findings.trials if row["seconds"] is not None]
    said = [f"{len(seconds)} trials took {clock(sum(seconds))} of compute in all."] if seconds else []
    if timing := findings.described.get("timing"):
        said.append(
            f"The last run took {clock(timing['total'])}, {clock(timing['stages'])} of it in stages, for "
            f"{timing['count']} trials on {timing['slots']} slots, with {timing['overhead']:.2f} s overhead a trial."
        )
    return said
