"""`scaling`: does a second worker help, and does a long queue cost anything?"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from loadtest.base.charts import PALETTE, Chart, Layer
from loadtest.base.inputs import LoadTestError, ToolError
from loadtest.base.report import page, plots, shown, table
from loadtest.traffic import queue_cost
from loadtest.traffic.options import Row, add_profile_options, folder_of, read_profile, seconds_cells, tell
from loadtest.traffic.profile import Closed, Profile
from loadtest.traffic.queue_cost import LEASE_GOAL, OPERATIONS, QueueCost
from loadtest.traffic.record import Result
from loadtest.traffic.session import open_sender, run_once

ENGINES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
LOCAL_STACK = "{python} -m loadtest serve --workers {workers} --port {port}"


@dataclass(frozen=True)
class Scaled:
    """What one number of workers gave. Times in seconds; overhead is what neither queue nor stages account for."""

    workers: int
    videos: int
    per_minute: float
    total_p50: float | None
    total_p95: float | None
    total_p99: float | None
    device_seconds: float | None
    overhead_p50: float | None


@contextlib.contextmanager
def service(command: str, workers: int, profile: Profile, log: Path, timeout: float) -> Iterator[None]:
    """The service, started by `command` with {workers} filled in, from ready to stopped."""
    given = {"{workers}": str(workers), "{python}": shlex.quote(sys.executable)}
    given["{port}"] = str(urlsplit(profile.target.url).port)
    for place, value in given.items():
        command = command.replace(place, value)
    words = shlex.split(command)
    if asyncio.run(_answers(profile)):
        raise ToolError(
            f"something already answers at {profile.target.url}; stop it, or give another address with --url"
        )
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)
        except OSError as error:
            raise ToolError(f"--start {words[0]!r}: {error.strerror}") from error
        try:
            _wait_ready(process, profile, log, timeout)
            yield
        finally:
            _stop(process)


async def _answers(profile: Profile) -> bool:
    async with open_sender(profile.target, 1) as sender:
        try:
            await sender.check()
        except LoadTestError:
            return False
        return True


def _wait_ready(process: subprocess.Popen, profile: Profile, log: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not asyncio.run(_answers(profile)):
        if process.poll() is not None:
            raise ToolError(f"the service ended with status {process.returncode} while it was starting; log: {log}")
        if time.monotonic() > deadline:
            raise ToolError(f"the service was not ready after {timeout:g} s; log: {log}")
        time.sleep(0.5)


def _stop(process: subprocess.Popen) -> None:
    """Ask the whole group to end, then insist."""
    for order, patience in ((signal.SIGTERM, 60), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, order) if order is signal.SIGKILL else process.send_signal(order)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            return


def saturate(profile: Profile, workers: int) -> Result:
    """Keep every worker busy with one job more than there are workers: the throughput is then the workers' own."""
    closed = profile.model_copy(update={"load": Closed(kind="closed", users=workers + 1), "workers": workers})
    return asyncio.run(run_once(closed))


def measure_workers(
    profile: Profile, command: str, counts: list[int], folder: Path, timeout: float, tell
) -> list[Scaled]:
    """One saturated run per number of workers."""
    found = []
    for workers in counts:
        with service(command, workers, profile, folder / f"service-{workers}.log", timeout):
            result = saturate(profile, workers)
        result.save(folder / f"workers-{workers}")
        figures = result.summary
        done = sum(record.ok for record in result.records)
        if not done:
            raise ToolError(f"no video was made with {workers} workers: {figures['errors']}")
        found.append(
            Scaled(
                workers,
                done,
                figures["throughput_per_minute"],
                figures["total"]["p50"],
                figures["total"]["p95"],
                figures["total"]["p99"],
                figures["device_seconds_per_video"],
                figures["overhead"]["p50"],
            )
        )
        tell(found[-1])
    return found


def add(parser: argparse.ArgumentParser) -> None:
    add_profile_options(parser, default="saturate")
    parser.add_argument("--only", choices=("workers", "queue"), help="one part of the two")
    parser.add_argument("--workers", type=numbers, default="1,2", metavar="N,N", help="numbers of workers")
    parser.add_argument(
        "--start",
        metavar="COMMAND",
        default=LOCAL_STACK,
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
    """Exit code 1 if the queue's cost breaks its goals."""
    return 0 if carry_out(given)[1] else 1


def carry_out(given: argparse.Namespace) -> tuple[list[Row], bool]:
    """Write scaling.json and report.html; the table's rows, and whether the queue's cost keeps its goals."""
    profile = read_profile(given)
    folder = folder_of(given, "scaling")
    costs = [] if given.only == "workers" else measure_queues(given.databases, given.queue, given.cycles)
    scaled: list[Scaled] = []
    if given.only != "queue":
        scaled = measure_workers(profile, given.start, given.workers, folder, given.start_timeout, _tell_scaled)
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
    rows = [worker_row(one, scaled[0]) for one in scaled] + [queue_row(cost) for group in costs for cost in group]
    tell(rows, folder)
    print(f"report: {folder / 'report.html'}")
    return rows, not said


def numbers(text: str) -> list[int]:
    """`1,2` as a list."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}; allowed: whole numbers from 1 with commas between, as in 1,2")
    return found


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
    rows: list[tuple]
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


def worker_row(one: Scaled, first: Scaled) -> Row:
    """Throughput with every worker busy, against that of the first number of workers."""
    totals = {"p50": one.total_p50, "p95": one.total_p95, "p99": one.total_p99}
    gain = one.per_minute / first.per_minute
    return (
        f"{one.workers} worker{'s' if one.workers > 1 else ''}, always busy",
        f"{one.per_minute:.1f}",
        *seconds_cells(totals),
        f"{gain:.2f} times {first.workers}" if one is not first else "–",
    )


def queue_row(cost: QueueCost) -> Row:
    """Milliseconds of one lease with a queue of this length."""
    times = [f"{cost.at('lease', q) * 1e3:.1f} ms" for q in (50, 95, 99)]
    met = "met" if cost.at("lease", 50) <= LEASE_GOAL else f"over {LEASE_GOAL * 1e3:g} ms"
    return (f"lease, {cost.queued:,} queued, {ENGINES.get(cost.engine, cost.engine)}", "–", *times, met)
