"""The HTML report: one file, no script, nothing loaded from anywhere."""

import json
from collections.abc import Iterable
from html import escape
from pathlib import Path

from loadtest.figures import charts
from loadtest.plots import Chart
from loadtest.record import Result

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

SECONDS = (
    ("wait (intended arrival → start of work)", "wait"),
    ("total (intended arrival → video)", "total"),
    ("accept (intended arrival → job id)", "accept"),
    ("overhead (neither queue nor stage)", "overhead"),
)


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


def verdict_lines(verdict: dict) -> str:
    """The SLO section."""
    if not verdict["checks"]:
        return '<h2>SLO</h2><p class="soft">The profile sets no thresholds.</p>'
    word = '<b class="ok">met</b>' if verdict["ok"] else '<b class="bad">not met</b>'
    rows = [
        (
            check["name"],
            check["limit"],
            check["measured"] if check["measured"] is not None else "no video",
            "ok" if check["ok"] else "FAILED",
        )
        for check in verdict["checks"]
    ]
    return f"<h2>SLO: {word}</h2>{table(['threshold', 'limit', 'measured', ''], rows)}"


def run_report(result: Result) -> str:
    """The report of one run."""
    figures, profile, machine = result.summary, result.profile, result.environment
    subtitle = (
        f"{result.window['started_at']} · {profile['target']['kind']} at {profile['target']['url']} · "
        f"load {profile['load']['kind']} · seed {profile['seed']} · "
        f"sent from {machine['cpu'] or machine['machine']}, {machine['cores']} cores"
    )
    sections = [
        verdict_lines(result.verdict),
        *_figures(figures),
        "<h2>Plots</h2>",
        plots(charts(result)),
        _errors(figures["errors"]),
        f"<h2>Profile</h2><pre>{escape(json.dumps(profile, indent=1))}</pre>",
    ]
    return page(f"Load test: {result.name}", subtitle, sections)


def _figures(figures: dict) -> list[str]:
    """The tables: facts of the whole run, seconds by percentile, and the shapes of the mix."""
    facts = [
        ("requests", figures["requests"]),
        ("elapsed (s)", figures["elapsed_seconds"]),
        ("offered (videos/min)", figures["offered_per_minute"]),
        ("completed (videos/min)", figures["throughput_per_minute"]),
        ("error rate", figures["error_rate"]),
        ("device seconds per video", figures["device_seconds_per_video"]),
        ("sender lag p99 (s)", figures["sender_lag"]["p99"]),
        *((f"outcome: {name}", count) for name, count in figures["outcomes"].items()),
    ]
    if expected := figures.get("expected_wait"):
        facts.append((f"M/G/1 mean wait at utilisation {expected['utilisation']:.2f} (s)", expected["mean_wait"]))
    columns = ("mean", "p50", "p90", "p95", "p99", "max")
    rows = [(about, *(figures[key][column] for column in columns)) for about, key in SECONDS]
    shapes = [
        (name, s["requests"], s["completed"], s["wait"]["p95"], s["total"]["p50"], s["total"]["p95"],
         s["device_seconds_per_video"])
        for name, s in figures["by_shape"].items()
    ]  # fmt: skip
    header = ["shape", "sent", "completed", "wait p95", "total p50", "total p95", "device s"]
    return ["<h2>Figures</h2>", table(["", "value"], facts), "<h2>Seconds</h2>", table(["", *columns], rows),
            "<h2>By shape</h2>", table(header, shapes)]  # fmt: skip


def _errors(errors: dict[str, int]) -> str:
    return f"<h2>Errors</h2>{table(['message', 'requests'], errors.items())}" if errors else ""


def write_run(result: Result, folder: Path) -> None:
    """result.json, records.csv and report.html."""
    result.save(folder)
    (folder / "report.html").write_text(run_report(result), encoding="utf-8")
