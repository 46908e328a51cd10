"""The highest arrival rate that still meets the SLO, by bisection between a rate that holds and one that does not.

Each rate is tried with fresh seeds until the answer is sure: "holds" or "fails" at the asked confidence, from block
bootstraps of the pooled runs. A rate whose queue keeps growing fails whatever its percentiles say, because a longer
run would break every threshold.
"""

import math
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field

import numpy as np

from loadtest.errors import ProfileError
from loadtest.profile import Closed, Profile, Ramp
from loadtest.record import Record, Result
from loadtest.slo import judge
from loadtest.stats import block_bootstrap, mean, percentile, trend
from loadtest.summary import QUANTILES, finite, measure, totals, waits

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
    probe, results = Probe(rate), []
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
