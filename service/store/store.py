"""JobStore: every operation on jobs as one transaction.

A transaction of PostgreSQL locks rows in this order, so that no two of them wait for each other:

    clock → one job → its owner → flows of that owner → outbox → counters → calibration

It changes one job; what concerns many jobs (upkeep) takes a transaction for each. Only `upkeep.look_at_clock` locks several
jobs, and it locks nothing after them. Locks that are taken with SKIP LOCKED wait for nobody and may be taken at any place.
Should PostgreSQL roll a transaction back all the same, `Database.transact` runs it again.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, delete, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from service.errors import InvalidRequest, NotFound
from service.store import estimates, leases, outbox, queueing, shares, upkeep
from service.store.database import Database
from service.store.finishing import finish, settle
from service.store.jobs import CANCELLED, COMPLETED, QUEUED, TERMINAL, Estimate, Job, Lease, NewJob, Progress
from service.store.migrations import migrate
from service.store.queueing import Limits
from service.store.schema import calibration, counters, jobs, workers

CROWD_SECONDS = 0.5


def transaction(durable: bool = True):
    """Makes a method of the store one transaction (see `Database.transact`) and gives it the connection."""

    def wrap(method):
        @functools.wraps(method)
        def run(self, *arguments, **more):
            return self.database.transact(lambda conn: method(self, conn, *arguments, **more), durable)

        return run

    return wrap


class JobStore:
    """Jobs in SQLite or PostgreSQL; safe to use from many threads, processes and (PostgreSQL) hosts."""

    def __init__(
        self,
        url: str,
        *,
        limits: Limits | None = None,
        lease_seconds: float = 20,
        max_attempts: int = 3,
        retention: float = 7 * 86400,
        priority_ageing: float = 1800,
        clock: Callable[[], float] | None = None,
    ):
        self.database = Database(url, clock)
        self.limits, self.lease_seconds, self.max_attempts = limits or Limits(), lease_seconds, max_attempts
        self.retention, self.priority_ageing = retention, priority_ageing
        self._crowd: estimates.Crowd | None = None
        self._crowd_seen = -CROWD_SECONDS
        self.version = self.database.transact(migrate)

    @classmethod
    def from_settings(cls, settings) -> "JobStore":
        return cls(
            settings.database,
            limits=Limits(settings.max_queued, settings.max_queued_per_key, settings.ageing),
            lease_seconds=settings.lease_seconds,
            max_attempts=settings.max_attempts,
            retention=settings.retention_seconds,
            priority_ageing=settings.priority_ageing_seconds,
        )

    def close(self) -> None:
        self.database.close()

    # --- the caller's side

    def submit(self, new: NewJob, max_queued: int | None = None) -> tuple[Job, bool]:
        """Store the job and return (job, True), or (the earlier job, False) for a repeated idempotency key."""
        limits = self.limits
        if max_queued is not None:
            limits = Limits(limits.max_queued, min(max_queued, limits.max_queued_per_owner), limits.ageing)
        try:
            return self._submit(new, limits)
        except IntegrityError:  # the same idempotency key won a race
            return self._submit(new, limits)

    @transaction()
    def _submit(self, conn: Connection, new: NewJob, limits: Limits) -> tuple[Job, bool]:
        if (earlier := queueing.replay(conn, new)) is not None:
            return earlier, False
        now = self.database.now(conn)
        queueing.admit(conn, now, new, limits)
        job = queueing.add(conn, now, new, limits)
        self.database.notify(conn, "queued", job.id)
        return job, True

    @transaction()
    def reserve(self, conn: Connection, new: NewJob) -> None:
        """Before files are stored for a job: should it never be submitted, the sweep finds them after an hour."""
        queueing.reserve(conn, self.database.now(conn), new)

    def get(self, job_id: str, owner: str | None = None) -> Job:
        with self.database.read() as conn:
            return self._found(queueing.find(conn, job_id, owner))

    def get_with_estimate(self, job_id: str, owner: str | None = None) -> tuple[Job, Estimate | None]:
        """The job and where it stands; many of these share one look at the queue, at most half a second old."""
        with self.database.read() as conn:
            job = self._found(queueing.find(conn, job_id, owner))
            if job.done:
                return job, None
            now = self.database.now(conn)
            if job.status == QUEUED and time.monotonic() - self._crowd_seen > CROWD_SECONDS:
                self._crowd, self._crowd_seen = estimates.Crowd.load(conn, now), time.monotonic()
            return job, estimates.of_job(conn, now, job, self._crowd)

    def changes_of(self, job_ids: list[str]) -> dict[str, float]:
        """When each of these jobs changed last."""
        with self.database.read() as conn:
            rows = conn.execute(select(jobs.c.id, jobs.c.updated_at).where(jobs.c.id.in_(job_ids)))
            return {job_id: changed for job_id, changed in rows}

    def estimate(self, job: Job) -> Estimate | None:
        with self.database.read() as conn:
            return estimates.of_job(conn, self.database.now(conn), job)

    @staticmethod
    def _found(job: Job | None) -> Job:
        if job is None:
            raise NotFound("no such video", "id")
        return job

    def page(
        self, owner: str | None, after: str | None = None, limit: int = 20, newest_first: bool = True
    ) -> tuple[list[Job], bool]:
        """A page by keyset (created_at, id) and whether more follow; `after` is the last id of the page before."""
        key = tuple_(jobs.c.created_at, jobs.c.id)
        query = select(jobs).where(jobs.c.deleted == 0)
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        with self.database.read() as conn:
            if after is not None:
                cursor = queueing.find(conn, after, owner)
                if cursor is None:
                    raise InvalidRequest("after", after, "the id of an existing video")
                place = (cursor.created_at, cursor.id)
                query = query.where(key < place if newest_first else key > place)
            columns = (jobs.c.created_at, jobs.c.id)
            query = query.order_by(*(column.desc() if newest_first else column for column in columns)).limit(limit + 1)
            rows = [Job.from_row(row) for row in conn.execute(query)]
        return rows[:limit], len(rows) > limit

    def cancel(self, job_id: str, owner: str | None = None) -> Job:
        """Cancel a waiting job at once, ask a running one to stop; Conflict when it is already over."""
        return self._change(job_id, owner, queueing.cancel)

    def delete(self, job_id: str, owner: str | None = None) -> None:
        """Cancel if need be, and hide the job at once; the sweep removes its files."""
        self._change(job_id, owner, queueing.delete)

    @transaction()
    def _change(self, conn: Connection, job_id: str, owner: str | None, operation: Callable[..., Any]) -> Job:
        job = self._found(queueing.find(conn, job_id, owner, lock=True))
        operation(conn, self.database.now(conn), job, self.retention)
        self.database.notify(conn, "cancel", job_id)
        return Job.from_row(conn.execute(select(jobs).where(jobs.c.id == job_id)).one())

    # --- the worker's side

    @transaction(durable=False)
    def lease(self, conn: Connection, worker: str) -> Lease | None:
        """The next job, owned by `worker` for `lease_seconds`; None when nothing waits."""
        taken = leases.lease(conn, self.database.now(conn), worker, self.lease_seconds)
        if taken is not None:
            self.database.notify(conn, "leased", taken.job.id)
        return taken

    @transaction(durable=False)
    def heartbeat(self, conn: Connection, lease: Lease, progress: Progress | None = None) -> bool:
        """Keep the lease and store progress; True when the job shall be cancelled; LeaseLost when it is gone."""
        now = self.database.now(conn)
        cancelled = leases.heartbeat(conn, now, lease.job.id, lease.fence, self.lease_seconds, progress or Progress())
        self.database.notify(conn, "progress", lease.job.id)
        return cancelled

    @transaction()
    def complete(self, conn: Connection, lease: Lease, video_key: str, video_bytes: int, info: dict) -> str:
        """Publish the result and return the status; saying it twice with the same fence is no error."""
        row = conn.execute(select(jobs.c.status, jobs.c.fence).where(jobs.c.id == lease.job.id)).first()
        if row is not None and row.fence == lease.fence and row.status == COMPLETED:
            return COMPLETED  # the connection broke after an earlier commit
        job = leases.held(conn, lease.job.id, lease.fence)
        now = self.database.now(conn)
        status = leases.complete(conn, now, job, self.retention, (video_key, video_bytes), info)
        self.database.notify(conn, "done", job.id)
        return status

    @transaction()
    def fail(self, conn: Connection, lease: Lease, code: str, message: str, retry: bool = True) -> str:
        """End a broken attempt; returns the job's new status. Without `retry` the job fails at once."""
        attempts = self.max_attempts if retry else 0
        job = leases.held(conn, lease.job.id, lease.fence)
        now = self.database.now(conn)
        status = leases.attempt_failed(conn, now, job, attempts, self.retention, code, message[:2000])
        self.database.notify(conn, "queued", job.id)
        return status

    @transaction()
    def cancelled(self, conn: Connection, lease: Lease) -> None:
        """Report that a job was stopped on request."""
        job = leases.held(conn, lease.job.id, lease.fence)
        now = self.database.now(conn)
        settle(conn, now, job)
        finish(conn, now, job, CANCELLED, self.retention)
        self.database.notify(conn, "done", job.id)

    @transaction(durable=False)
    def release(self, conn: Connection, lease: Lease) -> None:
        """Hand a job over to another worker; the attempt does not count."""
        job = leases.held(conn, lease.job.id, lease.fence)
        leases.give_back(conn, self.database.now(conn), job, counted=False, delay=0)
        self.database.notify(conn, "queued", job.id)

    def take_back(self, worker: str) -> list[str]:
        """End the leases of a worker of this name that is no more; returns the jobs, which wait again, uncounted."""

        def one(conn: Connection, now: float) -> str | None:
            if (job := leases.of_worker(conn, worker)) is None:
                return None
            leases.worker_lost(conn, now, job, True, self.max_attempts, self.retention)
            return job.id

        return self._one_by_one(one)

    def anything_waits(self) -> bool:
        """Whether a lease may succeed; cheaper than trying, because it takes no write lock."""
        with self.database.read() as conn:
            return shares.waiting(conn) > 0

    def cancel_requests(self, job_ids: list[str]) -> set[str]:
        """Those of the jobs that shall be cancelled."""
        query = select(jobs.c.id).where(jobs.c.id.in_(job_ids), jobs.c.cancel_requested == 1)
        with self.database.read() as conn:
            return set(conn.execute(query).scalars())

    @transaction()
    def drop_checkpoint(self, conn: Connection, lease: Lease) -> None:
        """Forget a checkpoint that cannot be used; the next attempt starts over."""
        leases.held(conn, lease.job.id, lease.fence)
        values = {"checkpoint_key": None, "checkpoint_step": None}
        conn.execute(update(jobs).where(jobs.c.id == lease.job.id).values(**values))

    def is_held(self, job_id: str, fence: int) -> bool:
        """Whether this lease is the job's newest and has not run out."""
        with self.database.read() as conn:
            job = conn.execute(select(jobs).where(jobs.c.id == job_id)).first()
            now = self.database.now(conn)
        return job is not None and job.fence == fence and job.status == "in_progress" and job.lease_until > now

    def is_over(self, job_id: str) -> bool:
        """Whether nothing will ever run for this job again."""
        with self.database.read() as conn:
            status = conn.execute(select(jobs.c.status).where(jobs.c.id == job_id)).scalar()
        return status is None or status in TERMINAL

    @transaction(durable=False)
    def report_worker(self, conn: Connection, worker: str, state: str, slots: int, busy: int) -> None:
        """Tell that the worker lives; state is idle, busy, draining or waiting (its Triton is not ready)."""
        values = {"state": state, "slots": slots, "busy": busy, "seen_at": self.database.now(conn)}
        shares.upsert(conn, workers, {"id": worker, **values}, ["id"], values)

    @transaction(durable=False)
    def remove_worker(self, conn: Connection, worker: str) -> None:
        conn.execute(delete(workers).where(workers.c.id == worker))

    # --- upkeep and numbers

    def sweep(self) -> list[str]:
        """Lost leases, late jobs, ageing; returns the ids of jobs whose files may go (then call `forget`)."""
        self._look_at_clock()
        self._one_by_one(lambda conn, now: upkeep.reap(conn, now, self.max_attempts, self.retention))
        self._one_by_one(lambda conn, now: upkeep.fail_late(conn, now, self.retention))
        self._one_by_one(lambda conn, now: upkeep.promote(conn, now, self.priority_ageing))
        with self.database.read() as conn:
            return upkeep.expired(conn, self.database.now(conn))

    @transaction(durable=False)
    def _look_at_clock(self, conn: Connection) -> None:
        now = self.database.now(conn)
        upkeep.look_at_clock(conn, now, self.lease_seconds)
        upkeep.drop_dead_workers(conn, now)

    def _one_by_one(self, change: Callable[[Connection, float], str | None]) -> list[str]:
        """`change` a batch of jobs, each in a transaction of its own, until it finds none."""

        def work(conn: Connection) -> str | None:
            job_id = change(conn, self.database.now(conn))
            if job_id is not None:
                self.database.notify(conn, "queued", job_id)
            return job_id

        changed: list[str] = []
        while len(changed) < upkeep.BATCH and (job_id := self.database.transact(work, durable=False)) is not None:
            changed.append(job_id)
        return changed

    def with_leftovers(self) -> list[str]:
        """Finished jobs whose checkpoints are still stored; remove these, then call `leftovers_removed`."""
        with self.database.read() as conn:
            return upkeep.with_leftovers(conn)

    @transaction(durable=False)
    def leftovers_removed(self, conn: Connection, job_id: str) -> None:
        values = {"checkpoint_key": None, "checkpoint_step": None}
        conn.execute(update(jobs).where(jobs.c.id == job_id, jobs.c.status.in_(TERMINAL)).values(**values))

    @transaction()
    def forget(self, conn: Connection, job_ids: list[str]) -> None:
        upkeep.forget(conn, job_ids)

    def stats(self, slot_seconds: float = 180.0) -> dict:
        """What the metrics and the page show of the whole queue; `slot_seconds`: see `Settings`."""
        with self.database.read() as conn:
            numbers = estimates.stats(conn, self.database.now(conn), slot_seconds)
            numbers["finished"] = {name.removeprefix("jobs_"): value for name, value in conn.execute(select(counters))}
            return numbers

    def cost_factor(self) -> float:
        """How much longer jobs really take than the formula says; 1 before the first one."""
        with self.database.read() as conn:
            value = conn.execute(select(calibration.c.log_ratio)).scalar()
        return math.exp(value) if value is not None else 1.0

    def ping(self) -> None:
        """Unavailable when the database does not answer."""
        with self.database.read() as conn:
            conn.execute(select(1))

    # --- webhooks

    @transaction(durable=False)
    def due_webhook(self, conn: Connection, hold_seconds: float = 60) -> outbox.Delivery | None:
        """A delivery that is due, held back from other senders for `hold_seconds`."""
        return outbox.due(conn, self.database.now(conn), hold_seconds)

    @transaction()
    def webhook_done(
        self, conn: Connection, delivery: outbox.Delivery, error: str | None, retry_in: float | None
    ) -> None:
        outbox.done(conn, self.database.now(conn), delivery, error, retry_in)
