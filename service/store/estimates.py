"""Where jobs stand and how much work there is. Read-only; runs inside the caller's transaction.

The prediction follows the order in which leases are given: all of the higher levels first, then the own earlier jobs,
interleaved with what the other owners are entitled to until then.
"""

import math
from dataclasses import dataclass

from sqlalchemy import Connection, case, func, literal, select

from service.store.jobs import RUNNING, Estimate, Job
from service.store.schema import IS_QUEUED, IS_RUNNING, SOMETHING_WAITS, flows, jobs, owners, workers

WORKER_ALIVE_SECONDS = 30.0


def live_slots(conn: Connection, now: float) -> int:
    """Denoise slots of the workers that were seen lately."""
    query = select(func.coalesce(func.sum(workers.c.slots), 0))
    return int(conn.execute(query.where(_alive(now), workers.c.state.not_in(("draining", "sick")))).scalar_one())


def _alive(now: float):
    """Seen lately; not in the future either, where a worker lies that died before the clock was set back."""
    return func.abs(workers.c.seen_at - now) < WORKER_ALIVE_SECONDS


def running(conn: Connection, now: float) -> list[float]:
    """GPU-seconds left of every running job: what its denoise loop says, else what was predicted."""
    columns = (jobs.c.cost, jobs.c.step, jobs.c.steps, jobs.c.eta_seconds, jobs.c.updated_at)
    left = []
    for cost, step, steps, eta, updated in conn.execute(select(*columns).where(IS_RUNNING)):
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
    """What all estimates share: waiting flows with their owners' virtual time and weight, free slots, running work."""

    flows: list
    slots: int
    running: list[float]

    @classmethod
    def load(cls, conn: Connection, now: float) -> "Crowd":
        query = select(flows, owners.c.vtime, owners.c.weight).join(owners, owners.c.owner == flows.c.owner)
        return cls(list(conn.execute(query.where(SOMETHING_WAITS))), max(1, live_slots(conn, now)), running(conn, now))


def for_place(
    conn: Connection, now: float, owner: str, level: int, turn: float, cost: float, crowd: Crowd | None = None
) -> Estimate:
    """Estimate for a job that stands, or would stand, at `turn` of its owner's queue of this level."""
    crowd = crowd or Crowd.load(conn, now)
    own = (IS_QUEUED, jobs.c.level == level, jobs.c.owner == owner, jobs.c.turn < turn)
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
    return for_place(conn, now, job.owner, job.level, job.turn, job.cost, crowd)


def next_place_seconds(conn: Connection, now: float) -> int:
    """Whole seconds until a worker is expected to take a job out of a full queue."""
    slots, left = live_slots(conn, now), running(conn, now)
    if slots == 0:
        return 60  # nothing takes jobs: no estimate exists
    if len(left) < slots:
        return 1
    return max(1, math.ceil(min(left)))


def demand(conn: Connection, slot_seconds: float) -> float:
    """Denoise slots worth having: every job counts for its predicted seconds / `slot_seconds`, and for one slot at most.

    A job runs on one slot, so more of them cannot help it. A running job counts by what was predicted, not by what its
    denoise loop says: a pod that is slow would ask for others.
    """
    waits = case((jobs.c.cost < slot_seconds, jobs.c.cost), else_=literal(slot_seconds))
    seconds = float(conn.execute(select(func.coalesce(func.sum(waits), 0.0)).where(IS_QUEUED)).scalar_one())
    for cost, step, steps in conn.execute(select(jobs.c.cost, jobs.c.step, jobs.c.steps).where(IS_RUNNING)):
        seconds += min(_predicted_left(cost, step, steps), slot_seconds)
    return seconds / slot_seconds


def stats(conn: Connection, now: float, slot_seconds: float) -> dict:
    """Numbers for the metrics: queued jobs and seconds, running jobs and seconds, demand in slots, workers by state."""
    rows = conn.execute(select(flows.c.level, func.sum(flows.c.queued), func.sum(flows.c.cost)).group_by(flows.c.level))
    queued = {level: (int(number), float(seconds)) for level, number, seconds in rows}
    left = running(conn, now)
    alive = select(workers.c.state, func.count()).where(_alive(now))
    states: dict[str, int] = {state: count for state, count in conn.execute(alive.group_by(workers.c.state))}
    return {
        "queued": {level: queued.get(level, (0, 0.0))[0] for level in range(3)},
        "backlog_queued": sum(seconds for _, seconds in queued.values()),
        "backlog_running": sum(left),
        "demand_slots": demand(conn, slot_seconds),
        "running": len(left),
        "workers": states,
    }
