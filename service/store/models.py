"""Which models there are: what workers announce. Every function runs inside the caller's transaction."""

import json
import math

from sqlalchemy import Connection, delete, func, select, update

from service.store import shares
from service.store.estimates import is_alive
from service.store.schema import IS_QUEUED, IS_RUNNING, calibrations, jobs, models, workers


def announce(conn: Connection, now: float, name: str, card: dict, costs: dict) -> None:
    """Say that workers serve a model, what it can do, and what a request costs on their machines."""
    values = {"card": json.dumps(card), "costs": json.dumps(costs), "announced_at": now}
    shares.upsert(conn, models, {"name": name, **values}, ["name"], values)


def announced(conn: Connection) -> dict[str, tuple[dict, dict]]:
    """name -> (card, costs) of every model that was ever announced."""
    rows = conn.execute(select(models.c.name, models.c.card, models.c.costs).order_by(models.c.name))
    return {name: (json.loads(card), json.loads(costs)) for name, card, costs in rows}


def live_workers(conn: Connection, now: float) -> dict[str, int]:
    """Workers of each model that were seen lately."""
    query = select(workers.c.model, func.count()).where(is_alive(now), workers.c.state != "draining")
    return {name: number for name, number in conn.execute(query.group_by(workers.c.model))}


def factors(conn: Connection) -> dict[str, float]:
    """How much longer jobs of each model really take than the formula says."""
    return {
        name: math.exp(ratio) for name, ratio in conn.execute(select(calibrations.c.model, calibrations.c.log_ratio))
    }


def adopt(conn: Connection, model: str) -> None:
    """Give what a release wrote that knew one model only the name of that model; it may still run beside this one."""
    conn.execute(update(jobs).where(IS_QUEUED, jobs.c.model == "").values(model=model))
    conn.execute(update(jobs).where(IS_RUNNING, jobs.c.model == "").values(model=model))
    conn.execute(update(workers).where(workers.c.model == "").values(model=model))
    if model not in factors(conn):
        conn.execute(update(calibrations).where(calibrations.c.model == "").values(model=model))
    conn.execute(delete(calibrations).where(calibrations.c.model == ""))
