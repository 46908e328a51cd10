"""The contract of the job store, on SQLite and PostgreSQL alike."""

import threading

import pytest

from service.errors import (
    Conflict,
    DeadlineUnreachable,
    Fault,
    IdempotencyMismatch,
    InvalidRequest,
    NotFound,
    QueueFull,
)
from service.store import JobStore, Loss, Priority, Progress
from service.store.queueing import Limits
from tests.service.store.making import new, run, submit


def test_a_job_lives_from_queued_to_completed(store, clock):
    (job,) = submit(store, clock)
    assert (job.status, job.request["prompt"]) == ("queued", "a red circle")
    lease = store.lease("w1")
    assert store.get(job.id).status == "in_progress"
    assert store.heartbeat(lease, Progress(step=5, steps=20, phase="denoise", eta_seconds=3.0)) is False
    assert store.get(job.id).step == 5
    assert run(store, lease) == "completed"
    done = store.get(job.id)
    assert (done.status, done.video_key, done.video_bytes) == ("completed", f"{job.id}-1.mp4", 100)
    assert done.completed_at
    assert done.expires_at > done.completed_at
    assert store.stats()["finished"] == {"completed": 1}
    assert store.lease("w1") is None


def test_jobs_of_a_class_leave_in_order_of_arrival(store, clock):
    made = submit(store, clock, *(new(prompt=str(number)) for number in range(10)))
    assert [store.lease("w").job.id for _ in range(10)] == [job.id for job in made]


def test_high_priority_goes_first_and_low_last(store, clock):
    low, normal, high = submit(
        store, clock, new(priority=Priority.low), new(priority=Priority.normal), new(priority=Priority.high)
    )
    assert [store.lease("w").job.id for _ in range(3)] == [high.id, normal.id, low.id]


def test_a_short_job_overtakes_a_long_one_but_not_for_ever(store, clock):
    (long,) = submit(store, clock, new(cost=100.0))  # counts as submitted 200 s later
    (early,) = submit(store, clock, new(cost=1.0))
    clock.advance(300)
    (late,) = submit(store, clock, new(cost=1.0))
    assert [store.lease("w").job.id for _ in range(3)] == [early.id, long.id, late.id]


def test_owners_get_equal_gpu_seconds_whatever_they_submit(store, clock):
    submit(store, clock, *(new("big", cost=40.0) for _ in range(30)), *(new("small", cost=10.0) for _ in range(120)))
    given = {"big": 0.0, "small": 0.0}
    for _ in range(75):
        lease = store.lease("w")
        given[lease.job.owner] += lease.job.cost
        run(store, lease)
    assert given["big"] == pytest.approx(given["small"], rel=0.07)


def test_a_weight_of_three_means_three_times_the_share(store, clock):
    submit(store, clock, *(new("paid", weight=3.0) for _ in range(60)), *(new("free") for _ in range(60)))
    taken = [store.lease("w").job.owner for _ in range(40)]
    assert taken.count("paid") == pytest.approx(30, abs=1)


def test_an_owner_that_was_idle_saves_up_no_claim(store, clock):
    submit(store, clock, *(new("busy") for _ in range(40)))
    for _ in range(20):
        run(store, store.lease("w"))
    submit(store, clock, *(new("fresh") for _ in range(20)))
    owners = [store.lease("w").job.owner for _ in range(10)]
    assert 4 <= owners.count("busy") <= 6


def test_waiting_raises_a_low_priority_job(store, clock):
    (low,) = submit(store, clock, new(priority=Priority.low))
    clock.advance(1900)
    submit(store, clock, new(priority=Priority.normal))
    store.sweep()
    assert store.lease("w").job.id == low.id
    assert store.get(low.id).priority == Priority.low


def test_two_workers_never_lease_the_same_job(store, clock):
    submit(store, clock, *(new(prompt=str(number)) for number in range(40)))
    taken, lock = [], threading.Lock()

    def work(name):
        while (lease := store.lease(name)) is not None:
            with lock:
                taken.append(lease.job.id)

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(taken) == len(set(taken)) == 40


def test_a_rejected_request_fails_without_another_attempt(store, clock):
    (job,) = submit(store, clock)
    assert store.ended(store.lease("w"), Loss(Fault.job, "invalid_value", "WIDTH is 17")) == "failed"
    assert store.get(job.id).error_message == "WIDTH is 17"


def test_completing_twice_is_one_completion(store, clock):
    submit(store, clock)
    lease = store.lease("w")
    assert run(store, lease) == run(store, lease) == "completed"
    assert store.stats()["finished"] == {"completed": 1}


