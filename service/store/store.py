"""JobStore: every operation on jobs as one transaction.

A transaction of PostgreSQL locks rows in this order, so that no two of them wait for each other:

    clock → one job → its owner → flows and usage of that owner → outbox → counters → calibrations

It changes one job; what concerns many jobs (upkeep) takes a transaction for each. Only `upkeep.look_at_clock` locks several
jobs, and it locks nothing after them. Locks that are taken with SKIP LOCKED wait for nobody and may be taken at any place.
Should PostgreSQL roll a transaction back all the same, `Database.transact` runs it again.
"""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, delete, or_, select, update
from sqlalchemy.exc import IntegrityError

from service.errors import NotFound, Unavailable
from service.store import estimates, faults, leases, models, outbox, queueing, shares
from service.store.accounts import Accounts
from service.store.database import Database, transaction
from service.store.finishing import finish, settle
from service.store.housekeeping import Housekeeping
from service.store.jobs import (
    CANCELLED,
    COMPLETED,
    QUEUED,
    TERMINAL,
    Bounds,
    Estimate,
    Job,
    Lease,
    Loss,
    NewJob,
    Priority,
    Progress,
)
from service.store.migrations import migrate
from service.store.queueing import Limits
from service.store.schema import IS_QUEUED, counters, jobs, troubles, workers

CROWD_SECONDS = 0.5
TROUBLE_SECONDS = 20.0  # how long a report of trouble counts; who is still in it reports again
MIGRATION_SECONDS = 600.0


