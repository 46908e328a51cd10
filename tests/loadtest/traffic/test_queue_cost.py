"""The cost of a job against the queue's length; the suite looks at short queues on both engines."""

import pytest

from loadtest.base.databases import Postgres, find_binaries
from loadtest.traffic.queue_cost import OPERATIONS, QueueCost, fill, measure, problems, temporary_sqlite
from service.store.store import JobStore


def cost(engine="sqlite", queued=10, lease=0.001, rest=0.001) -> QueueCost:
    samples = {name: [rest] * 5 for name in OPERATIONS} | {"lease": [lease] * 5}
    return QueueCost(engine, queued, samples)


def test_whole_jobs_run_at_each_length_and_the_length_stays():
    told = []
    with temporary_sqlite() as url:
        found = measure(url, [30, 5], 6, told.append)
        store = JobStore(url)
        page, _ = store.page(None, limit=100)
        waiting = sum(job.status == "queued" for job in page)
        store.close()
    assert [c.queued for c in found] == [5, 30]
    assert told == found
    assert waiting == 30
    assert all(len(c.samples[name]) == 6 and min(c.samples[name]) > 0 for c in found for name in OPERATIONS)


def test_fill_queues_through_the_store():
    with temporary_sqlite() as url:
        store = JobStore(url)
        fill(store, 25)
        assert store.lease("w").job.owner.startswith("owner-")
        store.close()


def test_a_slow_lease_and_a_growing_cost_are_named():
    assert problems([cost(), cost(queued=1000)]) == []
    slow, growing = problems([cost(), cost(queued=100_000, lease=0.02)])
    assert "20.0 ms at p50 with 100000" in slow
    assert "grows" in growing


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request):
    """An empty database of each engine."""
    if request.param == "sqlite":
        with temporary_sqlite() as url:
            yield url
        return
    if find_binaries() is None:
        pytest.skip("no PostgreSQL server installed (Debian: apt-get install postgresql)")
    server = Postgres()
    yield server.url()
    server.stop()


def test_a_thousand_waiting_jobs_cost_no_more_than_ten(url):
    short, long = measure(url, [10, 1000], 30, lambda c: None)
    assert long.per_job < 2 * short.per_job + 0.005
    assert long.engine in ("sqlite", "postgresql")