def test_cancel_ends_a_waiting_job_and_asks_a_running_one(store, clock):
    waiting, running = submit(store, clock, new(prompt="b", cost=20.0), new(prompt="a", cost=1.0))
    lease = store.lease("w")
    assert lease.job.id == running.id
    assert store.cancel(waiting.id).status == "cancelled"
    assert store.cancel(running.id).status == "in_progress"
    assert store.heartbeat(lease) is True
    store.cancelled(lease)
    assert store.get(running.id).status == "cancelled"
    assert store.cancel(running.id).status == "cancelled"
    assert store.lease("w") is None


def test_a_cancel_just_before_the_end_wins(store, clock):
    (job,) = submit(store, clock)
    lease = store.lease("w")
    store.cancel(job.id)
    assert run(store, lease) == "cancelled"
    assert store.get(job.id).video_key is None


def test_a_finished_job_cannot_be_cancelled(store, clock):
    (job,) = submit(store, clock)
    run(store, store.lease("w"))
    with pytest.raises(Conflict, match="completed"):
        store.cancel(job.id)


def test_a_deleted_job_is_gone_at_once_and_its_files_with_the_sweep(store, clock):
    done, running = submit(store, clock, new(), new())
    run(store, store.lease("w"))
    lease = store.lease("w")
    store.delete(done.id)
    store.delete(running.id)
    for job in (done, running):
        with pytest.raises(NotFound):
            store.get(job.id)
    assert store.page(None)[0] == []
    assert store.sweep() == [done.id]  # the running one stops first
    assert store.heartbeat(lease) is True
    store.cancelled(lease)
    assert set(store.sweep()) == {done.id, running.id}
    store.forget([done.id, running.id])
    assert store.sweep() == []


def test_old_videos_expire(store, clock):
    (job,) = submit(store, clock)
    run(store, store.lease("w"))
    assert store.sweep() == []
    clock.advance(8 * 86400)
    assert store.sweep() == [job.id]


def test_an_idempotency_key_makes_one_job(store, clock):
    first, made = store.submit(new(idempotency_key="k"))
    again, made_again = store.submit(new(idempotency_key="k"))
    assert (made, made_again, first.id) == (True, False, again.id)
    with pytest.raises(IdempotencyMismatch):
        store.submit(new(idempotency_key="k", prompt="something else"))
    assert store.submit(new("bob", idempotency_key="k"))[0].id != first.id


