"""Soak: hold a load for a long time and name whatever keeps growing."""

import asyncio
import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtest.plots import PALETTE, Chart, Layer
from loadtest.probe import Watch
from loadtest.profile import Profile
from loadtest.record import Result
from loadtest.report import page, plots, table, verdict_lines
from loadtest.session import run_once
from loadtest.stats import trend

MiB = 1 << 20
WARM_UP = 0.2  # share of the samples at the start that is not judged: caches and pools fill
# What a series may grow by before it counts: (absolute, share of its mean level).
ALLOWED = {
    "rss": (8 * MiB, 0.02),
    "fds": (4, 0.05),
    "threads": (3, 0.05),
    "shm bytes": (2 * MiB, 0.02),
    "shm entries": (2, 0.05),
    "run directories": (3, 0.2),
    "database bytes": (512 << 10, 0.05),
}


@dataclass(frozen=True)
class Finding:
    """One watched series: its level at both ends of the judged part, its slope, and whether it leaks."""

    name: str
    first: float
    last: float
    per_hour: float
    significant: bool
    leaks: bool


async def soak(profile: Profile, watch: Watch, every: float, quiet: bool = True) -> Result:
    """Run the profile while sampling the watch every `every` seconds."""

    async def sampling() -> None:
        while True:
            await asyncio.to_thread(watch.sample)
            await asyncio.sleep(every)

    task = asyncio.create_task(sampling())
    try:
        return await run_once(profile, quiet=quiet)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def findings(watch: Watch) -> list[Finding]:
    """Judge every series; a leak is still growing in the second half, so a cache that has filled is none."""
    found = []
    for name, values in watch.values.items():
        times = watch.times[name]
        start = int(len(values) * WARM_UP)
        t, v = times[start:], values[start:]
        if len(v) < 6:
            continue
        whole, second = trend(t, v), trend(t[len(t) // 2 :], v[len(v) // 2 :])
        absolute, share = ALLOWED[next(kind for kind in ALLOWED if name.startswith(kind))]
        grows = whole.growth > max(absolute, share * sum(v) / len(v))
        edge = max(1, len(v) // 10)
        found.append(
            Finding(
                name,
                sum(v[:edge]) / edge,
                sum(v[-edge:]) / edge,
                whole.slope_per_hour,
                whole.significant,
                grows and whole.significant and second.significant,
            )
        )
    return found


def verdict(watch: Watch, found: list[Finding], result: Result) -> tuple[bool, list[str]]:
    """(flat and within the SLO, one sentence per problem)."""
    problems = [f"{f.name} leaks: {f.first:.4g} → {f.last:.4g}, {f.per_hour:+.4g} per hour" for f in found if f.leaks]
    problems += [f"{name} ended after {at:.0f} s" for name, at in watch.gone.items()]
    problems += [
        f"{check['name']}: {check['measured']} (limit {check['limit']})"
        for check in result.verdict["checks"]
        if not check["ok"]
    ]
    if not result.records or not any(record.ok for record in result.records):
        problems.append("no video was made, so nothing was tested")
    return not problems, problems


def soak_page(watch: Watch, found: list[Finding], result: Result, problems: list[str]) -> str:
    """The HTML report of a soak."""
    rows = [
        (
            f.name,
            _amount(f.name, f.first),
            _amount(f.name, f.last),
            _amount(f.name, f.per_hour),
            "LEAK" if f.leaks else "rises a little" if f.significant else "flat",
        )
        for f in found
    ]
    charts = []
    for k, name in enumerate(watch.values):
        scale = MiB if "rss" in name or "bytes" in name else 1
        points = [(t, v / scale) for t, v in zip(watch.times[name], watch.values[name], strict=True)]
        charts.append(
            Chart(
                f"soak-{k}",
                name,
                "time (s)",
                "MiB" if scale > 1 else "count",
                [Layer(name, points, "line", PALETTE[k % 8])],
            )
        )
    summary = "; ".join(problems) or "everything stays flat"
    made = f"{sum(record.ok for record in result.records)} videos in {result.summary['elapsed_seconds']:.0f} s"
    return page(
        f"Soak: {result.name}",
        f"{made}: {summary}",
        [
            "<h2>Series</h2>",
            table(["series", "first", "last", "per hour", ""], rows),
            verdict_lines(result.verdict),
            "<h2>Plots</h2>",
            plots(charts),
        ],
    )


def as_json(watch: Watch, found: list[Finding], ok: bool, problems: list[str]) -> dict:
    """The result file of a soak."""
    series = {name: list(zip(watch.times[name], values, strict=True)) for name, values in watch.values.items()}
    return {
        "format": "wan-loadtest-soak/1",
        "ok": ok,
        "problems": problems,
        "findings": [asdict(finding) for finding in found],
        "series": series,
    }


def _amount(name: str, value: float) -> str:
    return f"{value / MiB:.1f} MiB" if "rss" in name or "bytes" in name else f"{value:.3g}"


def default_database(state_dir: Path | None) -> Path | None:
    """The service's embedded database inside its state directory."""
    return state_dir / "jobs.db" if state_dir else None
