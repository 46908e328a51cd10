"""One whole run: check the target, warm up, apply the load, collect metrics, judge, and build the result."""

import asyncio
import contextlib
import os
import platform
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from rich.console import Console

from loadtest import live, metrics
from loadtest.profile import Profile
from loadtest.record import Result
from loadtest.runner import Run, apply_load, warm_up
from loadtest.slo import judge
from loadtest.summary import summarise
from loadtest.targets import open_sender
from loadtest.targets.guard import refuse_remote


def run_profile(
    profile: Profile, allow_remote: bool = False, console: Console | None = None, quiet: bool = False
) -> Result:
    """Run a profile to its end and return the judged result."""
    for url in (profile.target.url, *profile.metrics.scrape):
        refuse_remote(url, allow_remote)
    return asyncio.run(run_once(profile, console, quiet))


async def run_once(profile: Profile, console: Console | None = None, quiet: bool = False) -> Result:
    """The same inside a running event loop, for searches that run many times; the target is already allowed."""
    async with open_sender(profile.target, profile.limits.in_flight) as sender:
        await sender.check()
        await warm_up(profile, sender)
        async with metrics.collect(profile.metrics, began := time.time()) as series:
            run = Run.of(profile)
            view = contextlib.nullcontext() if quiet else live.show(run, console)
            with _stop_on_interrupt(run):
                async with view:
                    await apply_load(run, sender)
    window = {"start": began, "end": time.time(), "started_at": datetime.fromtimestamp(began, UTC).isoformat()}
    summary, verdict = summarise(profile, run.records, run.elapsed), judge(profile.slo, run.records, run.elapsed)
    asked = profile.model_dump(mode="json")
    return Result(profile.name, asked, environment(), window, run.records, summary, verdict, series)


def environment() -> dict:
    """The machine that sent the load."""
    model = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    return {
        "machine": platform.machine(),
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "host_load": list(os.getloadavg()),
    }


@contextlib.contextmanager
def _stop_on_interrupt(run: Run) -> Iterator[None]:
    """First Ctrl-C: no more arrivals, report what there is. Second Ctrl-C: give up."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        run.stop()
        loop.remove_signal_handler(signal.SIGINT)

    with contextlib.suppress(ValueError, RuntimeError):  # only the main thread may handle signals
        loop.add_signal_handler(signal.SIGINT, stop)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, RuntimeError):
            loop.remove_signal_handler(signal.SIGINT)
