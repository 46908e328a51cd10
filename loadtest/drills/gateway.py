"""`python -m loadtest gateway`: what one gateway process carries while no GPU is in the way.

Two measurements, each with its limit: status reads at a fixed rate while submissions run (open loop, latency from the scheduled
moment), and the memory of the process over many jobs. What a lease takes with a long queue is measured by `scaling`. Exit code 1 if one fails.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import httpx
import psutil

from service.stack import ROOT

READ_LIMIT_SECONDS = 0.05
GROWTH_LIMIT = 1.03  # resident memory at the end over that after a fifth of the jobs, when caches and pools are full
MEASURES = ("reads", "memory")
BODY = {"width": 16, "height": 16, "num_frames": 1, "steps": 1}


@contextlib.contextmanager
def gateway_process(state: Path, card: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The real gateway under BentoML; yields its URL and the process that serves."""
    port = 20000 + os.getpid() % 20000
    environment = os.environ | {"WAN_STATE_DIR": str(state), "WAN_MODEL_CARD": str(card), "WAN_LOG_LEVEL": "WARNING",
                                "WAN_MAX_QUEUED": "1000000", "WAN_MAX_QUEUED_PER_KEY": "1000000",
                                "PROMETHEUS_MULTIPROC_DIR": str(state / "prometheus"), "BENTOML_DO_NOT_TRACK": "true",
                                "BENTOML_HOME": str(state / "bentoml")}  # fmt: skip
    command = [sys.executable, "-m", "bentoml", "serve", "service.service:WanService", "--host", "127.0.0.1"]
    with (state / "gateway.log").open("wb") as log:
        process = subprocess.Popen([*command, "--port", str(port)], cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                    break
            if time.monotonic() > deadline or process.poll() is not None:
                raise RuntimeError(f"the gateway did not start\n{(state / 'gateway.log').read_text()[-2000:]}")
            time.sleep(0.3)
        children = psutil.Process(process.pid).children(recursive=True)
        yield url, max(children, key=lambda child: child.memory_info().rss)
    finally:
        process.terminate()
        process.wait(30)


async def reads(url: str, rate: float, seconds: float, submissions: float) -> tuple[list[float], int]:
    """Latencies of the reads, each counted from its scheduled moment, and the number of errors."""
    latencies, errors, ids = [], 0, []
    connector = aiohttp.TCPConnector(limit=100)

    async with aiohttp.ClientSession(url, connector=connector) as http:

        async def submit() -> None:
            async with http.post("/v1/videos", json=BODY | {"prompt": "x"}) as answer:
                ids.append((await answer.json())["id"])

        async def read(scheduled: float) -> None:
            nonlocal errors
            async with http.get(f"/v1/videos/{ids[hash(scheduled) % len(ids)]}") as answer:
                await answer.read()
                errors += answer.status != 200
            latencies.append(time.monotonic() - scheduled)

        for _ in range(50):
            await submit()
        began, tasks = time.monotonic(), []
        every = max(1, round(rate / submissions))
        for number in itertools.count():
            scheduled = began + number / rate
            if number / rate > seconds:
                break
            await asyncio.sleep(max(0.0, scheduled - time.monotonic()))
            tasks.append(asyncio.create_task(read(scheduled)))
            if number % every == 0:
                tasks.append(asyncio.create_task(submit()))
        await asyncio.gather(*tasks)
    return latencies, errors


def memory(url: str, process: psutil.Process, jobs: int) -> list[tuple[int, float]]:
    """(jobs so far, resident MiB) at twenty points; every job is submitted, read and deleted."""
    curve = []
    with httpx.Client(base_url=url, timeout=60) as http:
        for number in range(1, jobs + 1):
            job = http.post("/v1/videos", json=BODY | {"prompt": str(number)}).raise_for_status().json()
            http.get(f"/v1/videos/{job['id']}").raise_for_status()
            http.delete(f"/v1/videos/{job['id']}").raise_for_status()
            if number * 20 % jobs < 20:
                curve.append((number, process.memory_info().rss / 2**20))
    return curve


def report(name: str, value: str, met: bool) -> bool:
    print(f"{'ok  ' if met else 'FAIL'} {name}: {value}", flush=True)
    return met


def measure_reads(given: argparse.Namespace, state: Path) -> list[bool]:
    with gateway_process(state, given.card) as (url, process):
        before = process.cpu_times().user + process.cpu_times().system
        latencies, errors = asyncio.run(reads(url, given.rate, given.seconds, given.submissions))
        busy = process.cpu_times().user + process.cpu_times().system - before
        latencies.sort()
        p50, p99 = (latencies[int(len(latencies) * share)] for share in (0.5, 0.99))
        text = f"{given.rate:g}/s, p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms, {errors} errors; {busy / len(latencies) * 1000:.2f} ms of CPU each"
    return [report("status reads", text, p99 < READ_LIMIT_SECONDS and not errors)]


def measure_memory(given: argparse.Namespace, state: Path) -> list[bool]:
    with gateway_process(state, given.card) as (url, process):
        curve = memory(url, process, given.jobs)
    print("     resident MiB by jobs: " + ", ".join(f"{number}: {size:.0f}" for number, size in curve), flush=True)
    early = next(size for number, size in curve if number >= given.jobs / 5)
    text = f"{early:.0f} MiB after {given.jobs // 5} jobs, {curve[-1][1]:.0f} MiB after {given.jobs}"
    return [report("memory", text, curve[-1][1] < GROWTH_LIMIT * early)]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--measure", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--rate", type=float, default=300, help="status reads a second")
    parser.add_argument("--submissions", type=float, default=5, help="submissions a second meanwhile")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs for the memory measurement")
    parser.add_argument("--card", type=Path, default=ROOT / "models/tiny/wan.json")


def handle(given: argparse.Namespace) -> int:
    measures = dict(zip(MEASURES, (measure_reads, measure_memory), strict=True))
    verdicts = []
    for name in given.measure:
        with tempfile.TemporaryDirectory(prefix="wan-gateway-") as folder:
            verdicts += measures[name](given, Path(folder))
    return 0 if all(verdicts) else 1
