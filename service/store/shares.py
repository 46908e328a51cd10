"""Fair shares: every owner has a virtual time that grows with the GPU-seconds it is given; the smallest goes next.

An owner that was idle starts at the virtual time of the others, so nobody saves up a claim (start-time fair queueing,
Goyal et al., SIGCOMM 1996).

`flows` is only ever written after `owners` of the same owner in the same transaction: the owner's row is the lock of both.
"""

from sqlalchemy import Connection, case, exists, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from service.store.schema import IS_QUEUED, SOMETHING_WAITS, counters, flows, jobs, owners


def upsert(conn: Connection, table, values: dict, keys: list[str], changes: dict) -> None:
    """INSERT … ON CONFLICT (keys) DO UPDATE SET changes, on either engine."""
    dialect = postgresql if conn.dialect.name == "postgresql" else sqlite
    conn.execute(dialect.insert(table).values(**values).on_conflict_do_update(index_elements=keys, set_=changes))


def count_up(name: str) -> tuple:
    """What `upsert` takes to raise a counter; last in a transaction, because all jobs share these rows."""
    return counters, {"name": name, "value": 1}, ["name"], {"value": counters.c.value + 1}


def weight(conn: Connection, owner: str) -> float:
    return conn.execute(select(owners.c.weight).where(owners.c.owner == owner)).scalar() or 1.0


def lock(conn: Connection, owner: str) -> None:
    """Lock the account of `owner`; `charge` and `arrive` do it too."""
    conn.execute(select(owners.c.owner).where(owners.c.owner == owner).with_for_update())


def hold(conn: Connection, owner: str) -> None:
    """Lock the account of an owner that may have none yet."""
    upsert(conn, owners, {"owner": owner, "vtime": 0.0, "weight": 1.0}, ["owner"], {"owner": owner})


def enqueued(conn: Connection, owner: str, level: int, cost: float) -> None:
    """Count one more waiting job of `owner`, whose account is locked."""
    changes = {"queued": flows.c.queued + 1, "cost": flows.c.cost + cost}
    upsert(conn, flows, {"owner": owner, "level": level, "queued": 1, "cost": cost}, ["owner", "level"], changes)


def dequeued(conn: Connection, owner: str, level: int, cost: float, jobs: int = 1) -> None:
    """Count waiting jobs of `owner`, whose account is locked, less; an empty flow costs exactly 0 in spite of rounding."""
    left = flows.c.queued - jobs
    conn.execute(
        update(flows)
        .where(flows.c.owner == owner, flows.c.level == level)
        .values(queued=left, cost=case((left > 0, flows.c.cost - cost), else_=0.0))
    )


def waiting(conn: Connection, owner: str | None = None) -> int:
    """How many jobs wait, of `owner` or of all."""
    query = select(func.coalesce(func.sum(flows.c.queued), 0))
    return int(conn.execute(query.where(flows.c.owner == owner) if owner is not None else query).scalar_one())


def arrive(conn: Connection, owner: str, weight: float) -> None:
    """Register the owner before its job is queued; one that had nothing waiting joins at the others' virtual time."""
    busy = select(flows.c.owner).where(SOMETHING_WAITS)
    level = conn.execute(select(func.min(owners.c.vtime)).where(owners.c.owner.in_(busy))).scalar()
    if level is None:
        level = conn.execute(select(func.max(owners.c.vtime))).scalar() or 0.0
    changes: dict = {"weight": weight}
    if waiting(conn, owner) == 0:
        later = func.max if conn.dialect.name == "sqlite" else func.greatest
        changes["vtime"] = later(owners.c.vtime, level)
    upsert(conn, owners, {"owner": owner, "vtime": level, "weight": weight}, ["owner"], changes)


def charge(conn: Connection, owner: str, gpu_seconds: float) -> None:
    """Add GPU-seconds (negative: give back) to what the owner has had."""
    conn.execute(
        update(owners).where(owners.c.owner == owner).values(vtime=owners.c.vtime + gpu_seconds / owners.c.weight)
    )


def next_owners(conn: Connection, model: str, level: int, limit: int = 20) -> list[str]:
    """Owners with waiting jobs of this model and level, the one that had least first."""
    mine = (IS_QUEUED, jobs.c.model == model, jobs.c.level == int(level), jobs.c.owner == flows.c.owner)
    query = (
        select(flows.c.owner)
        .join(owners, owners.c.owner == flows.c.owner)
        .where(flows.c.level == level, SOMETHING_WAITS, exists().where(*mine))
        .order_by(owners.c.vtime, flows.c.owner)
        .limit(limit)
    )
    return list(conn.execute(query).scalars())
