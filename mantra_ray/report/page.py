"""One HTML page that stands alone: sections of text, tables and figures, styled for the screen and for paper."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from rich.table import Table
from rich.text import Text

from mantra_ray.provenance import without_secrets
from mantra_ray.report.drawing import Picture
from mantra_ray.report.style import STYLE

Part = str | Picture  # HTML, or a figure


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it."""

    title: str
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        """Its id in the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    def html(self) -> str:
        """The section as HTML."""
        inside = "\n".join(figure(part) if isinstance(part, Picture) else part for part in self.parts)
        return f'<section id="{self.anchor}">\n<h2>{escape(self.title)}</h2>\n{inside}\n</section>'


def page(title: str, lead: Sequence[Part], sections: Sequence[Section]) -> str:
    """The whole document: nothing in it is loaded from elsewhere."""
    links = "\n".join(f'<li><a href="#{item.anchor}">{escape(item.title)}</a></li>' for item in sections)
    body = "\n".join(item.html() for item in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{"".join(str(part) for part in lead)}
<nav aria-label="Contents"><ul>
{links}
</ul></nav>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; `kind` is its class: note, alarm, lead."""
    return f"<p{_class(kind)}>{escape(scrubbed(text))}</p>"


def absent(why: str) -> str:
    """Why a section has nothing to show."""
    return paragraph(why, "absent")


def bullets(items: Iterable[str]) -> str:
    """A list."""
    return "<ul>" + "".join(f"<li>{escape(scrubbed(item))}</li>" for item in items) + "</ul>"


def heading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{escape(text)}</h3>"


def preformatted(text: str) -> str:
    """Text with its own line breaks and spaces."""
    return f"<pre>{escape(scrubbed(text))}</pre>"


def sheet(table: Table, caption: str) -> str:
    """A table of the terminal as one of the page, so that both have the same numbers in them."""
    kinds = ["text" if column.justify == "left" else "number" for column in table.columns]
    head = "".join(
        f'<th scope="col"{_class(kind)}>{escape(str(c.header))}</th>'
        for c, kind in zip(table.columns, kinds, strict=True)
    )
    body = []
    for row, *cells in zip(table.rows, *(column.cells for column in table.columns), strict=True):
        strong = "bold" in str(row.style or "")
        body.append(
            "<tr>" + "".join(_cell(cell, kind, strong) for cell, kind in zip(cells, kinds, strict=True)) + "</tr>"
        )
    return (
        f'<figure class="sheet">\n<figcaption>{escape(caption)}</figcaption>\n'
        f"<div><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(body)
        + "\n</tbody>\n</table></div>\n</figure>"
    )


def listing(rows: Iterable[Sequence[str]], labels: Sequence[str], caption: str) -> str:
    """A table of texts."""
    table = Table()
    for name in labels:
        table.add_column(name)
    for row in rows:
        table.add_row(*(Text(scrubbed(cell)) for cell in row))
    return sheet(table, caption)


def figure(picture: Picture) -> str:
    """A figure with its caption, the image inside the page, and where its files lie beside it."""
    image = base64.b64encode(picture.svg).decode()
    files = " ".join(f'<a href="figures/{picture.name}.{kind}">{kind.upper()}</a>' for kind in ("svg", "png"))
    return (
        f'<figure id="figure-{picture.name}">\n'
        f'<img src="data:image/svg+xml;base64,{image}" alt="{escape(picture.alt, quote=True)}">\n'
        f'<figcaption>{escape(picture.caption)} <span class="files">{files}</span></figcaption>\n</figure>'
    )


def scrubbed(text: str) -> str:
    """A text without what looks like a secret, line by line and word by word."""
    return "\n".join(" ".join(without_secrets(line.split(" "))) for line in text.split("\n"))


def _cell(cell: object, kind: str, strong: bool) -> str:
    text = cell.plain if isinstance(cell, Text) else str(cell)
    strong = strong or (isinstance(cell, Text) and "bold" in str(cell.style))
    inside = escape(text)
    return f"<td{_class(kind)}>{f'<strong>{inside}</strong>' if strong else inside}</td>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