class JobStore(Accounts, Housekeeping):
    """Jobs in SQLite or PostgreSQL; safe to use from many threads, processes and (PostgreSQL) hosts."""

    def __init__(
        self,
        url: str,
        *,
        limits: Limits | None = None,
        lease_seconds: float = 20,
        bounds: Bounds | None = None,
        retention: float = 7 * 86400,
        priority_ageing: float = 1800,
        clock: Callable[[], float] | None = None,
        connections: int = 10,
        listen_url: str = "",
        model: str = "wan",
    ):
        self.database = Database(url, clock, connections, listen_url)
        self.limits, self.lease_seconds, self.bounds = limits or Limits(), lease_seconds, bounds or Bounds()
        self.retention, self.priority_ageing = retention, priority_ageing
        self.model = model  # of jobs that name none, and of the worker that has this store
        self._crowds: dict[str, tuple[float, estimates.Crowd]] = {}  # model -> when it was looked at, what was seen
        self.version = self.database.transact(migrate, patience=MIGRATION_SECONDS)

    @classmethod
    def from_settings(cls, settings, connections: int = 10) -> "JobStore":
        return cls(
            settings.database,
            limits=Limits(settings.max_queued, settings.max_queued_per_key, settings.ageing, settings.policy),
            lease_seconds=settings.lease_seconds,
            bounds=Bounds(settings.max_attempts, settings.max_losses, settings.max_preemptions),
            retention=settings.retention_seconds,
            priority_ageing=settings.priority_ageing_seconds,
            connections=connections,
            listen_url=settings.listen_url,
            model=settings.model_name,
        )

    def close(self) -> None:
        self.database.close()

    # --- the caller's side

    def submit(self, new: NewJob, max_queued: int | None = None, budget: float | None = None) -> tuple[Job, bool]:
        """Store the job and return (job, True), or (the earlier job, False) for a repeated idempotency key.

        `budget`: GPU-seconds that the owner may use a day.
        """
        limits = replace(self.limits, budget=budget)
        if max_queued is not None:
            limits = replace(limits, max_queued_per_owner=min(max_queued, limits.max_queued_per_owner))
        new = new if new.model else replace(new, model=self.model)
        try:
            job, made = self._submit(new, limits)
        except IntegrityError:  # the same idempotency key won a race
            job, made = self._submit(new, limits)
        if made and (job.priority == Priority.high or job.deadline is not None):
            with contextlib.suppress(Unavailable):  # the next sweep does it
                self._make_room()
        return job, made

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

    def finished_like(self, owner: str, model: str, request: dict) -> Job | None:
        """The newest stored video of the owner that was made from exactly this request."""
        same = [jobs.c.owner == owner, jobs.c.model == model, jobs.c.status == COMPLETED, jobs.c.deleted == 0]
        media = request.get("media", {}).values()  # each job has its files elsewhere; their digests tell
        same += [jobs.c.request.contains(file["sha256"]) for file in media] or [jobs.c.request == json.dumps(request)]
        query = select(jobs).where(*same).order_by(jobs.c.created_at.desc())
        with self.database.read() as conn:
            rows = conn.execute(query.where(jobs.c.expires_at > self.database.now(conn)))
            found = (Job.from_row(row) for row in rows)
            wanted = queueing.comparable(json.loads(json.dumps(request)))  # as rows hold it: lists, not tuples
            return next((job for job in found if queueing.comparable(job.request) == wanted), None)

    def get_with_estimate(self, job_id: str, owner: str | None = None) -> tuple[Job, Estimate | None]:
        """The job and where it stands; many of these share one look at the queue, at most half a second old."""
        with self.database.read() as conn:
            job = self._found(queueing.find(conn, job_id, owner))
            if job.done:
                return job, None
            now = self.database.now(conn)
            return job, estimates.of_job(conn, now, job, self._crowd(conn, now, job) if job.status == QUEUED else None)

    def _crowd(self, conn: Connection, now: float, job: Job) -> estimates.Crowd:
        seen, crowd = self._crowds.get(job.model, (-CROWD_SECONDS, None))
        if crowd is None or time.monotonic() - seen > CROWD_SECONDS:
            crowd = estimates.Crowd.load(conn, now, job.model)
            self._crowds[job.model] = (time.monotonic(), crowd)
        return crowd

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
        with self.database.read() as conn:
            return queueing.page(conn, owner, after, limit, newest_first)

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
        """The next job of this store's model, owned by `worker` for `lease_seconds`; None when nothing waits."""
        taken = leases.lease(conn, self.database.now(conn), worker, self.model, self.lease_seconds)
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
        now = self.database.now(conn)
        job = leases.held(conn, now, lease.job.id, lease.fence, self.lease_seconds)
        status = leases.complete(conn, now, job, self.retention, (video_key, video_bytes), info)
        self.database.notify(conn, "done", job.id)
        return status

    @transaction()
    def ended(self, conn: Connection, lease: Lease, loss: Loss) -> str:
        """End an attempt that made no video; returns the job's new status."""
        now = self.database.now(conn)
        job = leases.held(conn, now, lease.job.id, lease.fence, self.lease_seconds)
        status = faults.ended(conn, now, job, loss, self.bounds, self.retention)
        self.database.notify(conn, "queued", job.id)
        return status

    @transaction()
    def cancelled(self, conn: Connection, lease: Lease) -> None:
        """Report that a job was stopped on request."""
        now = self.database.now(conn)
        job = leases.held(conn, now, lease.job.id, lease.fence, self.lease_seconds)
        settle(conn, now, job)
        finish(conn, now, job, CANCELLED, self.retention)
        self.database.notify(conn, "done", job.id)

    def take_back(self, worker: str) -> list[str]:
        """End the leases of a worker of this name that is no more; returns the jobs, which wait again."""

        def one(conn: Connection, now: float) -> str | None:
            if (job := leases.of_worker(conn, worker)) is None:
                return None
            faults.ended(conn, now, job, faults.RESTARTED, self.bounds, self.retention)
            return job.id

        return self._one_by_one(one)

    def acquit(self, worker: str) -> list[str]:
        """The worker proved healthy: what broke on it was the fault of these jobs."""
        return self._one_by_one(lambda conn, now: faults.acquit(conn, now, worker, self.bounds, self.retention))

    def history(self, job_id: str) -> list[dict]:
        """The attempts of a job that ended without a video."""
        with self.database.read() as conn:
            return faults.history(conn, job_id)

    def canary(self, worker: str) -> Job | None:
        """The model's cheapest completed job, of another worker if there is one: its frames are known, and can be made again."""
        query = select(jobs).where(jobs.c.status == COMPLETED, jobs.c.deleted == 0, jobs.c.model == self.model)
        with self.database.read() as conn:
            row = conn.execute(query.order_by(jobs.c.worker == worker, jobs.c.cost).limit(1)).first()
            return Job.from_row(row) if row else None

    @transaction(durable=False)
    def report_trouble(self, conn: Connection, name: str) -> None:
        """Tell everybody that something they share (`store`) cannot be used at the moment."""
        until = self.database.now(conn) + TROUBLE_SECONDS
        shares.upsert(conn, troubles, {"name": name, "until": until}, ["name"], {"until": until})

    def troubled(self, name: str) -> bool:
        """Whether anybody reported trouble lately: find out for yourself before you rely on it."""
        with self.database.read() as conn:
            until = conn.execute(select(troubles.c.until).where(troubles.c.name == name)).scalar()
            return until is not None and 0 < until - self.database.now(conn) <= TROUBLE_SECONDS

    def anything_waits(self) -> bool:
        """Whether a lease may succeed; cheaper than trying, because it takes no write lock."""
        with self.database.read() as conn:
            return (
                conn.execute(select(jobs.c.id).where(IS_QUEUED, jobs.c.model == self.model).limit(1)).first()
                is not None
            )

    def stop_requests(self, job_ids: list[str]) -> dict[str, bool]:
        """Those of the jobs that shall stop; True: cancelled, False: to make room for an urgent one."""
        asked = or_(jobs.c.cancel_requested == 1, jobs.c.preempt_requested == 1)
        query = select(jobs.c.id, jobs.c.cancel_requested).where(jobs.c.id.in_(job_ids), asked)
        with self.database.read() as conn:
            return {job_id: bool(cancelled) for job_id, cancelled in conn.execute(query)}

    @transaction()
    def drop_checkpoint(self, conn: Connection, lease: Lease) -> None:
        """Forget a checkpoint that cannot be used; the next attempt starts over."""
        leases.held(conn, self.database.now(conn), lease.job.id, lease.fence, self.lease_seconds)
        values = {"checkpoint_key": None, "checkpoint_step": None}
        conn.execute(update(jobs).where(jobs.c.id == lease.job.id).values(**values))

    @transaction()
    def remake(self, conn: Connection, job_id: str) -> Job:
        """Queue a completed job once more, as it was asked for: its video is lost or no longer what it was."""
        queueing.remake(conn, self.database.now(conn), self._found(queueing.find(conn, job_id, lock=True)))
        self.database.notify(conn, "queued", job_id)
        return Job.from_row(conn.execute(select(jobs).where(jobs.c.id == job_id)).one())

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
    def report_worker(self, conn: Connection, worker: str, state: str, slots: int, busy: int, node: str = "") -> None:
        """Tell that the worker lives; state is idle, busy, draining, waiting (for Triton or the store) or sick."""
        values = {
            "state": state,
            "slots": slots,
            "busy": busy,
            "seen_at": self.database.now(conn),
            "node": node or None,
            "model": self.model,
        }
        shares.upsert(conn, workers, {"id": worker, **values}, ["id"], values)

    @transaction(durable=False)
    def remove_worker(self, conn: Connection, worker: str) -> None:
        conn.execute(delete(workers).where(workers.c.id == worker))

    # --- numbers

    @transaction(durable=False)
    def announce(self, conn: Connection, card: dict, costs: dict) -> None:
        """Say what this store's model can do and costs; see `models`."""
        models.announce(conn, self.database.now(conn), self.model, card, costs)

    def announced(self) -> dict[str, tuple[dict, dict]]:
        """Card and costs of every model that workers ever announced, by name."""
        with self.database.read() as conn:
            return models.announced(conn)

    def live_workers(self) -> dict[str, int]:
        """Workers of each model that were seen lately."""
        with self.database.read() as conn:
            return models.live_workers(conn, self.database.now(conn))

    def stats(self, slot_seconds: float = 180.0, model: str | None = None) -> dict:
        """What the metrics show of one model's queue, and what is counted for all; `slot_seconds`: see `Settings`."""
        with self.database.read() as conn:
            numbers = estimates.stats(conn, self.database.now(conn), model or self.model, slot_seconds)
            counts: dict[str, int] = {name: value for name, value in conn.execute(select(counters))}
        for kind, prefix in (("finished", "jobs_"), ("faults", "faults_")):
            numbers[kind] = {name[len(prefix) :]: value for name, value in counts.items() if name.startswith(prefix)}
        return numbers

    def cost_factors(self) -> dict[str, float]:
        """How much longer jobs of a model really take than the formula says; none before its first one."""
        with self.database.read() as conn:
            return models.factors(conn)

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
