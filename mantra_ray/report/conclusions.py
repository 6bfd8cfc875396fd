"""What a sweep found, in words: where the memory helps, what survives correction, what its seeds could find, alarms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mantra_ray.evaluation.power import MOST_SEEDS, Components, Design, detectable, seeds_needed
from mantra_ray.evaluation.statistics import Interval
from mantra_ray.report.findings import Findings
from mantra_ray.report.page import Part, Section, absent, bullets, heading, paragraph
from mantra_ray.sweep.alarms import alarms
from mantra_ray.sweep.options import Options
from mantra_ray.sweep.paired import Paired, compare, default_configuration, errors, shared
from mantra_ray.sweep.power import EARLIER, Expectation, earlier_components, lines
from mantra_ray.sweep.report import finding
from mantra_ray.sweep.summary import CEILING, MEMORY
from mantra_ray.sweep.tables import COMPARED, describe, gain, span

LISTED = 12  # differences that are listed at most


def section(findings: Findings) -> Section:
    """Conclusions, the first thing that a reader wants."""
    parts: list[Part] = [
        paragraph(f"ALARM, {alarm}." if alarm.loud else f"Note: {alarm}.", "alarm" if alarm.loud else "note")
        for alarm in alarms(findings.store, findings.compared)
    ]
    parts.append(heading("Does the memory help, and where?"))
    for split in findings.splits:
        parts += [paragraph(verdict(findings, split), "verdict"), paragraph(told(findings, split))]
    parts += [heading("Which differences from the default survive Holm's correction?"), *holm_parts(findings)]
    parts += [heading("What could these seeds find?"), *power_parts(findings)]
    return Section("Conclusions", parts)


def verdict(findings: Findings, split: str) -> str:
    """One sentence: helps, harms, silent or undecided, by the interval of the gain on test records."""
    arm, chosen = findings.arms[split].get("memory_on"), findings.chosen[split]
    if arm is None or chosen is None:
        return f"On {split} no memory was judged."
    if chosen.results[split].is_gnn:
        return f"On {split} the memory stays silent: it equals the GNN."
    if not np.isfinite(arm.gain.lower):
        return f"On {split} one regulator is tested, from which nothing can be concluded."
    if arm.gain.lower > 0:
        return f"On {split} the memory helps: gain {gain(arm)}."
    if arm.gain.upper < 0:
        return f"On {split} the memory harms: gain {gain(arm)}."
    return f"On {split} it is undecided whether the memory helps: gain {gain(arm)}."


def told(findings: Findings, split: str) -> str:
    """The finding as the sweep prints it, and the memory against the best baseline where both ran."""
    text = finding(split, findings.arms[split], findings.found, findings.chosen[split])
    found = against_baseline(findings, split)
    if found is None:
        return text
    name, difference = found
    beside = f"Against {name}, the baseline that is best on test, on the same records: {span(difference)} points."
    return f"{text} {beside}"


def against_baseline(findings: Findings, split: str) -> tuple[str, Interval] | None:
    """The best baseline on test, and the memory's paired difference from it; None where they share no records."""
    rows, own = findings.judged(split)
    names = [arm for name, arm in findings.arms[split].items() if name not in (*MEMORY, CEILING, "gnn")]
    if not own or not names:
        return None
    best = min(names, key=lambda arm: arm.error).name
    mine, theirs = shared(*(errors(findings.store, r, a, "test") for r, a in ((own, "memory_on"), (rows, best))))
    if not len(mine["seed"]) or not np.array_equal(mine["record"], theirs["record"]):  # a GNN of its own, or failures
        return None
    difference, *_ = compare(mine, theirs, own[0]["evaluation.bootstrap"], findings.confidence)
    return best, difference


def holm_parts(findings: Findings) -> list[Part]:
    """The differences that survive, or in a line why there are none."""
    if len(findings.found) > COMPARED:
        return [absent(f"Comparisons are made of up to {COMPARED} configurations; there are {len(findings.found)}.")]
    if default_configuration(findings.found) is None or len(findings.found) < 2:
        return [absent("They need the default configuration, finished, and another one beside it.")]
    parts: list[Part] = []
    for arm, pairs in findings.paired.items():
        alive, tested = survivors(pairs, 1 - findings.confidence), sum(not pair.same for pair in pairs.values())
        if not alive:
            told = f"none of {tested} comparisons does" if tested else "every configuration equals the default"
            parts.append(paragraph(f"{arm}: {told}."))
            continue
        parts.append(paragraph(f"{arm}: {len(alive)} of {tested} comparisons do; points of gain, p after Holm."))
        items = [
            f"{describe(findings.found[i])}, on {split}: {span(pair.difference)}, p {pair.p_value:.2g}, "
            f"{pair.seeds} seeds"
            for (i, split), pair in alive[:LISTED]
        ]
        rest = len(alive) - len(items)
        parts.append(bullets(items + ([f"and {rest} more, in the table of comparisons"] if rest else [])))
    return parts


def survivors(pairs: dict[tuple[int, str], Paired], alpha: float) -> list[tuple[tuple[int, str], Paired]]:
    """Comparisons with adjusted p below alpha, the largest difference first."""
    alive = [item for item in pairs.items() if item[1].p_value < alpha]
    return sorted(alive, key=lambda item: -abs(item[1].difference.value))


def power_parts(findings: Findings) -> list[Part]:
    """The least differences that were detectable, and the seeds that a small one needs."""
    expected = expectations(findings)
    if not expected:
        return [absent("Two configurations that differ on validation are needed to tell.")]
    return [bullets(lines(expected))]


def expectations(findings: Findings) -> Sequence[Expectation]:
    """What each split's comparisons could find, from how configurations differ on validation."""
    tested = [sum(not pair.same for pair in pairs.values()) for pairs in findings.paired.values()]
    comparisons = max(1, *tested) if tested else max(1, (len(findings.found) - 1) * len(findings.splits))
    alpha, effect, power = (1 - findings.confidence) / comparisons, Options.effect, Options.power
    found = []
    for split, item in findings.chosen.items():
        parts = earlier_components(findings.store, split)
        if item is None or not parts:
            continue
        tested = errors(findings.store, item.results[split].trials, "memory_on", "test")
        design, mean = Design.of(tested["regulator"], tested["seed"]), Components.mean(parts)
        seeds = len(np.unique(tested["seed"]))
        found.append(
            Expectation(
                split=split,
                seeds=seeds,
                regulators=design.regulators,
                detectable=detectable(mean, design, seeds, power, alpha),
                limit=detectable(mean, design, MOST_SEEDS, power, alpha),
                effect=effect,
                needed=seeds_needed(mean, design, effect, power, alpha),
                power=power,
                comparisons=comparisons,
                assumption=EARLIER,
            )
        )
    return found
