"""What any gateway or worker does for all jobs every few seconds, each step as transactions of one job."""

from collections.abc import Callable

from sqlalchemy import Connection, update

from service.store import budgets, models, preemption, upkeep
from service.store.database import Database, transaction
from service.store.jobs import TERMINAL, Bounds
from service.store.schema import jobs


class Housekeeping:
    """The part of `JobStore` that looks after jobs which nobody asks for."""

    database: Database
    bounds: Bounds
    lease_seconds: float
    retention: float
    priority_ageing: float
    model: str

    def sweep(self) -> list[str]:
        """Lost leases, late jobs, ageing; returns the ids of jobs whose files may go (then call `forget`)."""
        self._look_at_clock()
        self._one_by_one(lambda conn, now: upkeep.reap(conn, now, self.bounds, self.retention))
        self._one_by_one(lambda conn, now: upkeep.fail_late(conn, now, self.retention))
        self._one_by_one(lambda conn, now: upkeep.promote(conn, now, self.priority_ageing))
        self._make_room()
        with self.database.read() as conn:
            return upkeep.expired(conn, self.database.now(conn))

    def _make_room(self) -> None:
        """Urgent jobs go first, and where everything is busy others make room for them."""
        with self.database.read() as conn:
            if not preemption.wanted(conn, self.database.now(conn)):
                return
        self._one_by_one(preemption.hurry)
        while self._preempt() is not None:
            pass

    @transaction(durable=False)
    def _preempt(self, conn: Connection) -> str | None:
        """Make room for an urgent job that waits; returns the job that was asked to."""
        victim = preemption.preempt(conn, self.database.now(conn), self.bounds.preemptions)
        if victim is not None:
            self.database.notify(conn, "cancel", victim)
        return victim

    @transaction(durable=False)
    def _look_at_clock(self, conn: Connection) -> None:
        now = self.database.now(conn)
        upkeep.look_at_clock(conn, now, self.lease_seconds)
        upkeep.drop_dead_workers(conn, now)
        budgets.forget(conn, now)
        models.adopt(conn, self.model)

    def _one_by_one(self, change: Callable[[Connection, float], str | None]) -> list[str]:
        """`change` a batch of jobs, each in a transaction of its own, until it finds none."""

        def work(conn: Connection) -> str | None:
            job_id = change(conn, self.database.now(conn))
            if job_id is not None:
                self.database.notify(conn, "queued", job_id)
            return job_id

        changed: list[str] = []
        while len(changed) < upkeep.BATCH and (job_id := self.database.transact(work, durable=False)) is not None:
            changed.append(job_id)
        return changed

    def with_leftovers(self) -> list[str]:
        """Finished jobs whose checkpoints are still stored; remove these, then call `leftovers_removed`."""
        with self.database.read() as conn:
            return upkeep.with_leftovers(conn)

    @transaction(durable=False)
    def leftovers_removed(self, conn: Connection, job_id: str) -> None:
        values = {"checkpoint_key": None, "checkpoint_step": None}
        conn.execute(update(jobs).where(jobs.c.id == job_id, jobs.c.status.in_(TERMINAL)).values(**values))

    @transaction()
    def forget(self, conn: Connection, job_ids: list[str]) -> None:
        upkeep.forget(conn, job_ids)
