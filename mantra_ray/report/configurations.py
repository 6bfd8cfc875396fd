"""Every configuration with its gain and interval, how it differs from the default, and what a search did."""

from __future__ import annotations

import io

from rich.console import Console

from mantra_ray.report.findings import Findings
from mantra_ray.report.page import Part, Section, absent, paragraph, preformatted, sheet
from mantra_ray.sweep.search_tables import search_tables
from mantra_ray.sweep.summary import best_on_validation
from mantra_ray.sweep.tables import GEOMETRY, NAMES, compared_table, describe, group_table, heading, under_load

WIDE = 160  # characters of what is printed for a page


def section(findings: Findings) -> Section:
    """The tables of configurations that the sweep prints, its choice in words first."""
    if not findings.found:
        return Section("Configurations", [absent("No trial of the memory finished.")])
    parts: list[Part] = [paragraph(line) for line in choices(findings)]
    shapes = dict.fromkeys(tuple(item.values[name] for name in GEOMETRY) for item in findings.found)
    named = ", ".join(f"{NAMES[shape]} {shape[0]} x {shape[1]}" for shape in shapes if shape in NAMES)
    parts += [paragraph(f"Memory geometries, buckets x slots: {named}.", "note")] if named else []
    for loaded in (False, True):
        group = [item for item in findings.found if under_load(item) == loaded]
        if group:
            caption = (
                f"{heading(group)}. Gain over the GNN in program MSE on test records, percent [{findings.level} "
                "interval over regulators, seeds pooled]; * best on validation."
            )
            parts.append(sheet(group_table(group, findings.found, findings.splits), caption))
    for arm, pairs in findings.paired.items():
        if pairs:
            caption = (
                f"{arm} against the default's on the same test records: points of gain [{findings.level} interval], "
                "p after Holm's correction; IQM: interquartile mean over regulators and seeds; better: share of these "
                "that gain, ties counting half; equal: the default's error on every record, which Holm does not count."
            )
            for split in dict.fromkeys(split for _, split in pairs):
                here = {key: pair for key, pair in pairs.items() if key[1] == split}
                parts.append(sheet(compared_table(findings.found, here, [split]), f"On {split}, {caption}"))
    return Section("Configurations", parts)


def choices(findings: Findings) -> list[str]:
    """What validation chooses on each split, and what is judged there."""
    said = []
    for split, item in findings.chosen.items():
        best = best_on_validation(findings.found, split)
        if item is None or not best:
            said.append(f"On {split} validation chooses nothing: it has no records.")
            continue
        tied = f", first of {len(best)} that tie" if len(best) > 1 else ""
        judged = "" if item in best else f"; within chance of {describe(item)}, which is judged"
        said.append(f"On {split} validation chooses {describe(best[0])}{tied}{judged}.")
    return said


def search_section(findings: Findings) -> Section | None:
    """What a search found, whom racing stopped and how the winner's re-run went; None if it was no search."""
    if not findings.described.get("search"):
        return None
    output = io.StringIO()
    search_tables(findings.root, findings.store, Console(file=output, width=WIDE))
    text = "\n".join(line.rstrip() for line in output.getvalue().strip("\n").splitlines())
    shown = preformatted(text) if text.strip() else absent("The search has nothing to tell yet.")
    return Section("Search", [shown])
