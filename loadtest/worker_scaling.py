"""Throughput with one, two, … workers: start the service with each number, load it, stop it."""

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from loadtest.errors import LoadTestError, ToolError
from loadtest.profile import Closed, Profile
from loadtest.record import Result
from loadtest.session import run_once
from loadtest.targets import open_sender

LOCAL_STACK = "{python} -m loadtest.local_stack --workers {workers} --port {port}"


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
    return asyncio.run(run_once(closed, quiet=True))


def measure(profile: Profile, command: str, counts: list[int], folder: Path, timeout: float, tell) -> list[Scaled]:
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
                *(figures["total"][name] for name in ("p50", "p95", "p99")),
                figures["device_seconds_per_video"],
                figures["overhead"]["p50"],
            )
        )
        tell(found[-1])
    return found
