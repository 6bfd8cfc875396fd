"""How the report looks on the screen and on paper."""

STYLE = """
:root { --ink: #1b1b1b; --muted: #595959; --line: #d5d5d5; --soft: #f4f5f7; --blue: #005a8c; --warm: #a63c00; }
* { box-sizing: border-box; }
html { color-scheme: light; }
body {
  margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 62rem; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { margin: 0 0 .3rem; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 2.6rem 0 .6rem; padding-bottom: .25rem; border-bottom: 2px solid var(--line); font-size: 1.35rem; }
h3 { margin: 1.6rem 0 .4rem; font-size: 1.05rem; }
p, li { max-width: 50rem; }
p { margin: .5rem 0; }
a { color: var(--blue); }
.lead { color: var(--muted); }
.note, .absent { color: var(--muted); font-size: .92rem; }
.absent { padding-left: .8rem; border-left: 3px solid var(--line); }
.alarm { padding: .6rem .9rem; border: 1px solid var(--warm); border-left-width: 6px; color: var(--warm); }
.verdict { margin: .9rem 0 0; font-size: 1.08rem; font-weight: 650; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 1rem 0 0; padding: .7rem 0 0; list-style: none;
  border-top: 1px solid var(--line); font-size: .92rem; }
.sheet { margin: 1.1rem 0 1.5rem; }
.sheet div { overflow-x: auto; }
.sheet figcaption { margin: 0 0 .45rem; }
table { border-collapse: collapse; font-size: .85rem; line-height: 1.35; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--muted); background: var(--soft); white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: pre; }
td.text { overflow-wrap: anywhere; }
figure { margin: 1.2rem 0 1.8rem; }
figure img { display: block; width: 100%; max-width: 56rem; height: auto; }
figcaption { max-width: 50rem; margin-top: .4rem; color: var(--muted); font-size: .92rem; }
.files { white-space: nowrap; }
pre { padding: .8rem 1rem; overflow-x: auto; background: var(--soft); font-size: .78rem; line-height: 1.4; }
@media print {
  @page { size: A4; margin: 16mm 14mm; }
  html { font-size: 10pt; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, .files { display: none; }
  h1 { font-size: 18pt; }
  h2 { margin-top: 1.4rem; font-size: 13pt; }
  h2, h3, .sheet figcaption { break-after: avoid; }
  figure, tr, .verdict { break-inside: avoid; }
  .sheet { break-inside: auto; }
  .verdict { break-after: avoid; }
  thead { display: table-header-group; }
  .sheet div { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: .15rem .35rem; }
  thead th { background: none; }
  pre { font-size: 7pt; white-space: pre-wrap; overflow-wrap: anywhere; background: none; border: 1px solid #d5d5d5; }
  a { color: inherit; text-decoration: none; }
}
"""
