"""The highest arrival rate that still meets the SLO, by bisection between a rate that holds and one that does not.

Each rate is tried with fresh seeds until the answer is sure: "holds" or "fails" at the asked confidence, from block
bootstraps of the pooled runs. A rate whose queue keeps growing fails whatever its percentiles say, because a longer
run would break every threshold.
"""

import argparse
import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field

import numpy as np

from loadtest.base.charts import PALETTE, Chart, Layer
from loadtest.base.inputs import ProfileError
from loadtest.base.report import page, plots, shown, table
from loadtest.base.stats import block_bootstrap, mean, percentile, trend
from loadtest.traffic.options import (
    Row,
    add_profile_options,
    add_serve_options,
    folder_of,
    seconds_cells,
    target_of,
    tell,
)
from loadtest.traffic.profile import Closed, Profile, Ramp
from loadtest.traffic.record import Record, Result
from loadtest.traffic.session import run_once
from loadtest.traffic.summary import QUANTILES, finite, judge, measure, totals, waits

RunOnce = Callable[[Profile], Awaitable[Result]]


@dataclass
class Probe:
    """Everything that was learnt about one arrival rate (videos per minute)."""

    per_minute: float
    runs: int = 0
    requests: int = 0
    probability: float = 0.5  # that the SLO holds at this rate
    growing: bool = False
    holds: bool | None = None  # None: the runs allowed could not tell
    wait: dict = field(default_factory=dict)
    total: dict = field(default_factory=dict)
    device_seconds: float | None = None
    throughput_per_minute: float = 0.0


@dataclass
class Search:
    """How far to go: bounds of the rate, wanted width of the answer, confidence, and runs per rate."""

    low: float
    high: float
    tolerance: float = 0.1
    confidence: float = 0.9
    runs: int = 3
    probes: int = 14


async def find_capacity(profile: Profile, search: Search, run: RunOnce, tell: Callable[[Probe], None]) -> dict:
    """Bisect; {"capacity_per_minute", "between": [holds, fails], "probes", …}."""
    if isinstance(profile.load, (Closed, Ramp)) or not _has_thresholds(profile):
        raise ProfileError(
            f"profile {profile.name!r}: a capacity search needs an open-loop load with one rate "
            "(poisson, constant, burst) and at least one threshold under slo"
        )
    if not search.low < search.high:
        raise ProfileError(f"--low is {search.low:g} and --high {search.high:g}; allowed: low below high")
    probes: list[Probe] = []

    async def holds(rate: float) -> bool:
        probe = await try_rate(profile, rate, search, run)
        probes.append(probe)
        tell(probe)
        return probe.holds is True

    low, high = search.low, search.high
    if not await holds(low):
        return report(profile, search, probes, None, low)
    if await holds(high):
        return report(profile, search, probes, high, None)
    while high / low > 1 + search.tolerance and len(probes) < search.probes:
        middle = math.sqrt(low * high)  # rates differ by factors, so halve the logarithm
        low, high = (middle, high) if await holds(middle) else (low, middle)
    return report(profile, search, probes, low, high)


async def try_rate(profile: Profile, rate: float, search: Search, run: RunOnce) -> Probe:
    """Run one rate with new seeds until the SLO surely holds or surely fails, or the runs are used up."""
    probe = Probe(rate)
    results: list = []
    while probe.runs < search.runs and probe.holds is None:
        load = profile.load.model_copy(update={"per_minute": rate})
        seed = profile.seed + 1000 * len(results)
        results.append(await run(profile.model_copy(update={"load": load, "seed": seed})))
        assess(profile, probe, results, search.confidence)
    return probe


