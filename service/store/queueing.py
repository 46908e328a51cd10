"""The submitting side of the queue: add, cancel, delete. Every function runs inside the caller's transaction."""

import json
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, tuple_, update
from sqlalchemy import delete as delete_rows

from service.errors import Conflict, DeadlineUnreachable, IdempotencyMismatch, InvalidRequest, QueueFull
from service.store import budgets, estimates, finishing, shares
from service.store.jobs import CANCELLED, COMPLETED, QUEUED, RUNNING, Job, NewJob
from service.store.policies import POLICIES
from service.store.schema import jobs

RESERVED_SECONDS = 3600.0  # of a job whose files are being stored


@dataclass(frozen=True)
class Limits:
    """Bounds of the queue; `ageing`: see `Settings`."""

    max_queued: int = 1000
    max_queued_per_owner: int = 1000
    ageing: float = 2.0
    policy: str = "shortest"
    budget: float | None = None  # GPU-seconds that the owner may use a day

    def turn(self, now: float, cost: float, deadline: float | None) -> float:
        """Place in the owner's queue of a job submitted now."""
        return POLICIES[self.policy](now, cost, deadline, self.ageing)


def find(conn: Connection, job_id: str, owner: str | None = None, lock: bool = False) -> Job | None:
    """The job, unless it was deleted or (with `owner`) belongs to someone else."""
    query = select(jobs).where(jobs.c.id == job_id, jobs.c.deleted == 0)
    if owner is not None:
        query = query.where(jobs.c.owner == owner)
    row = conn.execute(query.with_for_update() if lock else query).first()
    return Job.from_row(row) if row else None


def page(
    conn: Connection, owner: str | None, after: str | None, limit: int, newest_first: bool
) -> tuple[list[Job], bool]:
    """A page by keyset (created_at, id) and whether more follow."""
    key = tuple_(jobs.c.created_at, jobs.c.id)
    query = select(jobs).where(jobs.c.deleted == 0)
    if owner is not None:
        query = query.where(jobs.c.owner == owner)
    if after is not None:
        if (cursor := find(conn, after, owner)) is None:
            raise InvalidRequest("after", after, "the id of an existing video")
        place = (cursor.created_at, cursor.id)
        query = query.where(key < place if newest_first else key > place)
    columns = (jobs.c.created_at, jobs.c.id)
    query = query.order_by(*(column.desc() if newest_first else column for column in columns)).limit(limit + 1)
    rows = [Job.from_row(row) for row in conn.execute(query)]
    return rows[:limit], len(rows) > limit


def replay(conn: Connection, new: NewJob) -> Job | None:
    """The job that an earlier submission with the same idempotency key made."""
    if new.idempotency_key is None:
        return None
    query = select(jobs).where(jobs.c.owner == new.owner, jobs.c.idempotency_key == new.idempotency_key)
    row = conn.execute(query).first()
    if row is None:
        return None
    earlier = Job.from_row(row)
    if differing := _differences(earlier, new):
        message = (
            f"Idempotency-Key was used before with another {', '.join(differing)}; use a new key or repeat the request"
        )
        raise IdempotencyMismatch(message, "Idempotency-Key")
    return earlier


def _differences(earlier: Job, new: NewJob) -> list[str]:
    """What a repeated submission asks for that the earlier one did not, by the names of the API."""
    request, wanted = comparable(earlier.request), comparable(json.loads(json.dumps(new.request)))
    names = [name for name in sorted({*request, *wanted}) if request.get(name) != wanted.get(name)]
    deadline = None if earlier.deadline is None else earlier.deadline - earlier.created_at
    same_deadline = deadline == new.deadline
    if deadline is not None and new.deadline is not None:
        same_deadline = abs(deadline - new.deadline) < 0.001  # it went through the sum with the time of day
    asked = {"model": earlier.model == new.model, "priority": earlier.priority == new.priority, "deadline_seconds": same_deadline,
             "webhook_url": earlier.webhook_url == new.webhook_url}  # fmt: skip
    return names + [name for name, same in asked.items() if not same]


def comparable(request: dict) -> dict:
    """With the digests of files instead of where they lie."""
    media = {name: file["sha256"] for name, file in request.get("media", {}).items()}
    return {name: value for name, value in request.items() if name != "media"} | media


