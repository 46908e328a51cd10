"""Reports: HTML pages of one file, without scripts, that load nothing from anywhere; tables in HTML and Markdown."""

from collections.abc import Iterable
from html import escape

from loadtest.base.charts import Chart

STYLE = """
:root{color-scheme:light dark;--fg:#1b1f24;--bg:#fff;--soft:#6a737d;--line:#d8dee4;--ok:#0a7d4f;--bad:#c0392b}
@media(prefers-color-scheme:dark){
:root{--fg:#e6e6e6;--bg:#15181c;--soft:#9aa4af;--line:#343b43;--ok:#4cc38a;--bad:#ff7b6b}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);
max-width:1360px;margin:2rem auto;padding:0 1rem}
h1{margin:0}h2{margin:2rem 0 .5rem}.soft{color:var(--soft)}.ok{color:var(--ok)}.bad{color:var(--bad)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.25rem .8rem;border-bottom:1px solid var(--line);
text-align:right}td:first-child,th:first-child{text-align:left}.plots{display:grid;gap:1rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,560px),1fr))}figure{margin:0}figcaption{font-weight:600}
svg{width:100%;height:auto}svg text{font-size:11px;fill:var(--soft)}.grid{stroke:var(--line)}.axis{stroke:var(--soft)}
line.limit{stroke:var(--bad);stroke-dasharray:6 4}text.limit{fill:var(--bad)!important}
.legend{font-size:13px;color:var(--soft)}.legend span{margin-right:1rem}.legend i{display:inline-block;
width:.8em;height:.8em;margin-right:.3em;border-radius:2px}
pre{overflow:auto;border:1px solid var(--line);padding:1rem}
"""


def page(title: str, subtitle: str, sections: Iterable[str]) -> str:
    """A whole document."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width">'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f'<p class="soft">{escape(subtitle)}</p>{"".join(sections)}</body></html>'
    )


def table(header: list[str], rows: Iterable[Iterable[object]]) -> str:
    """An HTML table; numbers are shortened, None is a dash, infinity shows as such."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(shown(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def shown(value: object) -> str:
    """A figure as people read it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def plots(found: Iterable[Chart]) -> str:
    """All charts that have data, and a sentence that names the ones that have none."""
    found = list(found)
    drawn = "".join(chart.svg() for chart in found if not chart.empty)
    missing = ", ".join(chart.title for chart in found if chart.empty)
    note = f'<p class="soft">No data for: {escape(missing)}.</p>' if missing else ""
    return f'<div class="plots">{drawn}</div>{note}'


def markdown(rows: Iterable[Iterable[str]], header: Iterable[str]) -> str:
    """A Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
