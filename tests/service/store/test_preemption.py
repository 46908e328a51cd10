"""Urgent jobs and those that make room for them, on both engines."""

import pytest

from service.store import JobStore, Priority, Progress
from service.store.faults import PREEMPTED
from service.store.policies import POLICIES
from service.store.queueing import Limits
from tests.service.store.making import new, run, submit


def busy_with(store, clock, *jobs):
    """Workers with one slot each, all busy; returns the leases."""
    submit(store, clock, *jobs)
    for number in range(len(jobs)):
        store.report_worker(f"w{number}", "busy", 1, 1)
    return [store.lease(f"w{number}") for number in range(len(jobs))]


def asked(store, leases):
    return [lease.job.id for lease in leases if store.stop_requests([lease.job.id]) == {lease.job.id: False}]


def test_one_urgent_job_asks_the_least_urgent_running_one_to_make_room(store, clock):
    leases = busy_with(store, clock, new(), new(priority=Priority.low), new())
    urgent = store.submit(new(owner="bob", priority=Priority.high))[0]
    (victim,) = asked(store, leases)
    assert store.get(victim).priority == Priority.low
    store.sweep()
    assert len(asked(store, leases)) == 1  # one place for one job
    lease = next(lease for lease in leases if lease.job.id == victim)
    store.heartbeat(lease, Progress(step=6, checkpoint_key="c", checkpoint_step=6))
    assert store.ended(lease, PREEMPTED) == "queued"
    assert store.lease("w2").job.id == urgent.id
    waiting = store.get(victim)
    assert (waiting.attempts, waiting.step, waiting.preemptions) == (0, 6, 1)
    assert [row["code"] for row in store.history(victim)] == ["preempted"]


def test_nobody_makes_room_while_a_slot_is_free_or_for_equals(store, clock):
    leases = busy_with(store, clock, new())
    store.report_worker("idle", "idle", 1, 0)
    store.submit(new(priority=Priority.high))
    assert asked(store, leases) == []
    first = store.lease("idle")
    store.submit(new(priority=Priority.high))
    assert asked(store, [first]) == []
    assert asked(store, leases) == [leases[0].job.id]


def test_a_job_makes_room_a_limited_number_of_times(store, clock):
    (lease,) = busy_with(store, clock, new())
    for number in range(5):
        store.submit(new(owner="bob", priority=Priority.high))
        if number == 3:
            break
        assert asked(store, [lease]) == [lease.job.id]
        store.ended(lease, PREEMPTED)
        run(store, store.lease("w0"))
        lease = store.lease("w0")
        assert lease.job.preemptions == number + 1
    assert asked(store, [lease]) == []


def test_a_job_whose_deadline_comes_near_goes_first(store, clock):
    leases = busy_with(store, clock, new(cost=1000.0))
    submit(store, clock, new(owner="bob", cost=5.0))
    with_deadline = store.submit(new(owner="carol", cost=20.0, deadline=1500.0))[0]
    assert asked(store, leases) == []
    clock.advance(1475)
    store.report_worker("w0", "busy", 1, 1)
    store.heartbeat(leases[0])
    store.sweep()
    assert asked(store, leases) == [leases[0].job.id]
    store.ended(leases[0], PREEMPTED)
    assert store.lease("w0").job.id == with_deadline.id


@pytest.mark.parametrize(
    ("policy", "order"),
    [("fifo", ["long", "short", "due"]), ("shortest", ["short", "due", "long"]),
     ("earliest_deadline", ["due", "long", "short"])],
)  # fmt: skip
def test_a_policy_orders_the_jobs_of_an_owner(database_url, clock, policy, order):
    assert set(POLICIES) == {"fifo", "shortest", "earliest_deadline"}
    store = JobStore(database_url, clock=clock, limits=Limits(policy=policy))
    for name, cost, deadline in (("long", 100.0, None), ("short", 1.0, None), ("due", 50.0, 500.0)):
        submit(store, clock, new(prompt=name, cost=cost, deadline=deadline))
    assert [store.lease("w").job.request["prompt"] for _ in range(3)] == order
    store.close()