def admit(conn: Connection, now: float, new: NewJob, limits: Limits) -> None:
    """Refuse a job for which there is no place or that cannot meet its deadline."""
    total, own = shares.waiting(conn), shares.waiting(conn, new.owner)
    if total >= limits.max_queued or own >= limits.max_queued_per_owner:
        retry = estimates.next_place_seconds(conn, now, new.model)
        whose, bound = ("the queue", limits.max_queued)
        if own >= limits.max_queued_per_owner:
            whose, bound = ("your queue", limits.max_queued_per_owner)
        raise QueueFull(
            f"{whose} holds {bound} waiting jobs, its maximum; a place is expected in {retry} s", None, retry
        )
    if limits.budget is not None:
        budgets.admit(conn, now, new.owner, new.cost, limits.budget)
    if new.deadline is not None:
        turn = limits.turn(now, new.cost, now + new.deadline)
        place = (new.model, new.owner, int(new.priority), turn, new.cost)
        finish = estimates.for_place(conn, now, *place).finish_seconds
        if finish > new.deadline:
            raise DeadlineUnreachable(
                f"deadline_seconds is {new.deadline:g}; the video is expected in {finish:.0f} s", "deadline_seconds"
            )


def _columns(now: float, new: NewJob, limits: Limits) -> dict:
    deadline = now + new.deadline if new.deadline is not None else None
    return {
        "id": new.id,
        "owner": new.owner,
        "status": QUEUED,
        "priority": int(new.priority),
        "level": int(new.priority),
        "turn": limits.turn(now, new.cost, deadline),
        "cost": new.cost,
        "raw_cost": new.raw_cost or new.cost,
        "request": json.dumps(new.request),
        "request_hash": "",
        "idempotency_key": new.idempotency_key,
        "deadline": deadline,
        "created_at": now,
        "updated_at": now,
        "steps": new.request.get("steps", 0),
        "webhook_url": new.webhook_url,
        "model": new.model,
        "traceparent": new.traceparent,
    }


def reserve(conn: Connection, now: float, new: NewJob) -> None:
    """A deleted job of this id, whose files go with it; `add` puts the real one in its place."""
    over = {"status": CANCELLED, "deleted": 1, "idempotency_key": None, "expires_at": now + RESERVED_SECONDS}
    conn.execute(insert(jobs).values(**(_columns(now, new, Limits()) | over)))


def add(conn: Connection, now: float, new: NewJob, limits: Limits) -> Job:
    """Insert an admitted job at its place."""
    if new.request.get("media"):
        conn.execute(delete_rows(jobs).where(jobs.c.id == new.id))
    values = _columns(now, new, limits)
    row = conn.execute(insert(jobs).values(**values).returning(jobs)).one()
    shares.arrive(conn, new.owner, new.weight)
    shares.enqueued(conn, new.owner, int(new.priority), new.cost)
    return Job.from_row(row)


def cancel(conn: Connection, now: float, job: Job, retention: float) -> None:
    """End a queued job at once; ask the worker of a running one to stop. `job` is locked."""
    if job.status == QUEUED:
        shares.lock(conn, job.owner)
        shares.dequeued(conn, job.owner, job.level, job.cost)
        finishing.finish(conn, now, job, CANCELLED, retention)
    elif job.status == RUNNING:
        conn.execute(update(jobs).where(jobs.c.id == job.id).values(cancel_requested=1, updated_at=now))
    elif job.status != CANCELLED:
        raise Conflict(f"the video is {job.status}; only a queued or running one can be cancelled", "id")


def remake(conn: Connection, now: float, job: Job) -> None:
    """Put a completed job back into its owner's queue. `job` is locked; `info` stays, so that the frames can be compared."""
    if job.status != COMPLETED:
        raise Conflict(f"the video is {job.status}; only a completed one can be made again", "id")
    values = {"status": QUEUED, "video_key": None, "video_bytes": None, "completed_at": None, "expires_at": None, "step": 0,
              "attempts": 0, "losses": 0, "worker": None, "deadline": None, "updated_at": now}  # fmt: skip
    conn.execute(update(jobs).where(jobs.c.id == job.id).values(**values))
    shares.arrive(conn, job.owner, shares.weight(conn, job.owner))
    shares.enqueued(conn, job.owner, job.level, job.cost)


def delete(conn: Connection, now: float, job: Job, retention: float) -> None:
    """Hide the job for good and stop it if it runs; its files go with the next sweep. `job` is locked."""
    if not job.done:
        cancel(conn, now, job, retention)
    values = {"deleted": 1, "idempotency_key": None, "expires_at": now, "updated_at": now}
    conn.execute(update(jobs).where(jobs.c.id == job.id).values(**values))
