"""The two ways to apply load: open loop (arrivals do not wait for the service) and closed loop (users do)."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import Protocol

from loadtest.traffic.profile import Closed, Order, Profile, orders, schedule
from loadtest.traffic.record import Clock, Record


@dataclass
class Run:
    """A run, as the live view and the metric scraper see it; its clock starts when it is made."""

    profile: Profile
    plan: list[Order]
    records: list[Record] = field(default_factory=list)
    in_system: int = 0
    started: float = field(default_factory=time.perf_counter)
    stopped: bool = False

    @classmethod
    def of(cls, profile: Profile) -> "Run":
        """Draw the whole schedule, then start the clock."""
        plan = [] if isinstance(profile.load, Closed) else schedule(profile)
        return cls(profile, plan)

    @property
    def planned(self) -> int:
        return len(self.plan) or self.profile.limits.requests

    @property
    def elapsed(self) -> float:
        """Seconds from the start to the last answer; until now if there was none."""
        ends = [end for r in self.records if (end := r.delivered or r.finished or r.sent) is not None]
        return max(ends, default=self.clock())

    def clock(self) -> float:
        return time.perf_counter() - self.started

    def stop(self) -> None:
        """No further arrivals; what is in flight may finish (Ctrl-C)."""
        self.stopped = True


class Sender(Protocol):
    """One way to ask for a video; fills the record in as the request advances."""

    async def check(self) -> None:
        """Raise TargetUnavailable if the target cannot take requests now."""

    async def send(self, order: Order, record: Record, clock: Clock) -> None:
        """Ask for one video and follow it to its end; returns with record.outcome set."""

    async def abandon(self, record: Record) -> None:
        """Tell the target that nobody waits for this video any more."""


async def warm_up(profile: Profile, sender: Sender) -> None:
    """Send the warm-up requests one after the other; their records are not kept."""
    clock = Run(profile, []).clock
    for order in orders(profile, [0.0] * profile.limits.warmup_requests):
        async with asyncio.timeout(profile.limits.request_seconds):
            await sender.send(order, Record(order.index, order.shape.name, "", clock(), sent=clock()), clock)


async def apply_load(run: Run, sender: Sender) -> None:
    """Run the whole load and return when every request ended or the drain time is over."""
    if isinstance(run.profile.load, Closed):
        await _closed_loop(run.profile, run.profile.load, sender, run)
    else:
        await _open_loop(run.profile, run.plan, sender, run)
    run.stopped = True


async def _open_loop(profile: Profile, plan: list[Order], sender: Sender, run: Run) -> None:
    tasks: set[asyncio.Task] = set()
    for order in plan:
        await _until(order.at, run)
        if run.stopped:
            break
        record = _record(order, order.at, run)
        if run.in_system >= profile.limits.in_flight:
            record.outcome, record.error = "dropped", f"limits.in_flight is {profile.limits.in_flight}"
            continue
        tasks.add(asyncio.create_task(_one(order, record, sender, run)))
    await _drain(tasks, profile.limits.drain_seconds)


async def _until(at: float, run: Run) -> None:
    """Sleep until `at`; the last millisecond is spent yielding, for the event loop rounds sleeps up to milliseconds."""
    while not run.stopped and (delay := at - run.clock() - 0.001) > 0:
        await asyncio.sleep(min(delay, 0.5))  # an interrupt must not wait for the next arrival
    while not run.stopped and run.clock() < at:
        await asyncio.sleep(0)


async def _closed_loop(profile: Profile, load: Closed, sender: Sender, run: Run) -> None:
    stream = orders(profile, [0.0] * profile.limits.requests)

    async def user() -> None:
        for order in stream:
            if run.stopped or run.clock() > profile.limits.seconds:
                return
            # A closed loop has no intended arrival but the moment its user is free: that is its blind spot.
            await _one(order, _record(order, run.clock(), run), sender, run)
            await asyncio.sleep(load.think_seconds)

    tasks = {asyncio.create_task(user()) for _ in range(load.users)}
    await _drain(tasks, profile.limits.seconds + profile.limits.drain_seconds)


def _record(order: Order, intended: float, run: Run) -> Record:
    priority = "" if order.shape.priority is None else str(order.shape.priority)
    record = Record(order.index, order.shape.name, priority, intended, in_system=run.in_system)
    run.records.append(record)
    return record


async def _one(order: Order, record: Record, sender: Sender, run: Run) -> None:
    run.in_system += 1
    record.sent = run.clock()
    try:
        async with asyncio.timeout(run.profile.limits.request_seconds):
            await sender.send(order, record, run.clock)
    except TimeoutError:
        record.outcome, record.error = "timeout", f"limits.request_seconds is {run.profile.limits.request_seconds:g}"
        await sender.abandon(record)
    except asyncio.CancelledError:
        record.outcome, record.error = "timeout", "unfinished when the run ended"
        await sender.abandon(record)
        raise
    finally:
        run.in_system -= 1


async def _drain(tasks: set[asyncio.Task], seconds: float) -> None:
    """Wait for what is in flight; cancel what is not done in time."""
    if not tasks:
        return
    _, late = await asyncio.wait(set(tasks), timeout=seconds)
    for task in late:
        task.cancel()
    for task in late:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    for task in tasks - late:
        task.result()  # a bug in the harness must not look like a fast service
