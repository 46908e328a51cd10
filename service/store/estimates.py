"""Where jobs stand and how much work there is. Read-only; runs inside the caller's transaction.

The prediction follows the order in which leases are given: all of the higher levels first, then the own earlier jobs,
interleaved with what the other owners are entitled to until then.
"""

import math
from dataclasses import dataclass

from sqlalchemy import Connection, FromClause, case, func, literal, select

from service.store.jobs import RUNNING, Estimate, Job
from service.store.schema import IS_QUEUED, IS_RUNNING, SOMETHING_WAITS, flows, jobs, models, owners, workers

WORKER_ALIVE_SECONDS = 30.0


def live_slots(conn: Connection, now: float, model: str) -> int:
    """Denoise slots of the model's workers that were seen lately."""
    query = select(func.coalesce(func.sum(workers.c.slots), 0))
    mine = (is_alive(now), workers.c.model == model, workers.c.state.not_in(("draining", "sick")))
    return int(conn.execute(query.where(*mine)).scalar_one())


def is_alive(now: float):
    """Seen lately; not in the future either, where a worker lies that died before the clock was set back."""
    return func.abs(workers.c.seen_at - now) < WORKER_ALIVE_SECONDS


def running(conn: Connection, now: float, model: str) -> list[float]:
    """GPU-seconds left of every running job of the model: what its denoise loop says, else what was predicted."""
    columns = (jobs.c.cost, jobs.c.step, jobs.c.steps, jobs.c.eta_seconds, jobs.c.updated_at)
    left = []
    for cost, step, steps, eta, updated in conn.execute(select(*columns).where(IS_RUNNING, jobs.c.model == model)):
        if eta is not None:
            left.append(max(0.0, eta - (now - updated)))
        else:
            left.append(_predicted_left(cost, step, steps))
    return left


def _predicted_left(cost: float, step: int | None, steps: int | None) -> float:
    """GPU-seconds left of a job that has done `step` of its steps; decoding, the last twentieth, comes after them."""
    return cost * (1 - 0.95 * step / steps) if step and steps else cost


@dataclass(frozen=True)
class Crowd:
    """What all estimates of a model share: waiting flows with their owners' virtual time and weight, slots, running work."""

    flows: list
    slots: int
    running: list[float]

    @classmethod
    def load(cls, conn: Connection, now: float, model: str) -> "Crowd":
        waiting: FromClause = flows
        if (
            conn.execute(select(func.count()).select_from(models)).scalar_one() > 1
        ):  # `flows` counts all models together
            numbers = (func.count().label("queued"), func.sum(jobs.c.cost).label("cost"))
            query = select(jobs.c.owner, jobs.c.level, *numbers).where(IS_QUEUED, jobs.c.model == model)
            waiting = query.group_by(jobs.c.owner, jobs.c.level).subquery("flows")
        query = select(waiting, owners.c.vtime, owners.c.weight).join(owners, owners.c.owner == waiting.c.owner)
        slots = max(1, live_slots(conn, now, model))
        return cls(list(conn.execute(query.where(SOMETHING_WAITS))), slots, running(conn, now, model))


def for_place(
    conn: Connection,
    now: float,
    model: str,
    owner: str,
    level: int,
    turn: float,
    cost: float,
    crowd: Crowd | None = None,
) -> Estimate:
    """Estimate for a job that stands, or would stand, at `turn` of its owner's queue of this level."""
    crowd = crowd or Crowd.load(conn, now, model)
    own = (IS_QUEUED, jobs.c.model == model, jobs.c.level == level, jobs.c.owner == owner, jobs.c.turn < turn)
    count, seconds = conn.execute(select(func.count(), func.coalesce(func.sum(jobs.c.cost), 0.0)).where(*own)).one()
    mine = next((row for row in crowd.flows if row.owner == owner), None)
    if mine is None:
        mine = conn.execute(select(owners.c.vtime, owners.c.weight).where(owners.c.owner == owner)).first()
    others = [row for row in crowd.flows if row.level < level or (row.level == level and row.owner != owner)]
    base = min((row.vtime for row in crowd.flows), default=0.0)
    start_at = max(mine.vtime, base) if mine else base
    horizon = start_at + seconds / (mine.weight if mine else 1.0)  # virtual time at which this job is next of its owner
    total, position = float(seconds), float(count)
    for row in others:
        share = 1.0
        if row.level == level and row.cost > 0:
            share = min(1.0, max(0.0, (horizon - row.vtime) * row.weight) / row.cost)
        total += share * row.cost
        position += share * row.queued
    start = (total + sum(crowd.running)) / crowd.slots
    if position < 1 and len(crowd.running) < crowd.slots:
        start = 0.0
    return Estimate(int(position) + 1, start, start + cost)


def of_job(conn: Connection, now: float, job: Job, crowd: Crowd | None = None) -> Estimate | None:
    """Estimate for a job that waits or runs; None once it is over."""
    if job.done:
        return None
    if job.status == RUNNING:
        left = job.eta_seconds if job.eta_seconds is not None else job.remaining
        return Estimate(0, 0.0, max(0.0, left - (now - job.updated_at)))
    return for_place(conn, now, job.model, job.owner, job.level, job.turn, job.cost, crowd)


def next_place_seconds(conn: Connection, now: float, model: str) -> int:
    """Whole seconds until a worker is expected to take a job out of a full queue."""
    slots, left = live_slots(conn, now, model), running(conn, now, model)
    if slots == 0:
        return 60  # nothing takes jobs: no estimate exists
    if len(left) < slots:
        return 1
    return max(1, math.ceil(min(left)))


def demand(conn: Connection, model: str, slot_seconds: float) -> float:
    """Denoise slots worth having: every job counts for its predicted seconds / `slot_seconds`, and for one slot at most.

    A job runs on one slot, so more of them cannot help it. A running job counts by what was predicted, not by what its
    denoise loop says: a pod that is slow would ask for others.
    """
    waits = case((jobs.c.cost < slot_seconds, jobs.c.cost), else_=literal(slot_seconds))
    queued = select(func.coalesce(func.sum(waits), 0.0)).where(IS_QUEUED, jobs.c.model == model)
    seconds = float(conn.execute(queued).scalar_one())
    runs = select(jobs.c.cost, jobs.c.step, jobs.c.steps).where(IS_RUNNING, jobs.c.model == model)
    for cost, step, steps in conn.execute(runs):
        seconds += min(_predicted_left(cost, step, steps), slot_seconds)
    return seconds / slot_seconds


def stats(conn: Connection, now: float, model: str, slot_seconds: float) -> dict:
    """A model's numbers for the metrics: queued jobs and seconds, the oldest of them, running jobs and seconds, demand in
    slots, workers by state."""
    numbers = (jobs.c.level, func.count(), func.sum(jobs.c.cost), func.min(jobs.c.created_at))
    rows = conn.execute(select(*numbers).where(IS_QUEUED, jobs.c.model == model).group_by(jobs.c.level)).all()
    left = running(conn, now, model)
    alive = select(workers.c.state, func.count()).where(is_alive(now), workers.c.model == model)
    return {
        "queued": {level: 0 for level in range(3)} | {level: number for level, number, _, _ in rows},
        "backlog_queued": float(sum(seconds for _, _, seconds, _ in rows)),
        "oldest_seconds": max((max(0.0, now - created) for _, _, _, created in rows), default=0.0),
        "backlog_running": sum(left),
        "demand_slots": demand(conn, model, slot_seconds),
        "running": len(left),
        "workers": dict(conn.execute(alive.group_by(workers.c.state)).all()),
    }
