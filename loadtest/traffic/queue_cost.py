"""What one job costs the job store, against how many jobs already wait."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from loadtest.base.stats import percentile
from service.store import queueing
from service.store.jobs import NewJob, Priority, Progress
from service.store.queueing import Limits
from service.store.store import JobStore

OPERATIONS = ("submit", "get", "lease", "heartbeat", "complete")
OWNERS = 20
LEASE_GOAL = 0.005  # seconds at p50
OPEN = Limits(max_queued=10**9, max_queued_per_owner=10**9)


@dataclass
class QueueCost:
    """Seconds of each store operation with `queued` jobs waiting."""

    engine: str
    queued: int
    samples: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in OPERATIONS})

    def at(self, operation: str, q: float) -> float:
        return percentile(self.samples[operation], q)

    @property
    def per_job(self) -> float:
        """Seconds of the store in one job's life (one heartbeat) at p50."""
        return sum(self.at(operation, 50) for operation in OPERATIONS)


@contextmanager
def temporary_sqlite() -> Iterator[str]:
    """URL of a database that is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="wan-queue-cost-") as folder:
        yield f"sqlite:///{Path(folder) / 'jobs.db'}"


def measure(url: str, lengths: list[int], cycles: int, tell: Callable[[QueueCost], None]) -> list[QueueCost]:
    """Fill the store to each length in turn (ascending) and run `cycles` whole jobs at it.

    The database must be its own: every job that is in it is leased by this program.
    """
    store = JobStore(url, limits=OPEN, lease_seconds=3600)
    try:
        found, present = [], 0
        for length in sorted(lengths):
            fill(store, length - present)
            present = length
            found.append(one_length(store, url.partition(":")[0].partition("+")[0], length, cycles))
            tell(found[-1])
        return found
    finally:
        store.close()


def fill(store: JobStore, count: int) -> None:
    """Queue jobs by the store's own insertion, many in a transaction."""
    for start in range(0, count, 2000):
        with store.database.write() as conn:
            now = store.database.now(conn)
            for index in range(start, min(start + 2000, count)):
                queueing.add(conn, now, replace(new_job(index), model=store.model), OPEN)


def new_job(index: int) -> NewJob:
    request = {
        "prompt": f"a red ball rolls over green grass, take {index}",
        "width": 832,
        "height": 480,
        "num_frames": 81,
        "steps": 50,
        "seed": index,
    }
    priority = list(Priority)[index // OWNERS % len(Priority)]
    return NewJob(owner=f"owner-{index % OWNERS}", request=request, cost=120.0, raw_cost=120.0, priority=priority)


def one_length(store: JobStore, engine: str, length: int, cycles: int) -> QueueCost:
    """Run whole jobs one after the other; each adds one and takes one, so the length stays."""
    cost = QueueCost(engine, length)

    def timed(operation: str, call: Callable):
        started = time.perf_counter()
        value = call()
        cost.samples[operation].append(time.perf_counter() - started)
        return value

    for index in range(cycles):
        new = new_job(index)
        timed("submit", lambda new=new: store.submit(new))
        timed("get", lambda new=new: store.get_with_estimate(new.id))
        lease = timed("lease", lambda: store.lease("measure"))
        timed("heartbeat", lambda lease=lease: store.heartbeat(lease, Progress(step=1, steps=50)))
        timed("complete", lambda lease=lease: store.complete(lease, "videos/x.mp4", 1000, {"seed": 1, "seconds": {}}))
    return cost


def problems(found: list[QueueCost]) -> list[str]:
    """What breaks the goals: a lease under 5 ms at p50, and a job's cost that does not grow with the queue."""
    said = [
        f"{cost.engine}: a lease takes {cost.at('lease', 50) * 1e3:.1f} ms at p50 with {cost.queued} jobs waiting "
        f"(goal {LEASE_GOAL * 1e3:g} ms)"
        for cost in found
        if cost.at("lease", 50) > LEASE_GOAL
    ]
    if len(found) > 1:
        first, last = found[0], found[-1]
        if last.per_job > 2 * first.per_job + 0.002:
            said.append(
                f"{last.engine}: the store's cost per job grows from {first.per_job * 1e3:.1f} ms at {first.queued} "
                f"to {last.per_job * 1e3:.1f} ms at {last.queued} waiting jobs"
            )
    return said
