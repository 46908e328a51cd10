"""The job store under many threads, on both engines: no deadlock, no job lost or ended twice, counts that match the rows."""

import random
import threading
import time
from collections import Counter

import pytest
from sqlalchemy import func, select

from service.errors import Conflict, DeadlineUnreachable, IdempotencyMismatch, LeaseLost, NotFound, QueueFull
from service.store import JobStore, NewJob, Progress
from service.store.faults import HANDED_OVER
from service.store.schema import IS_QUEUED, flows, jobs, owners
from tests.service.store.making import BROKE, REJECTED

EXPECTED = (Conflict, DeadlineUnreachable, IdempotencyMismatch, LeaseLost, NotFound, QueueFull)


def deadlocks(server) -> int:
    return (server.home / "log").read_text().count("deadlock detected")


@pytest.fixture(autouse=True)
def no_deadlocks(request):
    """PostgreSQL must have noted none in its log, but for the test that asks for one."""
    asked_for = "rolls_back" in request.node.name
    server = request.getfixturevalue("postgres") if "postgres" in request.node.name else None
    before = deadlocks(server) if server else 0
    yield
    assert server is None or deadlocks(server) - before == asked_for


@pytest.fixture
def busy_store(database_url):
    """A store with a real clock and short leases."""
    store = JobStore(database_url, lease_seconds=0.5, priority_ageing=0.3, retention=0.5)
    yield store
    store.close()


class Crowd:
    """Threads that repeat what they do until the time is over; unexpected errors are kept."""

    def __init__(self, seconds: float):
        self.end, self.errors, self.done, self._threads = time.monotonic() + seconds, [], Counter(), []

    def add(self, act, number: int = 1) -> None:
        for index in range(number):
            self._threads.append(threading.Thread(target=self._repeat, args=(act, random.Random(index))))

    def _repeat(self, act, rng) -> None:
        while time.monotonic() < self.end:
            try:
                act(rng)
                self.done[act.__name__] += 1
            except EXPECTED:
                pass
            except Exception as error:
                self.errors.append(error)

    def run(self) -> None:
        [thread.start() for thread in self._threads]
        [thread.join() for thread in self._threads]
        assert self.errors == []


def together(*acts) -> list:
    """Run functions at the same moment; what each returned or raised."""
    gate, results = threading.Barrier(len(acts)), [None] * len(acts)

    def run(index):
        gate.wait()
        try:
            results[index] = acts[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(acts))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return results


def new(owner="alice", **more):
    return NewJob(owner, {"prompt": "p", "steps": 5}, cost=more.pop("cost", 0.5), **more)


def complete(store, lease):
    return store.complete(lease, "v", 1, {"gpu_seconds": 0.5})


def assert_counts_match_rows(store):
    with store.database.read() as conn:
        grouped = select(jobs.c.owner, jobs.c.level, func.count(), func.sum(jobs.c.cost)).where(IS_QUEUED)
        rows = {(owner, level): (count, cost) for owner, level, count, cost in
                conn.execute(grouped.group_by(jobs.c.owner, jobs.c.level))}  # fmt: skip
        for row in conn.execute(select(flows)):
            count, cost = rows.pop((row.owner, row.level), (0, 0.0))
            assert (row.queued, row.cost) == (count, pytest.approx(cost, abs=1e-6)), row
        assert rows == {}
        assert all(abs(row.vtime) < 1e9 for row in conn.execute(select(owners)))


def work(store, rng, name):
    """Lease a job and end it in one of the ways there are, or let it go silently."""
    lease = store.lease(name)
    if lease is None:
        time.sleep(0.01)
        return
    if store.heartbeat(lease, Progress(step=1, steps=5, phase="denoise")):
        store.cancelled(lease)
        return
    ways = {
        "complete": lambda: complete(store, lease),
        "fail": lambda: store.ended(lease, BROKE),
        "reject": lambda: store.ended(lease, REJECTED),
        "release": lambda: store.ended(lease, HANDED_OVER),
        "die": lambda: None,
    }
    ways[rng.choices(list(ways), (10, 1, 1, 1, 1))[0]]()


def finish_all(store):
    deadline = time.monotonic() + 60
    while (numbers := store.stats())["running"] or sum(numbers["queued"].values()):
        assert time.monotonic() < deadline, numbers
        store.sweep()
        if (lease := store.lease("last")) is not None:
            complete(store, lease)
        else:
            time.sleep(0.05)


