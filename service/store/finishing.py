"""What every end of a job has in common. All run inside the caller's transaction, on a locked job."""

import json

from sqlalchemy import Connection, update
from sqlalchemy.dialects import postgresql, sqlite

from service.store import budgets, shares
from service.store.jobs import Job
from service.store.schema import jobs, outbox


def finish(conn: Connection, now: float, job: Job, status: str, retention: float, **values) -> None:
    """Set a terminal status, queue the webhook, and count it; the account of the owner must be settled before."""
    values = {
        "status": status,
        "completed_at": now,
        "updated_at": now,
        "expires_at": now if job.deleted else now + retention,
        "lease_until": None,
        "eta_seconds": None,
        "phase": None,
        **values,
    }
    conn.execute(update(jobs).where(jobs.c.id == job.id).values(**values))
    if job.webhook_url and not job.deleted:
        body = json.dumps({"type": f"video.{status}", "created_at": int(now), "data": {"id": job.id}})
        dialect = postgresql if conn.dialect.name == "postgresql" else sqlite
        row = {"job_id": job.id, "url": job.webhook_url, "body": body, "attempts": 0, "next_at": now}
        conn.execute(dialect.insert(outbox).values(**row).on_conflict_do_nothing())
    shares.upsert(conn, *shares.count_up(f"jobs_{status}"))


def settle(conn: Connection, now: float, job: Job, used: float | None = None, videos: int = 0) -> None:
    """Correct the owner's charge from the predicted GPU-seconds, taken at lease time, to those really used."""
    if used is None:
        used = used_until(now, job)
    shares.charge(conn, job.owner, used - job.cost)
    budgets.use(conn, now, job.owner, used, videos)


def used_until(now: float, job: Job) -> float:
    """GPU-seconds that an attempt is taken to have used that nobody measured."""
    return max(0.0, min(now - (job.leased_at or now), job.cost))