def assess(profile: Profile, probe: Probe, results: list[Result], confidence: float) -> None:
    """Write what all runs of one rate say together into the probe."""
    records = [record for result in results for record in result.records]
    elapsed = sum(result.summary["elapsed_seconds"] for result in results)
    probe.runs, probe.requests = len(results), len(records)
    probe.wait = {name: finite(measure(waits(records), name)) for name in ("mean", *QUANTILES)}
    probe.total = {name: finite(measure(totals(records), name)) for name in ("mean", *QUANTILES)}
    known = [seconds for record in records if (seconds := record.compute_seconds) is not None]
    probe.device_seconds = finite(mean(known))
    probe.throughput_per_minute = sum(record.ok for record in records) / max(elapsed, 1e-9) * 60
    probe.growing = all(queue_grows(result.records) for result in results)
    probe.probability = 0.0 if probe.growing else probability(profile, records)
    if probe.growing or probe.probability <= 1 - confidence:
        probe.holds = False
    elif probe.probability >= confidence and judge(profile.slo, records, elapsed)["ok"]:
        probe.holds = True


def probability(profile: Profile, records: list[Record], draws: int = 400) -> float:
    """The share of bootstrap draws of the run in which every latency, error and goodput threshold holds."""
    slo, numbers = profile.slo, np.arange(len(records), dtype=float)
    all_waits = np.array(
        [record.wait if record.wait is not None else math.nan for record in records]
    )  # nan never passes
    all_totals = np.array(totals(records))

    def ok(picked: np.ndarray) -> float:
        index = picked.astype(int)
        wait, total = all_waits[index], all_totals[index]
        errors = float(np.isinf(total).mean())
        return float(
            all(measure(wait, name) <= limit for name, limit in slo.wait.items())
            and all(measure(total, name) <= limit for name, limit in slo.total.items())
            and (slo.error_rate is None or errors <= slo.error_rate)
            and (slo.goodput is None or (total <= slo.goodput.within_seconds).mean() >= slo.goodput.share)
        )

    return float(block_bootstrap(numbers, ok, draws).mean())


def queue_grows(records: list[Record]) -> bool:
    """Whether waits rise from start to end by more than the run's own typical latency, significantly."""
    known = [(r.intended, r.wait) for r in records if r.wait is not None and math.isfinite(r.wait)]
    if len(known) < 24:
        return False
    line = trend([at for at, _ in known], [wait for _, wait in known])
    service = percentile([r.total - r.wait for r in records if r.ok and r.wait is not None], 50)
    return line.significant and line.growth > max(2 * service, 0.5 * percentile([w for _, w in known], 95))


def report(profile: Profile, search: Search, probes: list[Probe], low: float | None, high: float | None) -> dict:
    """The result file of a search; capacity is the highest rate that was shown to hold."""
    best = next((probe for probe in probes if probe.per_minute == low), None)
    return {
        "format": "wan-loadtest-capacity/1",
        "profile": profile.model_dump(mode="json"),
        "search": asdict(search),
        "capacity_per_minute": low,
        "between": [low, high],
        "confidence": search.confidence,
        "device_seconds_per_video": best.device_seconds if best else None,
        "total_at_capacity": best.total if best else None,
        "probes": [asdict(probe) for probe in sorted(probes, key=lambda probe: probe.per_minute)],
    }


def _has_thresholds(profile: Profile) -> bool:
    slo = profile.slo
    return bool(slo.wait or slo.total or slo.goodput or slo.error_rate is not None)


def sentence(found: dict) -> str:
    """What was found, with its bounds."""
    low, high = found["between"]
    confidence = f"{found['confidence']:.0%} confidence"
    if low is None:
        return f"no capacity: the SLO already fails at {high:.4g} videos per minute ({confidence})"
    if high is None:
        return f"capacity is at least {low:.4g} videos per minute ({confidence}); --high was too low to see it break"
    return f"capacity {low:.4g} videos per minute ({confidence}); at {high:.4g} the SLO no longer holds for sure"


def capacity_page(found: dict) -> str:
    """The HTML of a capacity search."""
    rows = [
        (
            p["per_minute"],
            {True: "holds", False: "fails", None: "unsure"}[p["holds"]],
            p["probability"],
            p["requests"],
            p["throughput_per_minute"],
            p["wait"]["p95"],
            p["total"]["p50"],
            p["total"]["p95"],
            p["total"]["p99"],
            "yes" if p["growing"] else "",
        )
        for p in found["probes"]
    ]
    header = [
        "videos/min",
        "SLO",
        "P(holds)",
        "requests",
        "completed/min",
        "wait p95",
        "total p50",
        "total p95",
        "total p99",
        "queue grows",
    ]
    return page(
        f"Capacity: {found['profile']['name']}",
        sentence(found),
        ["<h2>Rates tried</h2>", table(header, rows), "<h2>Plots</h2>", plots(charts(found))],
    )


