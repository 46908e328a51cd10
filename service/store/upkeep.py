"""Housekeeping that any process may do at any time: lost leases, ageing, passed deadlines, old videos.

What changes a job changes one per transaction (the reason is the order of locks, see `service.store.store`) and returns its
id, None when there is none left.
"""

from sqlalchemy import Column, Connection, delete, func, or_, select, update

from service.store import faults, shares
from service.store.finishing import finish
from service.store.jobs import FAILED, TERMINAL, Bounds, Job
from service.store.schema import IS_QUEUED, IS_RUNNING, MAY_RISE, attempts, clock, jobs, outbox, workers

BATCH = 200
JUMP_SECONDS = 10.0  # twice the pause between two sweeps of a worker, half a lease
MOST_EXCUSED = 10  # jumps that a lease outlives without being renewed; else none would end while time jumps


def _locked(conn: Connection, first: Column, *where) -> Job | None:
    """A job that nobody works at, by the column that its index begins with (by another, SQLite would scan the table)."""
    query = select(jobs).where(*where).order_by(first).limit(1).with_for_update(skip_locked=True)
    row = conn.execute(query).first()
    return Job.from_row(row) if row else None


def _jumped(now: float, seen: float | None) -> bool:
    return seen is not None and abs(now - seen) > JUMP_SECONDS


def look_at_clock(conn: Connection, now: float, seconds: float) -> None:
    """Begin all leases anew when time made a jump since anybody looked, at most MOST_EXCUSED times in a row for each.

    Either the clock was set, forward or back, or nobody could renew anything: database away, machine asleep, everything
    stopped. Leases would seem lost whose workers live, or held for hours whose workers died. A worker that lives renews its
    lease in time.
    """
    if _jumped(now, conn.execute(select(clock.c.seen_at).with_for_update()).scalar()):
        unsure = or_(jobs.c.excused < MOST_EXCUSED, jobs.c.lease_until > now + seconds)
        values = {"lease_until": now + seconds, "updated_at": now, "excused": jobs.c.excused + 1}
        conn.execute(update(jobs).where(IS_RUNNING, unsure).values(**values))
    shares.upsert(conn, clock, {"id": 1, "seen_at": now}, ["id"], {"seen_at": now})


def reap(conn: Connection, now: float, bounds: Bounds, retention: float) -> str | None:
    """Take back a job whose worker fell silent."""
    if _jumped(now, conn.execute(select(clock.c.seen_at)).scalar()):
        return None  # this process was the one that slept
    job = _locked(conn, jobs.c.lease_until, IS_RUNNING, jobs.c.lease_until < now)
    if job is None:
        return None
    faults.ended(conn, now, job, faults.LOST, bounds, retention)
    return job.id


def fail_late(conn: Connection, now: float, retention: float) -> str | None:
    """Fail a waiting job whose deadline has passed."""
    job = _locked(conn, jobs.c.deadline, IS_QUEUED, jobs.c.deadline.is_not(None), jobs.c.deadline <= now)
    if job is None:
        return None
    shares.lock(conn, job.owner)
    shares.dequeued(conn, job.owner, job.level, job.cost)
    message = "the deadline passed while the job was waiting"
    finish(conn, now, job, FAILED, retention, error_code="deadline_exceeded", error_message=message)
    return job.id


def promote(conn: Connection, now: float, after: float) -> str | None:
    """Raise a job that waited `after` seconds at its level by one level."""
    since = jobs.c.created_at + after * (jobs.c.priority - jobs.c.level + 1)
    job = _locked(conn, jobs.c.created_at, IS_QUEUED, MAY_RISE, jobs.c.created_at <= now - after, since <= now)
    if job is None:
        return None
    shares.lock(conn, job.owner)
    shares.dequeued(conn, job.owner, job.level, job.cost)
    conn.execute(update(jobs).where(jobs.c.id == job.id).values(level=job.level - 1))
    shares.enqueued(conn, job.owner, job.level - 1, job.cost)
    return job.id


def expired(conn: Connection, now: float) -> list[str]:
    """Finished jobs whose time is over; their files must go before `forget`."""
    query = select(jobs.c.id).where(jobs.c.expires_at.is_not(None), jobs.c.expires_at <= now)
    return list(conn.execute(query.where(jobs.c.status.in_(TERMINAL)).limit(BATCH)).scalars())


def forget(conn: Connection, job_ids: list[str]) -> None:
    """Remove rows for good; those that another process removes at this moment are left to it."""
    query = select(jobs.c.id).where(jobs.c.id.in_(job_ids), jobs.c.status.in_(TERMINAL)).order_by(jobs.c.id)
    gone = list(conn.execute(query.with_for_update(skip_locked=True)).scalars())
    for table in (attempts, outbox):
        conn.execute(delete(table).where(table.c.job_id.in_(gone)))
    conn.execute(delete(jobs).where(jobs.c.id.in_(gone)))


def with_leftovers(conn: Connection) -> list[str]:
    """Finished jobs whose checkpoints are still stored."""
    query = select(jobs.c.id).where(jobs.c.checkpoint_key.is_not(None), jobs.c.status.in_(TERMINAL))
    return list(conn.execute(query.limit(BATCH)).scalars())


def drop_dead_workers(conn: Connection, now: float) -> None:
    dead = select(workers.c.id).where(func.abs(workers.c.seen_at - now) > 3600).order_by(workers.c.id)
    conn.execute(delete(workers).where(workers.c.id.in_(dead.with_for_update(skip_locked=True))))
