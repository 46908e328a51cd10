"""GPU-seconds that an owner used each day (UTC), and the budget that a day's jobs must fit into.

What ended is counted with what it used, on the day it ended; what waits or runs with what it is predicted to need. Nothing is
reserved, so nothing can leak: a job that is cancelled or fails gives back what it did not use by being over.

`usage` is only ever written after `owners` of the same owner in the same transaction: the owner's row is the lock of both.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, select

from service.errors import BudgetSpent, InvalidRequest
from service.store import shares
from service.store.schema import IS_RUNNING, flows, jobs, usage

DAY = 86_400
KEPT_DAYS = 400


@dataclass(frozen=True)
class DayUsed:
    """One day of an owner; `day` counts from the epoch."""

    day: int
    gpu_seconds: float
    videos: int


@dataclass(frozen=True)
class Usage:
    """What an owner used on the days asked for, the newest first, and what its waiting and running jobs will need."""

    days: list[DayUsed]
    today: int
    promised: float

    @property
    def used(self) -> float:
        return next((day.gpu_seconds for day in self.days if day.day == self.today), 0.0)

    @property
    def renews_at(self) -> int:
        return (self.today + 1) * DAY


def use(conn: Connection, now: float, owner: str, gpu_seconds: float, videos: int = 0) -> None:
    """Count GPU-seconds (negative: give back) and finished videos of `owner`, whose account is locked."""
    row = {"day": int(now // DAY), "owner": owner, "gpu_seconds": gpu_seconds, "videos": videos}
    changes = {"gpu_seconds": usage.c.gpu_seconds + gpu_seconds, "videos": usage.c.videos + videos}
    shares.upsert(conn, usage, row, ["day", "owner"], changes)


def admit(conn: Connection, now: float, owner: str, cost: float, budget: float) -> None:
    """Refuse a job of `cost` predicted GPU-seconds that does not fit into what is left of today's budget."""
    if cost > budget:
        allowed = f"at most {budget:g}, the whole budget of a day of {owner!r}; ask for less or fewer steps"
        raise InvalidRequest("body", f"{cost:.0f} predicted GPU-seconds", allowed)
    shares.hold(conn, owner)  # two submissions at once must see each other
    state = read(conn, now, owner, 1)
    if state.used + state.promised + cost > budget:
        raise BudgetSpent(owner, budget, state.used, state.promised, cost, state.renews_at, now)


def read(conn: Connection, now: float, owner: str, days: int) -> Usage:
    """The last `days` days, today included."""
    today = int(now // DAY)
    mine = (usage.c.day > today - days, usage.c.owner == owner)
    query = select(usage.c.day, usage.c.gpu_seconds, usage.c.videos).where(*mine).order_by(usage.c.day.desc())
    return Usage([DayUsed(*row) for row in conn.execute(query)], today, _promised(conn, owner))


def _promised(conn: Connection, owner: str) -> float:
    waits = select(func.coalesce(func.sum(flows.c.cost), 0.0)).where(flows.c.owner == owner)
    runs = select(func.coalesce(func.sum(jobs.c.cost), 0.0)).where(IS_RUNNING, jobs.c.owner == owner)
    return float(conn.execute(waits).scalar_one()) + float(conn.execute(runs).scalar_one())


def of_today(conn: Connection, now: float, most: int) -> dict[str, float]:
    """Today's GPU-seconds of the owners that used most."""
    query = select(usage.c.owner, usage.c.gpu_seconds).where(usage.c.day == int(now // DAY))
    return {owner: used for owner, used in conn.execute(query.order_by(usage.c.gpu_seconds.desc()).limit(most))}


def forget(conn: Connection, now: float) -> None:
    conn.execute(delete(usage).where(usage.c.day < int(now // DAY) - KEPT_DAYS))