def test_everything_at_once_ends_each_job_once_and_leaves_counts_that_match(busy_store):
    store, made, crowd = busy_store, [], Crowd(6)

    def submit(rng):
        hook = rng.choice([None, "https://example.com/hook"])
        job, fresh = store.submit(new(f"owner-{rng.randrange(6)}", priority=rng.randrange(3), webhook_url=hook,
                                      idempotency_key=rng.choice([None, f"k{rng.randrange(50)}"]) if hook is None else None,
                                      deadline=rng.choice([None, None, 60.0]) if hook else None))  # fmt: skip
        if fresh:
            made.append(job.id)

    def lease_and_end(rng):
        work(store, rng, f"w{rng.randrange(4)}")

    def interfere(rng):
        if made:
            rng.choice([store.cancel, store.delete])(rng.choice(made))
        time.sleep(0.01)

    def sweep(rng):
        store.forget(store.sweep())
        time.sleep(0.02)

    def restart(rng):
        store.take_back(f"w{rng.randrange(4)}")
        time.sleep(0.1)

    def deliver(rng):
        if (delivery := store.due_webhook()) is not None:
            store.webhook_done(delivery, None, None)

    for act, number in ((submit, 2), (lease_and_end, 4), (interfere, 1), (sweep, 2), (restart, 1), (deliver, 1)):
        crowd.add(act, number)
    crowd.run()
    assert_counts_match_rows(store)
    finish_all(store)
    assert_counts_match_rows(store)
    assert sum(store.stats()["finished"].values()) == len(set(made)) == len(made) > 50


def submissions_of_one_owner(store, seconds) -> int:
    """Two submitters and four leasing threads of one owner."""
    crowd = Crowd(seconds)

    def submit(rng):
        store.submit(new())

    def lease(rng):
        if (taken := store.lease("w")) is not None:
            complete(store, taken)

    crowd.add(submit, 2)
    crowd.add(lease, 4)
    crowd.run()
    assert_counts_match_rows(store)
    return crowd.done["submit"]


def test_postgresql_serves_one_owner_about_as_fast_as_sqlite(postgres, tmp_path):
    postgres.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public", "wan")
    counts = {}
    for name, url in (("sqlite", f"sqlite:///{tmp_path}/jobs.db"), ("postgresql", postgres.url())):
        store = JobStore(url)
        counts[name] = submissions_of_one_owner(store, 4)
        store.close()
    assert counts["postgresql"] >= max(20, counts["sqlite"] / 20), counts


def test_many_sweepers_take_a_lost_job_back_once(store, clock):
    for owner in range(20):
        store.submit(new(f"owner-{owner % 3}"))
    for number in range(20):
        store.lease(f"w{number}")
    for _ in range(3):
        clock.advance(7)
        together(*[store.sweep] * 4, *[lambda: store.lease("w")] * 4)
    # one may be leased again as soon as it was taken back; then both numbers are larger by one
    found = [(job.losses, job.fence - job.attempts) for job in store.page(None, limit=50)[0]]
    assert found == [(1, 1)] * 20
    assert_counts_match_rows(store)


def test_a_job_that_is_cancelled_while_it_is_leased_or_completed_has_one_end(busy_store):
    for _ in range(20):
        job, _ = busy_store.submit(new())
        _, lease = together(lambda job=job: busy_store.cancel(job.id), lambda: busy_store.lease("w"))
        if lease is not None:
            together(lambda lease=lease: complete(busy_store, lease), lambda job=job: busy_store.delete(job.id))
    assert busy_store.stats()["finished"].get("completed", 0) + busy_store.stats()["finished"]["cancelled"] == 20
    assert_counts_match_rows(busy_store)


def test_one_key_repeated_while_its_job_is_deleted_makes_no_third_job(busy_store):
    for number in range(10):
        first, _ = busy_store.submit(new(idempotency_key=f"k{number}"))
        repeat = lambda number=number: busy_store.submit(new(idempotency_key=f"k{number}"))[0].id  # noqa: E731
        results = together(repeat, repeat, lambda first=first: busy_store.delete(first.id), repeat)
        assert not [result for result in results if isinstance(result, Exception)]
        assert len({first.id, *(result for result in results if result)}) <= 2
    assert_counts_match_rows(busy_store)


def test_waiting_jobs_rise_once_however_many_sweep(store, clock):
    low = [store.submit(new(f"owner-{number % 4}", priority=2))[0].id for number in range(20)]
    clock.advance(2000)
    together(*[store.sweep] * 6)
    assert {store.get(job_id).level for job_id in low} == {1}
    assert_counts_match_rows(store)


def test_several_senders_deliver_a_webhook_once(busy_store):
    for _ in range(10):
        busy_store.submit(new(webhook_url="https://example.com/hook"))
        complete(busy_store, busy_store.lease("w"))
    found = []

    def send():
        while (delivery := busy_store.due_webhook()) is not None:
            found.append(delivery.job_id)
            busy_store.webhook_done(delivery, None, None)

    assert together(*[send] * 4) == [None] * 4
    assert len(found) == len(set(found)) == 10


def test_a_transaction_that_postgresql_rolls_back_is_run_again(postgres):
    postgres.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public", "wan")
    store, gate, runs = JobStore(postgres.url()), threading.Barrier(2, timeout=5), Counter()
    for owner in ("a", "b"):
        store.submit(new(owner))

    def lock_both(first, second):
        def locks(conn):
            runs[first] += 1
            for owner in (first, second):
                conn.execute(select(owners).where(owners.c.owner == owner).with_for_update())
                if sum(runs.values()) <= 2 and owner == first:
                    gate.wait()  # both hold their first lock: now PostgreSQL must choose a victim
            return "done"

        return lambda: store.database.transact(locks)

    assert together(lock_both("a", "b"), lock_both("b", "a")) == ["done", "done"]
    assert sum(runs.values()) == 3
    store.close()
