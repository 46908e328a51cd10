"""Many models in one store: every worker gets its own model's jobs, and every number belongs to a model."""

import pytest
from sqlalchemy import text

from service.store import JobStore
from tests.service.store.making import new, run, submit


@pytest.fixture
def other(store, database_url, clock):
    """The store as a worker of another model opens it."""
    opened = JobStore(database_url, clock=clock, model="wan-14b")
    yield opened
    opened.close()


def test_a_worker_leases_jobs_of_its_model_only(store, other, clock):
    small, large = submit(store, clock, new(), new(model="wan-14b"))
    assert (small.model, large.model) == ("wan", "wan-14b")
    assert other.lease("w2").job.id == large.id
    assert other.lease("w2") is None
    assert not other.anything_waits()
    assert store.anything_waits()
    assert store.lease("w1").job.id == small.id


def test_many_owners_of_another_model_do_not_hide_a_job(store, other, clock):
    submit(store, clock, *[new(owner=f"owner-{n:02}") for n in range(30)])
    late = submit(store, clock, new(owner="zoe", model="wan-14b"))[0]
    assert other.lease("w2").job.id == late.id


def test_estimates_and_numbers_are_those_of_the_model(store, other, clock):
    for opened in (store, other):
        opened.announce({}, {})
        opened.report_worker(f"w-{opened.model}", "idle", 1, 0)
    submit(store, clock, *[new(cost=100.0) for _ in range(3)])
    large = submit(other, clock, new(cost=40.0))[0]
    assert other.estimate(large).position == 1
    assert other.estimate(large).finish_seconds == pytest.approx(40)
    assert store.stats()["backlog_queued"] == pytest.approx(300)
    numbers = store.stats(slot_seconds=80, model="wan-14b")
    assert (numbers["backlog_queued"], numbers["demand_slots"], numbers["queued"][1]) == (40, 0.5, 1)
    clock.advance(25)
    store.report_worker("w-wan", "idle", 1, 0)
    numbers = store.stats(model="wan-14b")
    assert numbers["oldest_seconds"] == pytest.approx(26)
    assert numbers["workers"] == {"idle": 1}
    assert store.stats()["oldest_seconds"] == pytest.approx(29)


def test_each_model_learns_its_own_factor(store, other, clock):
    submit(store, clock, new(cost=10.0), new(cost=10.0, model="wan-14b"))
    run(store, store.lease("w1"))
    lease = other.lease("w2")
    other.complete(lease, "v", 1, {"gpu_seconds": 40.0})
    assert store.cost_factors() == {"wan": pytest.approx(1.0), "wan-14b": pytest.approx(4.0)}


def test_what_a_model_said_is_kept_and_renewed(store, other):
    store.announce({"variant": "t2v"}, {"overhead": 1})
    other.announce({"variant": "t2v"}, {"overhead": 2})
    other.announce({"variant": "t2v"}, {"overhead": 3})
    assert store.announced() == {
        "wan": ({"variant": "t2v"}, {"overhead": 1}),
        "wan-14b": ({"variant": "t2v"}, {"overhead": 3}),
    }
    assert store.live_workers() == {}
    other.report_worker("w2", "idle", 1, 0)
    assert store.live_workers() == {"wan-14b": 1}


def test_jobs_of_a_release_that_knew_one_model_belong_to_it(store, clock):
    job = submit(store, clock, new())[0]
    with store.database.write() as conn:
        conn.execute(text("UPDATE jobs SET model = ''"))
        conn.execute(text("INSERT INTO calibrations (model, log_ratio, samples) VALUES ('', 0.0, 3)"))
    assert store.lease("w") is None
    store.sweep()
    assert store.cost_factors() == {"wan": 1.0}
    assert store.lease("w").job.id == job.id
