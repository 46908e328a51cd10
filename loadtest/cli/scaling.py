"""`scaling`: does a second worker help, and does a long queue cost anything?"""

import argparse
import contextlib
import json
import math
from dataclasses import asdict

from loadtest import queue_cost, worker_scaling
from loadtest.cli.options import add_profile_options, folder_of, read_profile
from loadtest.plots import PALETTE, Chart, Layer
from loadtest.queue_cost import OPERATIONS, QueueCost
from loadtest.report import page, plots, shown, table
from loadtest.table import Row, queue_row, tell, worker_row
from loadtest.worker_scaling import Scaled


def add(parser: argparse.ArgumentParser) -> None:
    add_profile_options(parser, default="saturate")
    parser.add_argument("--only", choices=("workers", "queue"), help="one part of the two")
    parser.add_argument("--workers", type=numbers, default="1,2", metavar="N,N", help="numbers of workers")
    parser.add_argument(
        "--start",
        metavar="COMMAND",
        default=worker_scaling.LOCAL_STACK,
        help="command that starts the service with {workers} workers at target.url; {python} is this interpreter, {port} "
        "the URL's port",
    )
    parser.add_argument(
        "--start-timeout", type=float, metavar="SECONDS", default=300, help="seconds until the service must answer"
    )
    parser.add_argument("--queue", type=numbers, default="10,1000,100000", metavar="N,N", help="queue lengths")
    parser.add_argument(
        "--database-url",
        action="append",
        default=[],
        dest="databases",
        metavar="URL",
        help="empty database to measure, e.g. postgresql://USER@HOST/NAME; may be repeated; a temporary SQLite if not given",
    )
    parser.add_argument("--cycles", type=int, default=200, help="jobs per queue length")


def handle(given: argparse.Namespace) -> int:
    """Write scaling.json and report.html; exit code 1 if the queue's cost breaks its goals."""
    profile = read_profile(given)
    folder = folder_of(given, "scaling")
    costs = [] if given.only == "workers" else measure_queues(given.databases, given.queue, given.cycles)
    scaled: list[Scaled] = []
    if given.only != "queue":
        scaled = worker_scaling.measure(profile, given.start, given.workers, folder, given.start_timeout, _tell_scaled)
    said = [problem for group in costs for problem in queue_cost.problems(group)]
    data = {
        "workers": [asdict(one) for one in scaled],
        "problems": said,
        "queue": [
            {
                "engine": c.engine,
                "queued": c.queued,
                "per_job_seconds": c.per_job,
                **{f"{name}_p{q}": c.at(name, q) for name in OPERATIONS for q in (50, 99)},
            }
            for group in costs
            for c in group
        ],
    }
    (folder / "scaling.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
    (folder / "report.html").write_text(_page(costs, scaled, said), encoding="utf-8")
    for problem in said:
        print(problem)
    tell(rows_of(costs, scaled), folder)
    print(f"report: {folder / 'report.html'}")
    return 1 if said else 0


def numbers(text: str) -> list[int]:
    """`1,2` as a list."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}; allowed: whole numbers from 1 with commas between, as in 1,2")
    return found


def rows_of(costs: list[list[QueueCost]], scaled: list[Scaled]) -> list[Row]:
    """Both parts as rows of the table of measurements."""
    return [worker_row(one, scaled[0]) for one in scaled] + [queue_row(cost) for group in costs for cost in group]


def measure_queues(databases: list[str], lengths: list[int], cycles: int) -> list[list[QueueCost]]:
    """The cost of a job on each database."""
    with contextlib.ExitStack() as stack:
        urls = databases or [stack.enter_context(queue_cost.temporary_sqlite())]
        return [queue_cost.measure(url, lengths, cycles, _tell_cost) for url in urls]


def _tell_cost(cost: QueueCost) -> None:
    figures = "  ".join(f"{name} {cost.at(name, 50) * 1e3:.2f}" for name in OPERATIONS)
    print(
        f"{cost.engine:10} {cost.queued:7} waiting: ms at p50: {figures}  whole job {cost.per_job * 1e3:.2f}",
        flush=True,
    )


def _tell_scaled(one: Scaled) -> None:
    print(
        f"{one.workers} workers: {one.per_minute:.1f} videos/min, total p50 {shown(one.total_p50)} s, "
        f"overhead p50 {shown(one.overhead_p50)} s ({one.videos} videos)",
        flush=True,
    )


def _page(costs: list[list[QueueCost]], scaled: list[Scaled], said: list[str]) -> str:
    sections = []
    if scaled:
        first = scaled[0].per_minute
        rows = [(s.workers, s.videos, s.per_minute, s.per_minute / first, s.total_p50, s.device_seconds, s.overhead_p50)
                for s in scaled]  # fmt: skip
        header = ["workers", "videos", "videos/min", "speed-up", "total p50", "device s", "overhead p50"]
        sections += ["<h2>Workers</h2>", table(header, rows)]
    for group in costs:
        rows = [(c.queued, *(f"{c.at(o, 50) * 1e3:.2f} / {c.at(o, 99) * 1e3:.2f}" for o in OPERATIONS),
                 f"{c.per_job * 1e3:.2f}") for c in group]  # fmt: skip
        sections.append(f"<h2>Queue on {group[0].engine} (ms, p50 / p99)</h2>")
        sections.append(table(["waiting", *OPERATIONS, "whole job p50"], rows))
    summary = "; ".join(said) or "the goals hold"
    return page("Scaling study", summary, [*sections, "<h2>Plots</h2>", plots(_charts(costs, scaled))])


def _charts(costs: list[list[QueueCost]], scaled: list[Scaled]) -> list[Chart]:
    curves = [(group, operation) for group in costs for operation in OPERATIONS]
    layers = [
        Layer(f"{group[0].engine} {operation}",
              [(math.log10(max(1, c.queued)), c.at(operation, 50) * 1e3) for c in group], "line", PALETTE[k % 8])
        for k, (group, operation) in enumerate(curves)
    ]  # fmt: skip
    measured = Layer("measured", [(float(s.workers), s.per_minute) for s in scaled], "bars", PALETTE[2])
    return [
        Chart("queue-cost", "Cost of a job against the queue", "log10 of waiting jobs", "ms at p50", layers),
        Chart("workers", "Throughput against workers", "workers", "videos per minute", [measured]),
    ]