def test_racing_submissions_with_one_key_make_one_job(store, clock):
    ids = []
    threads = [
        threading.Thread(target=lambda: ids.append(store.submit(new(idempotency_key="k"))[0].id)) for _ in range(8)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(ids) == 8
    assert len(set(ids)) == 1


def test_other_owners_see_nothing(store, clock):
    (job,) = submit(store, clock)
    for operation in (store.get, store.cancel, store.delete):
        with pytest.raises(NotFound):
            operation(job.id, "bob")
    assert store.page("bob") == ([], False)


def test_pages_follow_each_other_without_gap_or_repeat(store, clock):
    made = [job.id for job in submit(store, clock, *(new(prompt=str(number)) for number in range(7)))]
    clock.now -= 1  # two jobs of the same second
    submit(store, clock)
    seen, after, more = [], None, True
    while more:
        page, more = store.page("alice", after, limit=3, newest_first=False)
        seen += [job.id for job in page]
        after = seen[-1]
    assert len(seen) == 8
    assert seen[:6] == made[:6]
    newest = [job.id for job in store.page("alice", limit=8)[0]]
    assert newest == seen[::-1]
    with pytest.raises(InvalidRequest, match="after"):
        store.page("alice", "video_unknown")


def test_a_full_queue_says_when_to_come_back(database_url, clock):
    store = JobStore(database_url, clock=clock, limits=Limits(max_queued=3, max_queued_per_owner=2))
    store.report_worker("w", "busy", slots=1, busy=1)
    submit(store, clock, new("alice", cost=30.0))
    lease = store.lease("w")
    store.heartbeat(lease, Progress(step=10, steps=20))
    submit(store, clock, new(), new())
    with pytest.raises(QueueFull, match="your queue holds 2") as full:
        store.submit(new())
    assert 15 <= full.value.retry_after <= 17  # half of 30 s is left
    submit(store, clock, new("bob"))
    with pytest.raises(QueueFull, match="the queue holds 3"):
        store.submit(new("carol"))
    store.close()


def test_a_deadline_that_cannot_be_met_is_refused_and_a_missed_one_fails(store, clock):
    submit(store, clock, *(new(cost=50.0) for _ in range(4)))
    with pytest.raises(DeadlineUnreachable, match="expected in 250 s"):
        store.submit(new(cost=50.0, deadline=240.0))
    (job,) = submit(store, clock, new("bob", cost=1.0, deadline=400.0))
    clock.advance(500)
    store.sweep()
    assert store.get(job.id).error_code == "deadline_exceeded"


def test_position_and_eta_follow_the_order_of_leases(store, clock):
    store.report_worker("w", "busy", slots=1, busy=1)
    made = submit(store, clock, *(new(cost=10.0, prompt=str(number)) for number in range(5)))
    (other,) = submit(store, clock, new("bob", cost=10.0))
    assert [store.estimate(job).position for job in made[:1]] == [1]
    assert store.estimate(made[4]).position == 6  # its four predecessors and bob's
    assert store.estimate(other).position <= 2
    assert store.estimate(made[4]).start_seconds == pytest.approx(50.0)
    store.lease("w")
    assert store.estimate(store.get(made[0].id)).position == 0


def test_predictions_learn_from_finished_jobs(store, clock):
    assert store.cost_factors() == {}
    submit(store, clock, *(new(cost=10.0) for _ in range(5)))
    for _ in range(5):
        store.complete(store.lease("w"), "v", 1, {"gpu_seconds": 30.0})
    assert store.cost_factors() == {"wan": pytest.approx(3.0)}


def test_stats_count_what_waits_and_runs(store, clock):
    submit(store, clock, new(cost=10.0), new(cost=10.0), new(cost=5.0, priority=Priority.low))
    lease = store.lease("w")
    store.heartbeat(lease, Progress(step=20, steps=20))
    store.report_worker("w", "busy", 1, 1)
    numbers = store.stats()
    assert numbers["queued"] == {0: 0, 1: 1, 2: 1}
    assert numbers["backlog_queued"] == pytest.approx(15.0)
    assert numbers["backlog_running"] == pytest.approx(0.5)
    assert numbers["workers"] == {"busy": 1}


def demand(store) -> float:
    return store.stats(slot_seconds=180)["demand_slots"]


def test_one_long_job_demands_one_slot(store, clock):
    """Whether it waits or runs: more slots cannot make it faster."""
    submit(store, clock, new(cost=3722.0))
    assert demand(store) == pytest.approx(1)
    lease = store.lease("w")
    assert demand(store) == pytest.approx(1)
    store.heartbeat(lease, Progress(step=40, steps=40))
    assert demand(store) == pytest.approx(1)
    run(store, lease)
    assert demand(store) == 0


def test_short_jobs_share_slots_and_long_ones_do_not(store, clock):
    submit(store, clock, *(new(cost=18.0) for _ in range(20)))
    assert demand(store) == pytest.approx(2)
    submit(store, clock, *(new(cost=900.0) for _ in range(3)))
    assert demand(store) == pytest.approx(5)


def test_a_slow_pod_does_not_raise_the_demand(store, clock):
    submit(store, clock, new(cost=90.0))
    lease = store.lease("w")
    store.heartbeat(lease, Progress(step=10, steps=20, eta_seconds=5000.0))
    assert demand(store) == pytest.approx(90 * (1 - 0.95 / 2) / 180)
    assert store.stats()["backlog_running"] == pytest.approx(5000)


def test_a_webhook_is_due_once_and_again_when_its_sender_dies(store, clock):
    submit(store, clock, new(webhook_url="https://example.com/hook"))
    assert store.due_webhook() is None
    run(store, store.lease("w"))
    delivery = store.due_webhook(hold_seconds=60)
    assert delivery.url == "https://example.com/hook"
    assert "video.completed" in delivery.body
    assert store.due_webhook() is None
    clock.advance(61)
    again = store.due_webhook()
    assert again.attempts == 2
    store.webhook_done(again, None, None)
    clock.advance(1000)
    assert store.due_webhook() is None


def test_changes_wake_a_waiter(store, clock):
    changes = store.database.changes()
    while changes.wait(0.1):
        pass
    threading.Timer(0.2, lambda: store.submit(new())).start()
    assert changes.wait(5) is True
    changes.close()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompt": "else"}, "prompt"),
        ({"priority": Priority.high}, "priority"),
        ({"deadline": 90.0}, "deadline_seconds"),
        ({"deadline": None}, "deadline_seconds"),
        ({"webhook_url": "https://example.com/b"}, "webhook_url"),
    ],
)
def test_a_repeated_key_with_another_wish_is_refused_by_name(store, clock, change, named):
    asked = {"idempotency_key": "k", "deadline": 60.5, "webhook_url": "https://example.com/a"}
    first = store.submit(new(**asked))[0]
    clock.advance(3)
    assert store.submit(new(**asked))[0].id == first.id
    with pytest.raises(IdempotencyMismatch, match=f"with another {named};"):
        store.submit(new(**asked | change))
