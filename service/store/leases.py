"""The working side of the queue: lease, heartbeat, end. Every function runs inside the caller's transaction.

A lease is named by (job id, fence). Each lease raises the fence, and every write of a worker requires that its fence is
still the job's: a worker that was presumed dead can come back and write nothing.
"""

import json
import math

from sqlalchemy import Connection, or_, select, update

from service.errors import LeaseLost
from service.store import faults, shares
from service.store.finishing import finish, settle
from service.store.jobs import CANCELLED, COMPLETED, QUEUED, RUNNING, Job, Lease, Priority, Progress
from service.store.schema import IS_QUEUED, IS_RUNNING, calibrations, jobs


def lease(conn: Connection, now: float, worker: str, model: str, seconds: float) -> Lease | None:
    """The next job of the model in order, now owned by `worker`; None when nothing may start."""
    for level in Priority:
        for owner in shares.next_owners(conn, model, level):
            if (job := _head(conn, now, model, level, owner, worker)) is not None:
                return _take(conn, now, job, worker, seconds)
    return None


def _head(conn: Connection, now: float, model: str, level: int, owner: str, worker: str) -> Job | None:
    """The owner's next job for this worker, locked; one that is late is left to `upkeep.fail_late`."""
    # a pause that is longer than the longest was begun before the clock was set back
    may_start = or_(jobs.c.not_before <= now, jobs.c.not_before > now + faults.LONGEST_PAUSE)
    in_time = or_(jobs.c.deadline.is_(None), jobs.c.deadline > now)
    query = (
        select(jobs)
        .where(IS_QUEUED, jobs.c.model == model, jobs.c.level == int(level), jobs.c.owner == owner, may_start, in_time)
        .where(faults.suits(now, worker))
        .order_by(jobs.c.turn, jobs.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = conn.execute(query).first()
    return Job.from_row(row) if row else None


def _take(conn: Connection, now: float, job: Job, worker: str, seconds: float) -> Lease:
    shares.charge(conn, job.owner, job.cost)
    shares.dequeued(conn, job.owner, job.level, job.cost)
    values = {
        "status": RUNNING,
        "worker": worker,
        "lease_until": now + seconds,
        "excused": 0,
        "leased_at": now,
        "started_at": job.started_at or now,
        "attempts": job.attempts + 1,
        "fence": job.fence + 1,
        "phase": "starting",
        "leased_step": job.checkpoint_step or 0,
        "preempt_requested": 0,
        "updated_at": now,
    }
    row = conn.execute(update(jobs).where(jobs.c.id == job.id).values(**values).returning(jobs)).one()
    return Lease(Job.from_row(row), row.fence)


def held(conn: Connection, now: float, job_id: str, fence: int, seconds: float) -> Job:
    """The leased job, locked; LeaseLost when it is no longer this worker's.

    A lease that ran out is taken up again for `seconds` as long as nobody else took the job.
    """
    row = conn.execute(select(jobs).where(jobs.c.id == job_id).with_for_update()).first()
    if row is not None and row.fence == fence:
        if row.status == RUNNING:
            return Job.from_row(row)
        if row.status == QUEUED and row.worker is not None:  # lost, not given back
            return faults.retake(conn, now, Job.from_row(row), seconds)
    raise LeaseLost(f"job {job_id} is no longer leased under fence {fence}")


def heartbeat(conn: Connection, now: float, job_id: str, fence: int, seconds: float, progress: Progress) -> bool:
    """Prolong the lease and store the progress; True when the caller wants the job cancelled."""
    values = {name: value for name, value in vars(progress).items() if value is not None}
    renew = (
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.fence == fence, jobs.c.status == RUNNING)
        .values(lease_until=now + seconds, excused=0, updated_at=now, **values)
        .returning(jobs.c.cancel_requested)
    )
    if (row := conn.execute(renew).first()) is None:
        held(conn, now, job_id, fence, seconds)
        row = conn.execute(renew).one()
    return bool(row.cancel_requested)


def complete(conn: Connection, now: float, job: Job, retention: float, video: tuple[str, int], info: dict) -> str:
    """Publish the result, unless the caller cancelled meanwhile; returns the status that the job got. `job` is held."""
    used = float(info.get("gpu_seconds", max(0.0, now - (job.leased_at or now))))
    settle(conn, now, job, used, videos=0 if job.cancel_requested else 1)
    if job.cancel_requested:
        finish(conn, now, job, CANCELLED, retention)
        return CANCELLED
    values = {"video_key": video[0], "video_bytes": video[1], "info": json.dumps(info), "step": job.steps}
    finish(conn, now, job, COMPLETED, retention, preview_key=None, **values)
    if info.get("resumed_from") is None and used > 0 and job.raw_cost > 0:
        _calibrate(conn, job.model, math.log(used / job.raw_cost))
    return COMPLETED


def _calibrate(conn: Connection, model: str, log_ratio: float) -> None:
    row = conn.execute(select(calibrations).where(calibrations.c.model == model).with_for_update()).first()
    samples = (row.samples if row else 0) + 1
    mean = row.log_ratio if row else 0.0
    mean += (log_ratio - mean) / min(samples, 20)
    values = {"log_ratio": mean, "samples": samples}
    shares.upsert(conn, calibrations, {"model": model, **values}, ["model"], values)


def of_worker(conn: Connection, worker: str) -> Job | None:
    """A job that this worker runs, locked."""
    row = conn.execute(select(jobs).where(IS_RUNNING, jobs.c.worker == worker).limit(1).with_for_update()).first()
    return Job.from_row(row) if row else None
