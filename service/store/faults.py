"""Attempts that ended without a video: whose fault it was, and what follows for the job. Inside the caller's transaction.

    job         counts: the job fails at once
    worker      does not count until its worker shows that it is healthy (a video, or a canary); then it was the job's fault,
                and after a few of these on different workers the job is poison
    dependency  never counts: the job waits
    operator    never counts: the job goes on elsewhere

An attempt that stored a newer checkpoint, or came further than all before it, does not count either: what stopped it was not
the job, which it had already passed. Attempts in a row that stored no newer one are bounded all the same, because a job may
take each of its workers down for good.
"""

from sqlalchemy import Connection, delete, exists, func, insert, not_, or_, select, update

from service.errors import Fault
from service.store import budgets, shares
from service.store.estimates import WORKER_ALIVE_SECONDS
from service.store.finishing import finish, settle, used_until
from service.store.jobs import CANCELLED, FAILED, QUEUED, RUNNING, Bounds, Job, Loss
from service.store.schema import BLAMED_WORKER, SUSPECTED, attempts, jobs, workers

LONGEST_PAUSE = 30.0  # seconds between two attempts of a job
LEASING = ("idle", "busy")  # states of workers that may take a job
HANDED_OVER = Loss(Fault.operator, "handed_over", "the worker was stopped")
PREEMPTED = Loss(Fault.operator, "preempted", "an urgent job took the place")
RESTARTED = Loss(Fault.worker, "worker_lost", "the worker began anew")
LOST = Loss(Fault.worker, "worker_lost", "the worker stopped answering")


def ended(conn: Connection, now: float, job: Job, loss: Loss, bounds: Bounds, retention: float) -> str:
    """End a running job's attempt and return the job's new status: cancelled if asked for, failed, or queued again."""
    if job.cancel_requested:
        settle(conn, now, job)
        finish(conn, now, job, CANCELLED, retention)
        return CANCELLED
    _note(conn, now, job, loss)
    losses = 0 if job.advanced else job.losses + (loss.fault is Fault.worker)
    counted = job.attempts - 1  # but for this one
    hopeless = loss.fault is Fault.worker and (counted >= bounds.attempts or losses >= bounds.losses)
    if loss.fault is Fault.job or hopeless:
        settle(conn, now, job)
        finish(conn, now, job, FAILED, retention, error_code=loss.code, error_message=loss.message)
    else:
        gone = loss in (LOST, RESTARTED) and losses <= 1  # others may go on at once
        delay = 0.0 if gone or loss.fault is Fault.operator else min(2.0 ** max(0, losses - 1), LONGEST_PAUSE)
        preempted = loss.code == PREEMPTED.code
        give_back(conn, now, job, delay, losses=losses, worker=job.worker if loss is LOST else None,
                  preemptions=job.preemptions + preempted)  # fmt: skip
    shares.upsert(conn, *shares.count_up(f"faults_{loss.fault.value}"))
    return FAILED if loss.fault is Fault.job or hopeless else QUEUED


def _note(conn: Connection, now: float, job: Job, loss: Loss) -> None:
    node = conn.execute(select(workers.c.node).where(workers.c.id == job.worker)).scalar()
    furthest = conn.execute(select(func.max(attempts.c.step)).where(attempts.c.job_id == job.id)).scalar() or 0
    row = {"job_id": job.id, "fence": job.fence, "worker": job.worker, "node": node, "gpu": loss.gpu, "began_at": job.leased_at,
           "ended_at": now, "fault": loss.fault.value, "code": loss.code, "message": loss.message, "step": job.step,
           "advanced": int(job.advanced or job.step > furthest), "counted": int(loss.fault is Fault.job)}  # fmt: skip
    conn.execute(insert(attempts).values(**row))


def give_back(conn: Connection, now: float, job: Job, delay: float, **more) -> None:
    """Put a held job back at its old place, uncounted."""
    settle(conn, now, job)
    values = {
        "status": QUEUED,
        "worker": None,
        "lease_until": None,
        "eta_seconds": None,
        "phase": None,
        "step": job.checkpoint_step or 0,  # where the next attempt goes on
        "attempts": job.attempts - 1,
        "preempt_requested": 0,
        "not_before": now + delay,
        "updated_at": now,
    }
    conn.execute(update(jobs).where(jobs.c.id == job.id).values(**(values | more)))
    shares.arrive(conn, job.owner, shares.weight(conn, job.owner))
    shares.enqueued(conn, job.owner, job.level, job.cost)


def retake(conn: Connection, now: float, job: Job, seconds: float) -> Job:
    """Give a job whose lease ran out back to its worker, which lives after all; nobody has taken it meanwhile."""
    shares.charge(conn, job.owner, job.cost)
    shares.dequeued(conn, job.owner, job.level, job.cost)
    lost = (attempts.c.job_id == job.id, attempts.c.fence == job.fence)
    if (lost_at := conn.execute(select(attempts.c.ended_at).where(*lost)).scalar()) is not None:
        settled = used_until(lost_at, job)  # the end of the attempt counts them again
        shares.charge(conn, job.owner, -settled)
        budgets.use(conn, lost_at, job.owner, -settled)
    conn.execute(delete(attempts).where(*lost))
    values = {"status": RUNNING, "lease_until": now + seconds, "attempts": job.attempts + 1, "updated_at": now,
              "losses": max(0, job.losses - 1)}  # fmt: skip
    return Job.from_row(conn.execute(update(jobs).where(jobs.c.id == job.id).values(**values).returning(jobs)).one())


def acquit(conn: Connection, now: float, worker: str, bounds: Bounds, retention: float) -> str | None:
    """This worker is healthy: count one of the attempts that it could not finish against its job, whose id is returned."""
    suspected = select(attempts).where(attempts.c.worker == worker, SUSPECTED).limit(1)
    if (found := conn.execute(suspected).first()) is None:
        return None
    row = conn.execute(select(jobs).where(jobs.c.id == found.job_id).with_for_update()).first()
    conn.execute(
        update(attempts).where(attempts.c.job_id == found.job_id, attempts.c.fence == found.fence).values(counted=1)
    )
    if row is None or row.status not in (QUEUED, RUNNING):
        return found.job_id
    conn.execute(update(jobs).where(jobs.c.id == row.id).values(attempts=row.attempts + 1))
    if row.status == QUEUED and row.attempts + 1 >= bounds.attempts:
        shares.lock(conn, row.owner)
        shares.dequeued(conn, row.owner, row.level, row.cost)
        message = f"{bounds.attempts} attempts on healthy workers broke; the last one: {found.message}"
        finish(conn, now, Job.from_row(row), FAILED, retention, error_code="poison_job", error_message=message)
    return found.job_id


def suits(now: float, worker: str):
    """Condition on a waiting job: `worker` has not broken at it, or so have all others that live."""
    broke_here = exists().where(attempts.c.job_id == jobs.c.id, attempts.c.worker == worker, BLAMED_WORKER)
    broke_there = exists().where(attempts.c.job_id == jobs.c.id, attempts.c.worker == workers.c.id, BLAMED_WORKER)
    alive = func.abs(workers.c.seen_at - now) < WORKER_ALIVE_SECONDS
    serves = workers.c.model == jobs.c.model
    others = exists().where(workers.c.id != worker, alive, serves, workers.c.state.in_(LEASING), not_(broke_there))
    return or_(not_(broke_here), not_(others))


def history(conn: Connection, job_id: str) -> list[dict]:
    """The job's attempts that ended without a video, the oldest first."""
    query = select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.fence)
    return [dict(row._mapping) for row in conn.execute(query)]
