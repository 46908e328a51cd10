"""Keys, rates and budgets in the database, on both engines."""

import threading

import pytest

from service.errors import BudgetSpent, InvalidRequest, NotFound
from service.store import JobStore, NewJob, keys
from service.store.budgets import DAY, KEPT_DAYS
from service.store.faults import HANDED_OVER
from tests.service.store.making import new, pass_seconds, run, submit


def test_a_key_is_found_by_its_digest_until_it_is_revoked_and_nothing_stored_tells_it(store, clock):
    assert not store.has_keys()
    key = keys.generate()
    made = store.create_key(key, "alice", {"weight": 2.0}, "root")
    assert store.find_key(keys.digest(key)) == made
    assert store.find_key(keys.digest(key + "x")) is None
    assert made.limits == {"weight": 2.0}
    with store.database.read() as conn:
        rows = [tuple(row) for row in conn.exec_driver_sql("SELECT * FROM api_keys")]
    assert key not in str(rows)
    assert len(key) - len(made.hint) > 32  # what is shown of it helps nobody
    clock.advance(5)
    assert store.revoke_key(made.id).revoked_at == clock.now
    clock.advance(5)
    assert store.revoke_key(made.id).revoked_at == clock.now - 5
    assert store.find_key(keys.digest(key)) is None
    assert [row.id for row in store.stored_keys()] == [made.id]
    assert store.has_keys()
    with pytest.raises(NotFound):
        store.revoke_key("key_none")


def test_a_day_is_charged_what_was_used_and_a_new_day_begins_at_nothing(store, clock):
    first, second, _ = submit(store, clock, new(cost=40.0), new(cost=40.0), new(owner="bob", cost=7.0))
    assert store.usage("alice").promised == 80.0
    lease = next(lease for lease in iter(lambda: store.lease("w"), None) if lease.job.id == first.id)
    store.complete(lease, "k", 1, {"gpu_seconds": 31.0})
    store.cancel(second.id)
    usage = store.usage("alice")
    assert (usage.used, usage.days[0].videos) == (31.0, 1)
    assert store.usage("bob").used == 0.0
    clock.advance(DAY)
    later = store.usage("alice", days=2)
    assert later.used == 0.0
    assert [(day.gpu_seconds, day.videos) for day in later.days] == [(31.0, 1)]
    assert later.renews_at - clock.now <= DAY
    clock.advance((KEPT_DAYS + 1) * DAY)
    store.sweep()
    assert store.usage("alice", days=500).days == []


def test_a_budget_counts_what_was_used_and_what_is_promised(store, clock):
    store.submit(new(cost=60.0), budget=100.0)
    with pytest.raises(
        BudgetSpent, match=r"'alice' is 100 GPU-seconds: 0 are used, 60 promised .* takes 50; it renews at"
    ):
        store.submit(new(cost=50.0), budget=100.0)
    store.submit(new(owner="bob", cost=50.0), budget=100.0)
    lease = next(lease for lease in iter(lambda: store.lease("w"), None) if lease.job.owner == "alice")
    store.complete(lease, "k", 1, {"gpu_seconds": 45.0})
    store.submit(new(cost=50.0), budget=100.0)
    with pytest.raises(BudgetSpent) as refused:
        store.submit(new(cost=50.0), budget=100.0)
    assert refused.value.retry_after == DAY - clock.now % DAY
    store.submit(new(cost=50.0))  # a key of the same name without a budget
    with pytest.raises(InvalidRequest, match="at most 10, the whole budget"):
        store.submit(new(cost=11.0), budget=10.0)


def test_a_lease_that_was_lost_and_taken_up_again_is_counted_once(store, clock):
    submit(store, clock, new(cost=100.0))
    lease = store.lease("w")
    pass_seconds(store, clock, 30)
    assert store.get(lease.job.id).status == "queued"
    assert 0 < store.usage("alice").used <= 30
    store.heartbeat(lease)
    assert store.usage("alice").used == 0.0
    run(store, lease)
    assert store.usage("alice").used == 100.0


def test_an_attempt_that_was_handed_over_is_counted(store, clock):
    submit(store, clock, new(cost=100.0))
    lease = store.lease("w")
    clock.advance(12)
    store.ended(lease, HANDED_OVER)
    assert store.usage("alice").used == 12.0


def together(count, work):
    """`work(number)` in so many threads at once; returns what they raised."""
    errors, start = [], threading.Barrier(count)

    def one(number):
        start.wait()
        try:
            work(number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return errors


def test_submissions_at_once_at_several_gateways_never_exceed_the_budget(database_url, clock):
    gateways = [JobStore(database_url, clock=clock) for _ in range(3)]
    refused = together(
        24, lambda n: gateways[n % 3].submit(NewJob("alice", {"prompt": str(n), "steps": 1}, 10.0), budget=75.0)
    )
    assert [type(error) for error in refused] == [BudgetSpent] * 17
    assert gateways[0].usage("alice").promised == 70.0
    [store.close() for store in gateways]


def test_jobs_that_end_at_once_are_all_counted(database_url, clock):
    stores = [JobStore(database_url, clock=clock) for _ in range(3)]
    submit(stores[0], clock, *[new(cost=10.0) for _ in range(18)])
    leases = [stores[0].lease("w") for _ in range(18)]
    assert together(18, lambda n: stores[n % 3].complete(leases[n], "k", 1, {"gpu_seconds": 2.5})) == []
    assert stores[0].usage("alice").used == 45.0
    assert stores[0].usage("alice").days[0].videos == 18
    [store.close() for store in stores]


def test_gateways_take_from_one_bucket_that_refills(database_url, clock):
    stores = [JobStore(database_url, clock=clock) for _ in range(3)]
    taken = []
    assert together(30, lambda n: taken.append(stores[n % 3].take_requests("alice", 60)[0])) == []
    assert sum(taken) == 60
    assert stores[0].take_requests("alice", 60) == (0, 1)
    assert stores[1].take_requests("bob", 60) == (3, 0)
    clock.advance(2)
    assert stores[2].take_requests("alice", 60) == (2, 0)
    [store.close() for store in stores]
