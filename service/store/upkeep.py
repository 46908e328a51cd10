"""Housekeeping that any process may do at any time: expired leases, ageing, passed deadlines, old videos."""

from sqlalchemy import Column, Connection, delete, select, update

from service.store import leases, shares
from service.store.finishing import finish
from service.store.jobs import FAILED, TERMINAL, Job
from service.store.schema import IS_QUEUED, IS_RUNNING, MAY_RISE, jobs, outbox, workers

BATCH = 200


def _locked(conn: Connection, first: Column, *where) -> list[Job]:
    """Up to a batch of jobs, by the column that their index begins with (by another, SQLite would scan the table)."""
    query = select(jobs).where(*where).order_by(first).limit(BATCH).with_for_update(skip_locked=True)
    return [Job.from_row(row) for row in conn.execute(query)]


def reap(conn: Connection, now: float, max_attempts: int, retention: float) -> list[tuple[str, str]]:
    """Take back the jobs of workers that fell silent; returns (job id, new status)."""
    lost = _locked(conn, jobs.c.lease_until, IS_RUNNING, jobs.c.lease_until < now)
    message = "the worker stopped answering"
    return [
        (job.id, leases.attempt_failed(conn, now, job, max_attempts, retention, "worker_lost", message)) for job in lost
    ]


def fail_late(conn: Connection, now: float, retention: float) -> list[str]:
    """Fail waiting jobs whose deadline has passed."""
    late = _locked(conn, jobs.c.deadline, IS_QUEUED, jobs.c.deadline.is_not(None), jobs.c.deadline <= now)
    for job in late:
        shares.dequeued(conn, job.owner, job.level, job.cost)
        finish(conn, now, job, FAILED, retention, **leases._DEADLINE)
    return [job.id for job in late]


def promote(conn: Connection, now: float, after: float) -> int:
    """Raise jobs that waited `after` seconds at their level by one level; returns how many."""
    since = jobs.c.created_at + after * (jobs.c.priority - jobs.c.level + 1)
    old = _locked(conn, jobs.c.created_at, IS_QUEUED, MAY_RISE, jobs.c.created_at <= now - after, since <= now)
    for job in sorted(old, key=lambda job: (job.owner, job.level)):
        shares.dequeued(conn, job.owner, job.level, job.cost)
        conn.execute(update(jobs).where(jobs.c.id == job.id).values(level=job.level - 1))
        shares.enqueued(conn, job.owner, job.level - 1, job.cost)
    return len(old)


def expired(conn: Connection, now: float) -> list[str]:
    """Finished jobs whose time is over; their files must go before `forget`."""
    query = select(jobs.c.id).where(jobs.c.expires_at.is_not(None), jobs.c.expires_at <= now)
    return list(conn.execute(query.where(jobs.c.status.in_(TERMINAL)).limit(BATCH)).scalars())


def forget(conn: Connection, job_ids: list[str]) -> None:
    """Remove rows for good."""
    conn.execute(delete(outbox).where(outbox.c.job_id.in_(job_ids)))
    conn.execute(delete(jobs).where(jobs.c.id.in_(job_ids), jobs.c.status.in_(TERMINAL)))


def drop_dead_workers(conn: Connection, now: float) -> None:
    conn.execute(delete(workers).where(workers.c.seen_at < now - 3600))
