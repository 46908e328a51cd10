"""Soak: hold a load for a long time and name whatever keeps growing."""

import argparse
import asyncio
import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from loadtest.base.charts import PALETTE, Chart, Layer
from loadtest.base.report import page, plots, table
from loadtest.base.stats import trend
from loadtest.traffic import live
from loadtest.traffic.loops import warm_up
from loadtest.traffic.options import add_profile_options, add_serve_options, folder_of, target_of
from loadtest.traffic.probe import Watch, find_roots
from loadtest.traffic.profile import Profile
from loadtest.traffic.record import Result
from loadtest.traffic.run_report import verdict_lines, write_run
from loadtest.traffic.session import View, open_sender, run_once
from service.stack import Stack

MiB = 1 << 20
WARM_UP = 0.2  # share of the samples at the start that is not judged: caches and pools fill
FEWEST = 12  # judged samples of a series without which nothing is said about it
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

    @property
    def word(self) -> str:
        return "LEAKS" if self.leaks else "rises a little" if self.significant else "flat"

    def __str__(self) -> str:
        first, last, growth = (amount(self.name, value) for value in (self.first, self.last, self.per_hour))
        return f"{self.name}: {first} → {last}, {growth} per hour"


async def soak(profile: Profile, watch: Watch, every: float, view: View | None = None) -> Result:
    """Warm up unwatched, then run the profile while sampling the watch every `every` seconds."""
    async with open_sender(profile.target, 1) as sender:
        await sender.check()
        await warm_up(profile, sender)
    warm = profile.model_copy(update={"limits": profile.limits.model_copy(update={"warmup_requests": 0})})

    async def sampling() -> None:
        while True:
            await asyncio.sleep(every)
            await asyncio.to_thread(watch.sample)

    watch.sample()  # a place that cannot be watched is told now, not after an hour
    task = asyncio.create_task(sampling())
    try:
        return await run_once(warm, view)
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
        if len(v) < FEWEST:
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
    problems = [f"leak of {f}" for f in found if f.leaks]
    if not any(f.name.startswith("rss") for f in found):
        most = max(map(len, watch.values.values()), default=0)
        problems.append(f"only {most} samples were taken; at least {FEWEST / (1 - WARM_UP):g} are needed to judge")
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
            amount(f.name, f.first),
            amount(f.name, f.last),
            amount(f.name, f.per_hour),
            f.word,
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
    summary = "; ".join(problems) or "everything watched stays flat"
    if missing := watch.missing:
        summary += f"; not watched: {', '.join(missing)}"
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
        "not_watched": watch.missing,
        "findings": [asdict(finding) for finding in found],
        "series": series,
    }


def amount(name: str, value: float) -> str:
    """A level of a series as people read it."""
    return f"{value / MiB:.1f} MiB" if "rss" in name or "bytes" in name else f"{value:.3g}"


def default_database(state_dir: Path | None) -> str | None:
    """The service's embedded database inside its state directory."""
    return str(state_dir / "jobs.db") if state_dir else None


def add(parser: argparse.ArgumentParser) -> None:
    add_profile_options(parser)
    add_serve_options(parser)
    parser.add_argument("--minutes", type=float, default=60, help="how long")
    parser.add_argument(
        "--pid",
        type=int,
        action="append",
        default=[],
        help="process to watch with all its children; may be repeated; not given: who owns the port",
    )
    parser.add_argument(
        "--state-dir", type=Path, metavar="FOLDER", help="the service's WAN_STATE_DIR: its run directories and database"
    )
    parser.add_argument("--run-dir", type=Path, metavar="FOLDER", help="run directories, if not STATE_DIR/run")
    parser.add_argument("--database", help="SQLite file or postgresql:// URL, if not STATE_DIR/jobs.db")
    parser.add_argument("--every", type=float, metavar="SECONDS", default=5, help="seconds between samples")
    parser.add_argument("--quiet", action="store_true", help="no live view")


def handle(given: argparse.Namespace) -> int:
    """Write soak.json, soak.html and the run's own files; exit code 1 if anything leaks or the SLO is not met."""
    given.overrides += [f"limits.seconds={given.minutes * 60}", "limits.requests=1000000"]
    with target_of(given) as (profile, running):
        folder = folder_of(given, f"soak-{profile.name}")
        watch = watch_of(given, profile, running)
        print("watching:", ", ".join(f"{process.name()} ({process.pid}) and its children" for process in watch.roots))
        if watch.missing:
            print(f"not watched: {', '.join(watch.missing)}; --state-dir tells where they are")
        result = asyncio.run(soak(profile, watch, given.every, None if given.quiet else live.show))
    found = findings(watch)
    ok, problems = verdict(watch, found, result)
    write_run(result, folder)
    (folder / "soak.json").write_text(json.dumps(as_json(watch, found, ok, problems)), encoding="utf-8")
    (folder / "soak.html").write_text(soak_page(watch, found, result, problems), encoding="utf-8")
    for problem in problems:
        print(problem)
    for finding in found:
        print(f"{finding.word:14}  {finding}")
    print(f"{'flat' if ok else 'NOT FLAT'}: {len(found)} series, report: {folder / 'soak.html'}")
    return 0 if ok else 1


def watch_of(given: argparse.Namespace, profile: Profile, running: Stack | None) -> Watch:
    """What to look at: everything of the service that was started for this run, or what the options name."""
    if running:
        return Watch(psutil.Process().children(), running.state / "run", default_database(running.state))
    run_dir = given.run_dir or (given.state_dir / "run" if given.state_dir else None)
    database = given.database or default_database(given.state_dir)
    return Watch(find_roots(given.pid, profile.target.url), run_dir, database)
