"""Leases that are lost, given back or outlive a jump of time, on both engines."""

import pytest

from service.errors import LeaseLost
from service.store import Progress
from service.store.faults import HANDED_OVER
from tests.service.store.making import BROKE, REJECTED, new, pass_seconds, run, submit


def test_an_expired_lease_goes_to_another_worker_and_the_first_can_write_nothing(store, clock):
    (job,) = submit(store, clock)
    stale = store.lease("w1")
    store.heartbeat(stale, Progress(step=7, steps=20, checkpoint_key="c", checkpoint_step=6))
    pass_seconds(store, clock, 21)
    fresh = store.lease("w2")
    assert fresh.job.id == job.id
    assert fresh.fence == stale.fence + 1
    assert (fresh.job.checkpoint_key, fresh.job.checkpoint_step) == ("c", 6)
    for write in (
        lambda: store.heartbeat(stale, Progress(step=9)),
        lambda: run(store, stale),
        lambda: store.ended(stale, BROKE),
        lambda: store.cancelled(stale),
        lambda: store.ended(stale, HANDED_OVER),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert store.get(job.id).step == 6  # where it goes on
    assert run(store, fresh) == "completed"
    assert store.get(job.id).video_key == f"{job.id}-2.mp4"


def test_a_late_heartbeat_keeps_a_job_that_nobody_took(store, clock):
    (_job,) = submit(store, clock)
    lease = store.lease("w1")
    clock.advance(100)
    assert store.heartbeat(lease) is False
    assert run(store, lease) == "completed"


def test_a_job_that_never_advances_fails_after_its_tenth_lost_attempt(store, clock):
    (job,) = submit(store, clock)
    for _ in range(10):
        assert store.lease("w") is not None
        pass_seconds(store, clock, 60)
    failed = store.get(job.id)
    assert (failed.status, failed.error_code, failed.losses) == ("failed", "worker_lost", 9)
    assert store.lease("w") is None


def test_losses_after_progress_never_fail_a_job(store, clock):
    (job,) = submit(store, clock)
    for step in range(1, 30):
        lease = store.lease("w")
        store.heartbeat(lease, Progress(step=step, checkpoint_key=f"c{step}", checkpoint_step=step))
        pass_seconds(store, clock, 60)
    assert (store.get(job.id).status, store.get(job.id).attempts) == ("queued", 0)


def test_a_worker_whose_lease_ran_out_completes_its_job_if_nobody_took_it(store, clock):
    (job,) = submit(store, clock)
    lease = store.lease("w1")
    pass_seconds(store, clock, 60)
    assert store.get(job.id).status == "queued"
    assert run(store, lease) == "completed"
    assert (store.get(job.id).attempts, store.history(job.id), store.stats()["queued"]) == (1, [], {0: 0, 1: 0, 2: 0})
    assert run(store, lease) == "completed"  # said twice


def test_a_heartbeat_takes_up_a_lease_that_ran_out_but_not_one_that_was_given_back(store, clock):
    lost, given_back = submit(store, clock, new(), new())
    leases = store.lease("w1"), store.lease("w1")
    store.ended(leases[1], HANDED_OVER)
    pass_seconds(store, clock, 60)
    assert [store.get(job.id).status for job in (lost, given_back)] == ["queued", "queued"]
    assert store.heartbeat(leases[0]) is False
    assert store.get(lost.id).status == "in_progress"
    with pytest.raises(LeaseLost):
        store.heartbeat(leases[1])


def test_leases_of_living_workers_outlive_three_outages_in_a_row(store, clock):
    (job,) = submit(store, clock)
    lease = store.lease("w")
    store.sweep()
    for _ in range(3):
        clock.advance(30)  # nobody can say anything
        store.sweep()
        clock.advance(1)
        store.sweep()
    assert store.heartbeat(lease) is False
    assert (store.get(job.id).status, store.get(job.id).fence, store.history(job.id)) == ("in_progress", 1, [])


def test_a_handed_over_job_keeps_its_place_and_its_attempts(store, clock):
    first, _second = submit(store, clock, new(), new())
    for _ in range(5):
        lease = store.lease("w")
        assert lease.job.id == first.id
        store.ended(lease, HANDED_OVER)
    assert store.get(first.id).attempts == 0


def test_a_cancelled_job_whose_worker_died_is_not_run_again(store, clock):
    (job,) = submit(store, clock)
    store.lease("w")
    store.cancel(job.id)
    pass_seconds(store, clock, 60)
    assert store.get(job.id).status == "cancelled"


def test_a_worker_that_starts_again_gives_its_leases_back_at_once_and_uncounted(store, clock):
    mine, others = submit(store, clock, new(), new())
    stale, kept = store.lease("w1"), store.lease("w2")
    assert store.take_back("w1") == [mine.id]
    assert [store.get(job.id).status for job in (mine, others)] == ["queued", "in_progress"]
    fresh = store.lease("w1")
    assert (fresh.job.id, fresh.job.attempts, fresh.fence) == (mine.id, 1, 2)
    with pytest.raises(LeaseLost):
        run(store, stale)
    assert (run(store, fresh), run(store, kept)) == ("completed", "completed")


def test_a_job_that_takes_its_worker_down_each_time_fails_some_day(store, clock):
    (job,) = submit(store, clock)
    for _ in range(20):
        if store.lease("w") is not None:
            store.take_back("w")
        clock.advance(40)
    assert (store.get(job.id).status, store.get(job.id).error_code) == ("failed", "worker_lost")


@pytest.mark.parametrize("jump", [-600, 600], ids=["back", "forward"])
def test_a_clock_that_is_set_takes_no_job_from_a_living_worker_and_frees_that_of_a_dead_one(store, clock, jump):
    living, dead = submit(store, clock, new(), new())
    store.sweep()
    lease = store.lease("w1")
    assert (lease.job.id, store.lease("w2").job.id) == (living.id, dead.id)
    clock.advance(jump)
    for _ in range(6):  # 24 seconds, a lease and a bit
        store.sweep()
        store.heartbeat(lease)
        clock.advance(4)
    store.sweep()
    assert [store.get(job.id).status for job in (living, dead)] == ["in_progress", "queued"]
    assert store.get(dead.id).attempts == 0
    assert store.lease("w3").job.id == dead.id


def test_a_pause_between_attempts_outlives_no_clock_that_is_set_back(store, clock):
    (job,) = submit(store, clock)
    store.ended(store.lease("w"), BROKE)
    assert store.lease("w") is None
    clock.advance(-600)
    assert store.lease("w").job.id == job.id


def test_a_lease_that_ran_out_while_the_database_was_away_is_not_counted(store, clock):
    (job,) = submit(store, clock)
    store.lease("w")
    store.sweep()
    clock.advance(120)  # nobody could sweep
    store.sweep()
    assert store.get(job.id).status == "in_progress"
    pass_seconds(store, clock, 21)
    assert (store.get(job.id).status, store.get(job.id).attempts) == ("queued", 0)


def test_a_job_that_was_handed_over_shows_the_step_of_its_checkpoint(store, clock):
    (job,) = submit(store, clock)
    lease = store.lease("w")
    store.heartbeat(lease, Progress(step=9, steps=20, checkpoint_key="c", checkpoint_step=8))
    store.ended(lease, HANDED_OVER)
    assert store.get(job.id).step == 8
    assert store.lease("w").job.step == 8


def test_finished_jobs_with_stored_checkpoints_are_named_until_these_are_removed(store, clock):
    (job,) = submit(store, clock)
    lease = store.lease("w")
    store.heartbeat(lease, Progress(checkpoint_key="c", checkpoint_step=8))
    assert store.with_leftovers() == []
    store.ended(lease, REJECTED)
    assert store.with_leftovers() == [job.id]
    store.leftovers_removed(job.id)
    assert store.with_leftovers() == []