def charts(found: dict) -> list[Chart]:
    probes = found["probes"]

    def curve(part: str, name: str) -> list[tuple[float, float]]:
        return [(p["per_minute"], p[part][name]) for p in probes if p[part][name] is not None]

    limits = found["profile"]["slo"]["total"]
    limit = next(((value, f"SLO total {name}") for name, value in limits.items()), None)
    latency = [
        Layer(f"{part} {name}", curve(part, name), "line", PALETTE[k])
        for k, (part, name) in enumerate((("total", "p50"), ("total", "p95"), ("total", "p99"), ("wait", "p95")))
    ]
    done = [(p["per_minute"], p["throughput_per_minute"]) for p in probes]
    offered = [(p["per_minute"], p["per_minute"]) for p in probes]
    sure = [(p["per_minute"], p["probability"]) for p in probes]
    return [
        Chart("latency-against-rate", "Latency against offered load", "videos per minute", "seconds", latency, limit),
        Chart(
            "throughput-against-rate",
            "Completed against offered",
            "videos per minute offered",
            "videos per minute",
            [Layer("completed", done, "line", PALETTE[2]), Layer("offered", offered, "line", PALETTE[7])],
        ),
        Chart(
            "confidence",
            "How sure it is that the SLO holds",
            "videos per minute",
            "probability",
            [Layer("P(SLO holds)", sure, "dots")],
            (found["confidence"], "asked"),
        ),
    ]


def add(parser: argparse.ArgumentParser) -> None:
    add_profile_options(parser)
    add_serve_options(parser)
    parser.add_argument("--low", type=float, required=True, help="videos per minute that should hold")
    parser.add_argument("--high", type=float, required=True, help="videos per minute that should fail")
    parser.add_argument("--tolerance", type=float, default=0.1, help="stop when high/low is within 1 + this")
    parser.add_argument("--confidence", type=float, default=0.9, help="how sure each answer must be")
    parser.add_argument("--runs", type=int, default=3, help="runs with fresh seeds per rate at most")


def handle(given: argparse.Namespace) -> int:
    """Exit code 1 if not even --low holds."""
    return 0 if carry_out(given)[1] else 1


def carry_out(given: argparse.Namespace) -> tuple[list[Row], bool]:
    """Print each rate as it is tried, write capacity.json and report.html; the table's rows, and if any rate holds."""
    search = Search(given.low, given.high, given.tolerance, given.confidence, given.runs)
    with target_of(given) as (profile, _):
        folder = folder_of(given, f"capacity-{profile.name}")
        found = asyncio.run(find_capacity(profile, search, run_once, _tell))
    (folder / "capacity.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    (folder / "report.html").write_text(capacity_page(found), encoding="utf-8")
    print(sentence(found))
    rows = [capacity_row(found)]
    tell(rows, folder)
    print(f"report: {folder / 'report.html'}")
    return rows, bool(found["capacity_per_minute"])


def _tell(probe: Probe) -> None:
    word = {True: "holds", False: "fails", None: "unsure"}[probe.holds]
    print(
        f"{probe.per_minute:8.2f}/min  {word:6}  P(SLO holds) {probe.probability:.2f}  {probe.requests} requests  "
        f"total p95 {shown(probe.total['p95'])} s{'  queue grows' if probe.growing else ''}",
        flush=True,
    )


def capacity_row(found: dict) -> Row:
    """The highest rate that holds, with the seconds from intended arrival to video there."""
    low, high = found["between"]
    name = f"{found['profile']['name']}: capacity"
    if low is None:
        return (name, f"below {high:.3g}", "–", "–", "–", "not met")
    tried = f"holds at {low:.3g}" + (f", not at {high:.3g}" if high is not None else ", the highest tried")
    return (name, f"{low:.3g}", *seconds_cells(found["total_at_capacity"]), tried)
