"""`mantra report`: one page with a sweep's conclusions, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mantra_ray import terminal
from mantra_ray.errors import InputError
from mantra_ray.files import Place, place
from mantra_ray.sweep.options import check_writable, shown


@dataclass(frozen=True)
class ReportOptions:
    """Write a sweep's report: report.html, which stands alone, and its figures as PNG and SVG."""

    folder: Annotated[tyro.conf.Positional[str], shown("FOLDER")]
    """Folder or address of the sweep."""
    out: Annotated[str, shown("FOLDER", "the sweep's")] = ""
    """Folder or address for report.html and figures/."""

    def output(self) -> Place:
        """Where the report goes; InputError if that cannot be."""
        address = self.out or self.folder
        try:
            found = place(address)
        except ValueError as error:
            raise InputError("options", "--out", address, str(error)) from error
        if isinstance(found, Path):
            check_writable(found)
        return found


def main(args: Sequence[str]) -> int:
    """Run `mantra report ARGS`; returns the exit code."""
    options = tyro.cli(ReportOptions, args=list(args), prog="mantra report")
    from mantra_ray.report.findings import read_findings  # here, since --help needs no figures
    from mantra_ray.report.report import make_report

    folder = options.output()
    report = make_report(read_findings(options.folder))
    written = report.write(folder)
    console = terminal.console()
    text = f"{written}: the report, with {len(report.pictures)} figures in {folder / 'figures'}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    return 0
