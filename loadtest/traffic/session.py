"""One whole run: check the target, warm up, apply the load, collect metrics, judge, and build the result."""

import asyncio
import contextlib
import os
import platform
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from loadtest.traffic import metrics
from loadtest.traffic.loops import Run, Sender, apply_load, warm_up
from loadtest.traffic.profile import Profile, Target
from loadtest.traffic.record import Result
from loadtest.traffic.summary import judge, summarise
from loadtest.traffic.targets.guard import refuse_remote
from loadtest.traffic.targets.triton import GrpcSender, HttpSender
from loadtest.traffic.targets.videos import VideosSender

View = Callable[[Run], contextlib.AbstractAsyncContextManager]
SENDERS: dict[str, Any] = {"videos": VideosSender, "triton-grpc": GrpcSender, "triton-http": HttpSender}


@contextlib.asynccontextmanager
async def open_sender(target: Target, in_flight: int) -> AsyncIterator[Sender]:
    """Connect to the target of a profile."""
    async with contextlib.AsyncExitStack() as stack:
        yield await SENDERS[target.kind].open(target, in_flight, stack)


def run_profile(profile: Profile, allow_remote: bool = False, view: View | None = None) -> Result:
    """Run a profile to its end and return the judged result; `view` shows the run while it goes on."""
    for url in (profile.target.url, *profile.metrics.scrape):
        refuse_remote(url, allow_remote)
    return asyncio.run(run_once(profile, view))


async def run_once(profile: Profile, view: View | None = None) -> Result:
    """The same inside a running event loop, for searches that run many times; the target is already allowed."""
    async with open_sender(profile.target, profile.limits.in_flight) as sender:
        await sender.check()
        await warm_up(profile, sender)
        async with metrics.collect(profile.metrics, began := time.time()) as series:
            run = Run.of(profile)
            with _stop_on_interrupt(run):
                async with view(run) if view else contextlib.nullcontext():
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
