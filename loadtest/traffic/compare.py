"""Two results side by side: each figure's change with a confidence interval, and the regressions by name."""

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from loadtest.base.report import shown
from loadtest.base.stats import block_bootstrap, interval, mean, percentile
from loadtest.traffic.record import COMPUTE, Record, Result


@dataclass(frozen=True)
class Change:
    """One figure in both results; ratio = new / old with its 95 % interval.

    verdict: regression, improvement, same, unsure (the interval is wider than the tolerance but includes no change).
    """

    name: str
    old: float
    new: float
    ratio: float
    low: float
    high: float
    verdict: str


def compare(old: Result, new: Result, tolerance: float = 0.05, draws: int = 1000) -> list[Change]:
    """All changes, latencies first; a change counts when its whole interval is beyond the tolerance."""
    pairs = [("", old.records, new.records)]
    shapes = sorted({r.shape for r in old.records} & {r.shape for r in new.records})
    if len(shapes) > 1:
        pairs += [
            (f" [{s}]", [r for r in old.records if r.shape == s], [r for r in new.records if r.shape == s])
            for s in shapes
        ]
    changes = []
    for suffix, before, after in pairs:
        for name, sample, statistic in figures():
            change = _change(name + suffix, sample(before), sample(after), statistic, tolerance, draws)
            if change:
                changes.append(change)
    changes.append(_throughput(old, new, tolerance, draws))
    changes.append(_errors(old.records, new.records))
    return changes


def figures() -> list[tuple[str, Callable[[list[Record]], list[float]], Callable[[np.ndarray], float]]]:
    """(name, sample of a list of records, statistic) of everything whose growth is a regression."""

    def quantile(q: int) -> Callable[[np.ndarray], float]:
        return lambda values: percentile(values, q)

    def stage(name: str) -> Callable[[list[Record]], list[float]]:
        return lambda records: [r.stages[name] for r in records if r.ok and name in r.stages]

    def total(records: list[Record]) -> list[float]:
        return [r.total for r in records if r.ok]

    def wait(records: list[Record]) -> list[float]:
        return [r.wait for r in records if r.ok and r.wait is not None]

    def compute(records: list[Record]) -> list[float]:
        return [seconds for r in records if r.ok and (seconds := r.compute_seconds) is not None]

    found: list[tuple[str, Callable[[list[Record]], list[float]], Callable[[np.ndarray], float]]]
    found = [(f"total p{q}", total, quantile(q)) for q in (50, 95, 99)]
    found += [(f"wait p{q}", wait, quantile(q)) for q in (50, 95)]
    found += [(f"stage {name} mean", stage(name), mean) for name in (*COMPUTE, "encode")]
    return [*found, ("device seconds per video", compute, mean)]


def _change(name: str, old: list[float], new: list[float], statistic, tolerance: float, draws: int) -> Change | None:
    if len(old) < 5 or len(new) < 5:
        return None
    before, after = float(statistic(np.array(old))), float(statistic(np.array(new)))
    if before < 1e-3 and after < 1e-3:
        return None  # below a millisecond: nothing that an operator can feel
    bottom = np.maximum(block_bootstrap(old, statistic, draws, seed=1), 1e-4)
    low, high = interval(block_bootstrap(new, statistic, draws, seed=2) / bottom)
    return Change(name, before, after, after / max(before, 1e-4), low, high, _verdict(low, high, tolerance))


def _verdict(low: float, high: float, tolerance: float) -> str:
    if low > 1 + tolerance:
        return "regression"
    if high < 1 / (1 + tolerance):
        return "improvement"
    return "same" if low > 1 / (1 + tolerance) and high < 1 + tolerance else "unsure"


def _throughput(old: Result, new: Result, tolerance: float, draws: int) -> Change:
    """Gaps between completions; fewer videos per minute is the regression, so the ratio is that of the gaps' mean."""

    def gaps(result: Result) -> list[float]:
        ends = sorted(r.finished for r in result.records if r.ok and r.finished is not None)
        return [b - a for a, b in zip(ends, ends[1:], strict=False)]

    before, after = gaps(old), gaps(new)
    name = "seconds between videos"
    if len(before) < 5 or len(after) < 5:
        return Change(name, math.nan, math.nan, math.nan, math.nan, math.nan, "unsure")
    change = _change(name, before, after, mean, tolerance, draws)
    return change or Change(name, mean(before), mean(after), 1.0, 1.0, 1.0, "same")


def _errors(old: list[Record], new: list[Record]) -> Change:
    """Error rates differ if their 95 % Wilson intervals do not overlap."""
    (a, a_low, a_high), (b, b_low, b_high) = _wilson(old), _wilson(new)
    verdict = "regression" if b_low > a_high else "improvement" if a_low > b_high else "same"
    ratio = b / a if a else (1.0 if not b else math.inf)
    return Change("error rate", a, b, ratio, b_low, b_high, verdict)


def _wilson(records: list[Record], z: float = 1.96) -> tuple[float, float, float]:
    n = len(records) or 1
    share = sum(not r.ok for r in records) / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return share, max(0.0, centre - half), centre + half


def warnings(old: Result, new: Result) -> list[str]:
    """Why the two results may not be comparable."""
    found = []
    for part in ("load", "mix", "limits", "workers"):
        if old.profile.get(part) != new.profile.get(part):
            found.append(f"the profiles differ in {part}: {old.profile.get(part)} and {new.profile.get(part)}")
    for part in ("cpu", "cores"):
        if old.environment.get(part) != new.environment.get(part):
            found.append(f"the machines differ in {part}: {old.environment.get(part)} and {new.environment.get(part)}")
    return found


def as_json(changes: list[Change]) -> list[dict]:
    """Changes as plain data; NaN and infinity become null."""
    return [
        {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(change).items()
        }
        for change in changes
    ]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", type=Path, help="result.json or its folder")
    parser.add_argument("new", type=Path, help="result.json or its folder")
    parser.add_argument("--tolerance", type=float, default=0.05, help="relative change that does not matter")
    parser.add_argument("--json", action="store_true", help="print JSON")


def handle(given: argparse.Namespace) -> int:
    """Print every figure of both; exit code 1 if anything regressed."""
    old, new = Result.load(given.old), Result.load(given.new)
    for warning in warnings(old, new):
        print(f"warning: {warning}", file=sys.stderr)
    changes = compare(old, new, given.tolerance)
    if given.json:
        print(json.dumps(as_json(changes), indent=1))
    else:
        table = Table("figure", "old", "new", "new/old", "95 % interval", "verdict", box=None)
        for change in changes:
            table.add_row(
                change.name,
                shown(change.old),
                shown(change.new),
                shown(change.ratio),
                f"{change.low:.3f} … {change.high:.3f}",
                change.verdict,
            )
        Console(width=120).print(table)
    regressions = [change.name for change in changes if change.verdict == "regression"]
    if regressions:
        print(f"regressions: {', '.join(regressions)}", file=sys.stderr)
    return 1 if regressions else 0
