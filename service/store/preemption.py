"""Urgent jobs need not wait: a running job of a lower level makes room for one before its next step.

Urgent is what was submitted with the highest priority, or has a deadline that it would miss by waiting. The job that makes room
keeps its checkpoint and its place, which ages as before; it is asked a limited number of times.
"""

from sqlalchemy import Connection, and_, case, func, or_, select, text, update

from service.store import estimates, shares
from service.store.jobs import Job, Priority
from service.store.schema import IS_QUEUED, IS_RUNNING, MAY_RISE, jobs

HURRY = 1.5  # a deadline is near when the time to it is less than this many times the job's predicted seconds
URGENT = or_(jobs.c.priority == int(Priority.high), jobs.c.deadline.is_not(None))
IN_DENOISE = or_(jobs.c.phase.is_(None), jobs.c.phase.in_(("starting", "denoise")))


def wanted(conn: Connection, now: float) -> bool:
    """Whether any waiting job is urgent; a look that takes no lock."""
    first = jobs.c.level == int(Priority.high)
    near = and_(MAY_RISE, jobs.c.deadline - now < HURRY * jobs.c.cost)
    return conn.execute(select(jobs.c.id).where(IS_QUEUED, URGENT, or_(first, near)).limit(1)).first() is not None


def hurry(conn: Connection, now: float) -> str | None:
    """Raise a waiting job whose deadline is near to the highest level."""
    near = jobs.c.deadline - now < HURRY * jobs.c.cost
    query = select(jobs).where(IS_QUEUED, MAY_RISE, jobs.c.deadline.is_not(None), jobs.c.deadline > now, near)
    row = conn.execute(query.order_by(jobs.c.deadline).limit(1).with_for_update(skip_locked=True)).first()
    if row is None:
        return None
    job = Job.from_row(row)
    shares.lock(conn, job.owner)
    shares.dequeued(conn, job.owner, job.level, job.cost)
    conn.execute(update(jobs).where(jobs.c.id == job.id).values(level=int(Priority.high)))
    shares.enqueued(conn, job.owner, int(Priority.high), job.cost)
    return job.id


def preempt(conn: Connection, now: float, most: int) -> str | None:
    """Ask one running job to make room if an urgent one waits for which nothing is or becomes free; returns its id."""
    if most <= 0 or not _begin_alone(conn):
        return None
    urgent = select(jobs.c.model, func.count()).where(
        IS_QUEUED, jobs.c.level == int(Priority.high), jobs.c.not_before <= now, URGENT
    )
    for model, waiting in conn.execute(urgent.group_by(jobs.c.model)).all():
        if (found := _least_urgent(conn, now, model, waiting, most)) is not None:
            conn.execute(update(jobs).where(jobs.c.id == found).values(preempt_requested=1))
            return found
    return None


def _least_urgent(conn: Connection, now: float, model: str, waiting: int, most: int) -> str | None:
    """The job of the model that is to make room for `waiting` urgent ones; None while there are or come places enough."""
    asked = func.coalesce(func.sum(case((jobs.c.preempt_requested == 1, 1), else_=0)), 0)
    mine = (IS_RUNNING, IN_DENOISE, jobs.c.model == model)
    busy, leaving = conn.execute(select(func.count(), asked).where(*mine)).one()
    free = max(0, estimates.live_slots(conn, now, model) - busy)
    if waiting <= free + leaving:
        return None
    query = (
        select(jobs.c.id)
        .where(*mine, MAY_RISE, jobs.c.preempt_requested == 0, jobs.c.cancel_requested == 0)
        .where(jobs.c.preemptions < most)
        .order_by(jobs.c.level.desc(), jobs.c.preemptions, jobs.c.leased_at.desc())
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    return conn.execute(query).scalar()


def _begin_alone(conn: Connection) -> bool:
    """Two that decide at once would ask two jobs for one place (SQLite has one writer anyhow)."""
    if conn.dialect.name != "postgresql":
        return True
    return bool(conn.execute(text("SELECT pg_try_advisory_xact_lock(7246302)")).scalar())
