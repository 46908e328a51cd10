"""The figures of a run and its verdict: rates, percentiles with intervals, stage means, device seconds, thresholds."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from loadtest.base.stats import block_bootstrap, interval, mean, mg1_wait, percentile
from loadtest.traffic.profile import SLO, Poisson, Profile
from loadtest.traffic.record import COMPUTE, STAGES, Record

QUANTILES = {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}


def measure(values: list[float], name: str) -> float:
    """One named figure of a sample: mean, p50 … p99, max."""
    return mean(values) if name == "mean" else percentile(values, QUANTILES[name])


def finite(value: float) -> float | None:
    """JSON knows neither infinity nor NaN; both become null."""
    return value if math.isfinite(value) else None


def waits(records: Iterable[Record]) -> list[float]:
    """Seconds between intended arrival and start of work, in order of arrival; infinite where no video came."""
    return [wait for record in records if (wait := record.wait) is not None]


def totals(records: Iterable[Record]) -> list[float]:
    """Seconds between intended arrival and video, in order of arrival; infinite where no video came."""
    return [record.total for record in records]


def distribution(values: list[float]) -> dict:
    """Mean, percentiles, and a 95 % interval of the 95th percentile and the mean."""
    figures: dict[str, Any] = {name: finite(measure(values, name)) for name in ("mean", *QUANTILES)}
    if len(values) >= 10 and all(map(math.isfinite, values)):
        figures["mean_interval"] = [finite(v) for v in interval(block_bootstrap(values, lambda x: float(x.mean())))]
        figures["p95_interval"] = [finite(v) for v in interval(block_bootstrap(values, lambda x: percentile(x, 95)))]
    return figures


def summarise(profile: Profile, records: list[Record], elapsed: float) -> dict:
    """All figures of a run; `elapsed` is seconds from the start to the last answer."""
    done = [record for record in records if record.ok]
    last = max((record.intended for record in records), default=0.0)
    span = max(elapsed, 1e-9)
    lags = [record.sent - record.intended for record in records if record.sent is not None]
    outcomes = Counter(record.outcome for record in records)
    figures: dict[str, Any] = {
        "requests": len(records),
        "outcomes": dict(outcomes),
        "elapsed_seconds": elapsed,
        "error_rate": 1 - len(done) / len(records) if records else 1.0,
        "offered_per_minute": (len(records) - 1) / last * 60 if last > 0 and len(records) > 1 else None,
        "throughput_per_minute": len(done) / span * 60,
        "wait": distribution(waits(records)),
        "total": distribution(totals(records)),
        "accept": distribution([r.accepted - r.intended for r in records if r.accepted is not None]),
        "sender_lag": {"p50": finite(percentile(lags, 50)), "p99": finite(percentile(lags, 99))},
        "stages": stage_means(done),
        "device_seconds_per_video": finite(mean(_compute(done))),
        "overhead": distribution(_overheads(done)),
        "by_shape": {
            name: _of_shape([r for r in records if r.shape == name]) for name in sorted({r.shape for r in records})
        },
        "errors": dict(Counter(record.error[:120] for record in records if record.error).most_common(10)),
    }
    figures["expected_wait"] = expected_wait(profile, done, figures["offered_per_minute"])
    return figures


def stage_means(done: list[Record]) -> dict[str, float]:
    """Mean seconds per stage over the completed requests that report it."""
    samples = {stage: [r.stages[stage] for r in done if stage in r.stages] for stage in STAGES}
    return {stage: mean(values) for stage, values in samples.items() if values}


def expected_wait(profile: Profile, done: list[Record], offered: float | None) -> dict | None:
    """What queueing theory (M/G/1) expects with the measured service times; a check of the measurement itself."""
    if not isinstance(profile.load, Poisson) or profile.workers != 1 or not offered or not done:
        return None
    if profile.target.kind != "videos":  # Triton's stages overlap: a tandem of queues, which the formula is not about
        return None
    service = [sum(seconds for stage, seconds in r.stages.items() if stage != "queue") for r in done if r.stages]
    if not service or not (average := mean(service)):
        return None
    variation = mean([(value - average) ** 2 for value in service]) / average**2
    utilisation = profile.load.per_minute / 60 * average
    return {
        "utilisation": utilisation,
        "service_seconds": average,
        "variation": variation,
        "mean_wait": finite(mg1_wait(utilisation, average, variation)),
    }


def _compute(done: list[Record]) -> list[float]:
    return [seconds for record in done if (seconds := record.compute_seconds) is not None]


def _overheads(done: list[Record]) -> list[float]:
    """Seconds of each request that neither the queue nor a stage accounts for."""
    return [
        r.total - (r.wait or 0) - sum(s for name, s in r.stages.items() if name != "queue")
        for r in done
        if any(name in r.stages for name in COMPUTE)
    ]


def _of_shape(records: list[Record]) -> dict:
    done = [record for record in records if record.ok]
    return {
        "requests": len(records),
        "completed": len(done),
        "wait": distribution(waits(records)),
        "total": distribution(totals(records)),
        "device_seconds_per_video": finite(mean(_compute(done))),
    }


@dataclass(frozen=True)
class Check:
    """One threshold; `measured` is None if no video came in the share of requests that it speaks of."""

    name: str
    limit: float
    measured: float | None
    ok: bool


def judge(slo: SLO, records: list[Record], elapsed: float) -> dict:
    """{"ok": bool, "checks": [...]}; a run without a single record is never ok."""
    checks = [_at_most(f"wait {name} (s)", limit, measure(waits(records), name)) for name, limit in slo.wait.items()]
    checks += [
        _at_most(f"total {name} (s)", limit, measure(totals(records), name)) for name, limit in slo.total.items()
    ]
    done = sum(record.ok for record in records)
    if slo.error_rate is not None:
        checks.append(_at_most("error rate", slo.error_rate, 1 - done / len(records) if records else 1.0))
    if slo.goodput is not None:
        name = f"goodput (share within {slo.goodput.within_seconds:g} s)"
        checks.append(_at_least(name, slo.goodput.share, goodput(records, slo.goodput.within_seconds)))
    if slo.throughput_per_minute is not None:
        checks.append(_at_least("throughput (videos/min)", slo.throughput_per_minute, done / max(elapsed, 1e-9) * 60))
    return {"ok": bool(records) and all(check.ok for check in checks), "checks": [asdict(check) for check in checks]}


def goodput(records: list[Record], within: float) -> float:
    """The share of all requests whose video came within `within` seconds of the intended arrival."""
    return sum(record.total <= within for record in records) / len(records) if records else 0.0


def _at_most(name: str, limit: float, measured: float) -> Check:
    return Check(name, limit, finite(measured), not math.isnan(measured) and measured <= limit)


def _at_least(name: str, limit: float, measured: float) -> Check:
    return Check(name, limit, finite(measured), measured >= limit)
