"""What differs between the two engines: transactions, clock, time limits."""

import contextlib
import functools
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.errors import SettingsError, Unavailable
from service.store.changes import CONNECT, Changes, PostgresChanges, SQLiteChanges, Ticks
from service.store.patience import Patience

CHANNEL = "wan_jobs"
PATIENCE_SECONDS = 10.0  # for one transaction; the longest that was measured takes a hundredth
ROLLED_BACK = ("40P01", "40001")  # SQLSTATE of a deadlock's victim and of a conflict: the same again may succeed
TRIES = 6
T = TypeVar("T")


class RolledBack(Unavailable):
    """PostgreSQL undid the transaction in favour of another one."""


class Database:
    """Connections to SQLite (WAL) or PostgreSQL; any loss of connection surfaces as Unavailable."""

    def __init__(self, url: str, clock: Callable[[], float] | None = None, connections: int = 10, listen_url: str = ""):
        """`connections` to PostgreSQL are kept; `listen_url`: see `Settings`."""
        self.listen_url = listen_url or url
        self.patience = Patience()
        self.url = make_url(url.replace("postgresql://", "postgresql+psycopg://", 1))
        self.postgres = self.url.get_backend_name() == "postgresql"
        self._clock = clock
        # SQLite has one writer. Threads of this process take turns here, in order and without holding a connection;
        # only other processes are left to SQLite's own waiting, which is not fair.
        self._turn = contextlib.nullcontext() if self.postgres else threading.Lock()
        self.engine = self._postgres_engine(connections) if self.postgres else self._sqlite_engine()

    def _postgres_engine(self, connections: int):
        # Nothing here lives longer than a transaction, so that a pooler may hand each one to another server connection:
        # time limits are set in each (`_begin`), and no statement is prepared.
        return create_engine(
            self.url,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=PATIENCE_SECONDS,
            connect_args={**CONNECT, "prepare_threshold": None},
        )

    def _sqlite_engine(self):
        folder = Path(self.url.database or "").parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"WAN_DATABASE_URL: cannot create {str(folder)!r}: {error.strerror}") from None
        engine = create_engine(self.url, pool_size=10, max_overflow=40, connect_args={"timeout": 20})

        @event.listens_for(engine, "connect")
        def _configure(dbapi_connection, _record):
            dbapi_connection.isolation_level = None  # transactions are begun below, not by the driver
            for pragma in ("journal_mode=WAL", "busy_timeout=20000", "foreign_keys=ON"):
                dbapi_connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def _begin(conn):
            mode = conn.get_execution_options().get("wan_mode", "durable")
            if mode == "read":
                conn.exec_driver_sql("BEGIN")
                return
            conn.exec_driver_sql(f"PRAGMA synchronous={'FULL' if mode == 'durable' else 'NORMAL'}")
            # IMMEDIATE: two writers queue up at the start and never fail half-way through a transaction
            conn.exec_driver_sql("BEGIN IMMEDIATE")

        return engine

    @contextlib.contextmanager
    def write(self, durable: bool = True, patience: float = PATIENCE_SECONDS) -> Iterator[Connection]:
        """A transaction; without `durable` a power failure may undo it (never a part of it), which spares a disk flush.

        Leases, heartbeats and the like may go that way: what they say is renewed or expires. One that takes longer than
        `patience` seconds is broken off, and its connection with it.
        """
        with self._turn, self._transaction("durable" if durable else "quick", patience) as conn:
            yield conn

    def transact(self, work: Callable[[Connection], T], durable: bool = True, patience: float = PATIENCE_SECONDS) -> T:
        """`work` in one transaction (see `write`), run again when PostgreSQL rolled it back in favour of another."""
        for number in range(TRIES - 1):
            try:
                with self.write(durable, patience) as conn:
                    return work(conn)
            except RolledBack:
                time.sleep(random.uniform(0, 0.01 * 2**number))  # jitter: the rivals must not meet again
        with self.write(durable, patience) as conn:
            return work(conn)

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        with self._transaction("read", PATIENCE_SECONDS) as conn:
            yield conn

    @contextlib.contextmanager
    def _transaction(self, mode: str, patience: float) -> Iterator[Connection]:
        with _unavailable(), contextlib.ExitStack() as stack:
            conn = self._begun(stack, mode, patience)
            yield conn

    def _begun(self, stack: contextlib.ExitStack, mode: str, patience: float) -> Connection:
        """A connection in a transaction; one that died in the pool is replaced before anybody used it."""
        for last in (False, True):
            inner = stack.enter_context(contextlib.ExitStack())
            conn = inner.enter_context(self.engine.connect()).execution_options(wan_mode=mode)
            if self.postgres:
                descriptor = conn.connection.dbapi_connection.fileno()
                inner.enter_context(self.patience.watching(descriptor, patience))
            try:
                inner.enter_context(conn.begin())
                if self.postgres:
                    conn.exec_driver_sql(_limits(mode, patience))
                return conn
            except DBAPIError as error:
                inner.__exit__(type(error), error, error.__traceback__)  # rolls back
                if last or not error.connection_invalidated:
                    raise
        raise AssertionError("not reached")

    def now(self, conn: Connection) -> float:
        """Seconds since the epoch; the server's clock on PostgreSQL, so that hosts need not agree."""
        if self._clock is not None:
            return self._clock()
        if self.postgres:
            return float(conn.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
        return time.time()

    def notify(self, conn: Connection, kind: str, job_id: str) -> None:
        """Wake whoever waits for changes once this transaction commits (SQLite's waiters look for themselves)."""
        if self.postgres:
            conn.execute(text("SELECT pg_notify(:channel, :what)"), {"channel": CHANNEL, "what": f"{kind} {job_id}"})

    def changes(self, *kinds: str) -> Changes:
        """A waiter for changes of these kinds: queued, leased, progress, cancel, done (none given: all)."""
        if not self.postgres:
            return SQLiteChanges(str(self.url.database))
        if self.listen_url == "off":
            return Ticks()
        return PostgresChanges(self.listen_url, CHANNEL, kinds, self.patience)

    def close(self) -> None:
        self.engine.dispose()
        self.patience.close()


def _limits(mode: str, patience: float) -> str:
    """One statement that sets the limits of a transaction; being the first, it also shows whether the connection lives."""
    limits = {"statement_timeout": f"{patience * 800:.0f}", "lock_timeout": f"{patience * 500:.0f}"}  # milliseconds
    if mode == "quick":
        limits["synchronous_commit"] = "off"
    return "SELECT " + ", ".join(f"set_config('{name}', '{value}', true)" for name, value in limits.items())


def transaction(durable: bool = True):
    """Makes a method of the store one transaction (see `Database.transact`) and gives it the connection."""

    def wrap(method):
        @functools.wraps(method)
        def run(self, *arguments, **more):
            return self.database.transact(lambda conn: method(self, conn, *arguments, **more), durable)

        return run

    return wrap


@contextlib.contextmanager
def _unavailable():
    """Turn lost connections, locks held too long and full disks into Unavailable."""
    try:
        yield
    except PoolTimeout:
        raise Unavailable("the job database is overloaded; try again", 2) from None
    except DBAPIError as error:
        if not _transient(error):
            raise
        reason = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
        kind = RolledBack if getattr(error.orig, "sqlstate", None) in ROLLED_BACK else Unavailable
        raise kind(f"the job database cannot be used at the moment ({reason[:120]})") from error


def _transient(error: DBAPIError) -> bool:
    # QueryCanceled: the statement's time limit
    kinds = (
        "QueryCanceled",
        "LockNotAvailable",
        "OperationalError",
        "InterfaceError",
        "AdminShutdown",
        "CrashShutdown",
        "CannotConnectNow",
    )
    return error.connection_invalidated or any(kind.__name__ in kinds for kind in type(error.orig).__mro__)
