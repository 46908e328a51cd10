"""What each command found as rows of one Markdown table."""

from collections.abc import Iterable
from pathlib import Path

from loadtest.queue_cost import LEASE_GOAL, QueueCost
from loadtest.record import Result
from loadtest.report import shown
from loadtest.worker_scaling import Scaled

Row = tuple[str, ...]
HEADER: Row = ("load", "videos/min", "p50", "p95", "p99", "verdict")
FILE = "table.md"
ENGINES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}


def markdown(rows: Iterable[Row], header: Row = HEADER) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def tell(rows: list[Row], folder: Path) -> None:
    """Print the rows as a table and leave it in the result's folder."""
    print(markdown(rows))
    (folder / FILE).write_text(markdown(rows) + "\n", encoding="utf-8")


def run_row(result: Result) -> Row:
    """Throughput and seconds from intended arrival to video of one run."""
    figures, load = result.summary, result.profile["load"]
    rate = f", {load['per_minute']:g} a minute" if "per_minute" in load else ""
    missed = ", ".join(check["name"].partition(" (")[0] for check in result.verdict["checks"] if not check["ok"])
    return (
        f"{result.name} ({load['kind']}{rate})",
        f"{figures['throughput_per_minute']:.1f}",
        *_seconds(figures["total"]),
        "met" if result.verdict["ok"] else f"missed: {missed or 'no request was sent'}",
    )


def capacity_row(found: dict) -> Row:
    """The highest rate that holds, with the seconds from intended arrival to video there."""
    low, high = found["between"]
    name = f"{found['profile']['name']}: capacity"
    if low is None:
        return (name, f"below {high:.3g}", "–", "–", "–", "not met")
    tried = f"holds at {low:.3g}" + (f", not at {high:.3g}" if high is not None else ", the highest tried")
    return (name, f"{low:.3g}", *_seconds(found["total_at_capacity"]), tried)


def worker_row(one: Scaled, first: Scaled) -> Row:
    """Throughput with every worker busy, against that of the first number of workers."""
    totals = {"p50": one.total_p50, "p95": one.total_p95, "p99": one.total_p99}
    gain = one.per_minute / first.per_minute
    return (
        f"{one.workers} worker{'s' if one.workers > 1 else ''}, always busy",
        f"{one.per_minute:.1f}",
        *_seconds(totals),
        f"{gain:.2f} times {first.workers}" if one is not first else "–",
    )


def queue_row(cost: QueueCost) -> Row:
    """Milliseconds of one lease with a queue of this length."""
    times = [f"{cost.at('lease', q) * 1e3:.1f} ms" for q in (50, 95, 99)]
    met = "met" if cost.at("lease", 50) <= LEASE_GOAL else f"over {LEASE_GOAL * 1e3:g} ms"
    return (f"lease, {cost.queued:,} queued, {ENGINES.get(cost.engine, cost.engine)}", "–", *times, met)


def _seconds(totals: dict) -> list[str]:
    return [f"{shown(totals[name])} s" if totals[name] is not None else "no video" for name in ("p50", "p95", "p99")]
