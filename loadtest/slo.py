"""The verdict of a run: each threshold of the profile, what was measured, and whether it holds."""

import math
from dataclasses import asdict, dataclass

from loadtest.profile import SLO
from loadtest.record import Record
from loadtest.summary import finite, measure, totals, waits


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
