"""Webhook deliveries, written in the transaction that ends the job, so that none is forgotten."""

from dataclasses import dataclass

from sqlalchemy import Connection, select, update

from service.store.schema import outbox


@dataclass(frozen=True)
class Delivery:
    """One webhook call to make; `attempts` counts this one."""

    job_id: str
    url: str
    body: str
    attempts: int


def due(conn: Connection, now: float, hold_seconds: float) -> Delivery | None:
    """Take the oldest due delivery; if its sender dies, it is due again after `hold_seconds`."""
    query = select(outbox).where(outbox.c.next_at.is_not(None), outbox.c.next_at <= now).order_by(outbox.c.next_at)
    row = conn.execute(query.limit(1).with_for_update(skip_locked=True)).first()
    if row is None:
        return None
    values = {"attempts": row.attempts + 1, "next_at": now + hold_seconds}
    conn.execute(update(outbox).where(outbox.c.job_id == row.job_id).values(**values))
    return Delivery(row.job_id, row.url, row.body, row.attempts + 1)


def done(conn: Connection, now: float, delivery: Delivery, error: str | None, retry_in: float | None) -> None:
    """Record the outcome; `retry_in` None ends the delivery."""
    values = {
        "delivered_at": now if error is None else None,
        "last_error": error,
        "next_at": now + retry_in if retry_in is not None else None,
    }
    conn.execute(update(outbox).where(outbox.c.job_id == delivery.job_id).values(**values))
