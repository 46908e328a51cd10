"""Whose fault a lost attempt was, and what follows, on both engines."""

from service.errors import Fault
from service.store import Loss, Progress
from service.store.faults import LONGEST_PAUSE
from tests.service.store.making import BROKE, REJECTED, run, submit

AWAY = Loss(Fault.dependency, "storage_unavailable", "the store is away")


def alive(store, *names):
    for name in names:
        store.report_worker(name, "idle", 1, 0, node=f"node-of-{name}")


def breaks(store, clock, worker, loss=BROKE, beside=()):
    """The worker breaks at the next job; None when it gets none."""
    clock.advance(LONGEST_PAUSE)
    alive(store, worker, *beside)
    lease = store.lease(worker)
    return lease and store.ended(lease, loss)


def test_a_worker_that_breaks_at_every_job_fails_none(store, clock):
    (job,) = submit(store, clock)
    alive(store, "bad")
    for _ in range(9):
        assert breaks(store, clock, "bad") == "queued"
    assert store.get(job.id).attempts == 0


def test_a_job_is_kept_from_workers_that_broke_at_it_while_others_live(store, clock):
    (job,) = submit(store, clock)
    alive(store, "bad", "good")
    assert breaks(store, clock, "bad", beside=["good"]) == "queued"
    assert breaks(store, clock, "bad", beside=["good"]) is None
    clock.advance(40)  # the good one is silent
    alive(store, "bad")
    lease = store.lease("bad")
    assert lease.job.id == job.id
    store.ended(lease, BROKE)
    clock.advance(LONGEST_PAUSE)
    alive(store, "good")
    assert run(store, store.lease("good")) == "completed"


def test_a_job_that_breaks_healthy_workers_is_poison(store, clock):
    (poison,) = submit(store, clock)
    for number in range(3):
        assert store.get(poison.id).status == "queued"
        assert breaks(store, clock, f"w{number}", beside=["w9"]) == "queued"
        assert store.acquit(f"w{number}") == [poison.id]
        assert store.acquit(f"w{number}") == []
    failed = store.get(poison.id)
    assert (failed.status, failed.error_code) == ("failed", "poison_job")
    assert failed.error_message == "3 attempts on healthy workers broke; the last one: the GPU broke"
    assert sum(store.stats()["queued"].values()) == 0


def test_a_store_that_is_away_counts_for_nobody_however_often(store, clock):
    (job,) = submit(store, clock)
    for _ in range(50):
        assert breaks(store, clock, "w", AWAY) == "queued"
    assert store.acquit("w") == []
    assert (store.get(job.id).attempts, store.get(job.id).losses) == (0, 0)


def test_a_break_after_progress_is_never_held_against_the_job(store, clock):
    (job,) = submit(store, clock)
    for step in range(1, 20):
        clock.advance(LONGEST_PAUSE)
        lease = store.lease("w")
        store.heartbeat(lease, Progress(step=step, checkpoint_key="c", checkpoint_step=step))
        assert store.ended(lease, BROKE) == "queued"
        assert store.acquit("w") == []
    assert store.get(job.id).attempts == 0


def test_who_comes_further_than_all_before_is_not_held_up_by_the_job_and_who_does_not_may_be(store, clock):
    (job,) = submit(store, clock)
    for step, suspected in ((5, False), (9, False), (9, True), (3, True), (10, False)):
        clock.advance(LONGEST_PAUSE)
        lease = store.lease("w")
        store.heartbeat(lease, Progress(step=step))  # before the first checkpoint was stored
        assert store.ended(lease, BROKE) == "queued"
        assert store.acquit("w") == ([job.id] if suspected else [])
    assert store.get(job.id).attempts == 2


def test_the_history_says_who_broke_where_and_goes_with_the_job(store, clock):
    (job,) = submit(store, clock)
    alive(store, "w1")
    lease = store.lease("w1")
    store.heartbeat(lease, Progress(step=7))
    store.ended(lease, Loss(Fault.worker, "device_error", "an illegal address", "GPU-1"))
    clock.advance(5)
    store.ended(store.lease("w2"), REJECTED)
    first, second = store.history(job.id)
    assert (first["worker"], first["node"], first["gpu"], first["step"]) == ("w1", "node-of-w1", "GPU-1", 7)
    assert [(row["fault"], row["code"], row["fence"]) for row in (first, second)] == [
        ("worker", "device_error", 1),
        ("job", "invalid_value", 2),
    ]
    assert store.stats()["faults"] == {"worker": 1, "job": 1}
    store.delete(job.id)
    store.forget(store.sweep())
    assert store.history(job.id) == []


def test_trouble_is_known_to_all_for_a_while(store, clock):
    assert not store.troubled("store")
    store.report_trouble("store")
    assert store.troubled("store")
    assert not store.troubled("database")
    clock.advance(30)
    assert not store.troubled("store")
