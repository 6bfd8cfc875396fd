"""The report of a sweep: every section in its order, and the files that it becomes."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from mantra_ray.files import Place, atomic
from mantra_ray.report import (
    baselines,
    conclusions,
    configurations,
    geometry,
    importance,
    knobs,
    memory,
    origin,
    slices,
)
from mantra_ray.report.drawing import Picture
from mantra_ray.report.findings import Findings
from mantra_ray.report.page import Part, Section, page, paragraph

GUIDE = (
    "Gain is 1 - MSE / MSE of the GNN in program space, in percent: 0 is the GNN, 100 a perfect prediction. Choices "
    "are made on validation records, results are those of test records. An interval that spans 0 is no finding."
)


@dataclass(frozen=True)
class Report:
    """A report as it will lie on disk: one page that stands alone, and its figures."""

    html: str
    pictures: list[Picture]

    def write(self, folder: Place) -> Place:
        """Put the figures and then the page into a folder, each whole or not at all; returns the page's place.

        Figures that the report which lay there showed, and this one does not, are removed in the end.
        """
        page = folder / "report.html"
        before = figures_of(page.read_bytes().decode(errors="replace")) if page.exists() else set()
        files = {f"{picture.name}.png": picture.png for picture in self.pictures}
        files |= {f"{picture.name}.svg": picture.svg for picture in self.pictures}
        for name, content in files.items():  # all is made before anything is written
            with atomic(folder / "figures" / name) as partial:
                partial.write_bytes(content)
        with atomic(page) as partial:
            partial.write_text(self.html, encoding="utf-8")
        for name in before - files.keys():
            (folder / "figures" / name).unlink(missing_ok=True)
        return page


def figures_of(html: str) -> set[str]:
    """Files of the figures that a report's page shows; plain names, whatever else it holds."""
    return set(re.findall(r'<a href="figures/([a-z_]+\.(?:svg|png))">(?:SVG|PNG)</a>', html))


def make_report(findings: Findings) -> Report:
    """The report of what was found."""
    values = baselines.values_by_split(findings)
    sections = [
        conclusions.section(findings),
        configurations.section(findings),
        knobs.section(findings),
        geometry.section(findings),
        memory.section(findings),
        memory.cost_section(findings),
        importance.section(findings),
        slices.section(findings),
        baselines.section(findings),
        baselines.trait_section(findings, values),
        baselines.metric_section(findings, values),
        configurations.search_section(findings),
        origin.failed_section(findings),
        origin.provenance_section(findings),
    ]
    shown: list[Section] = [item for item in sections if item is not None]
    pictures = [part for item in shown for part in item.parts if isinstance(part, Picture)]
    return Report(page(f"Sweep {findings.root.name}", lead(findings), shown), pictures)


def lead(findings: Findings) -> list[Part]:
    """How much there is, and how to read it."""
    counts = Counter(row["status"] for row in findings.trials)
    counts["missing"] = findings.missing
    trials = ", ".join(f"{counts[name]} {name}" for name in ("done", "failed", "pruned", "missing") if counts[name])
    seeds, data = ({row[name] for row in findings.trials} for name in ("seed", "data.data"))
    ended = [row["ended"] for row in findings.trials if row["ended"] is not None]
    days = [f"{day:%Y-%m-%d}" for day in (min(ended), max(ended))] if ended else []
    when = f", {' to '.join(dict.fromkeys(days))} UTC" if days else ""
    size = (
        f"Data {', '.join(sorted(data))}; {len(findings.found)} configurations of the memory, {len(seeds)} seeds, "
        f"splits {', '.join(findings.splits)}; trials: {trials}{when}."
    )
    unfinished = f"The sweep is not finished: {findings.missing} trials have not ended." if findings.missing else ""
    return [paragraph(text, kind) for text, kind in ((size, "lead"), (GUIDE, "note"), (unfinished, "alarm")) if text]
