"""What differs between the two engines: transactions, clock, waking up on changes."""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psycopg
from sqlalchemy import Connection, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.errors import SettingsError, Unavailable

CHANNEL = "wan_jobs"
ROLLED_BACK = ("40P01", "40001")  # SQLSTATE of a deadlock's victim and of a conflict: the same again may succeed
TRIES = 6
T = TypeVar("T")


class RolledBack(Unavailable):
    """PostgreSQL undid the transaction in favour of another one."""


class Database:
    """Connections to SQLite (WAL) or PostgreSQL; any loss of connection surfaces as Unavailable."""

    def __init__(self, url: str, clock: Callable[[], float] | None = None):
        self.url = make_url(url.replace("postgresql://", "postgresql+psycopg://", 1))
        self.postgres = self.url.get_backend_name() == "postgresql"
        self._clock = clock
        # SQLite has one writer. Threads of this process take turns here, in order and without holding a connection;
        # only other processes are left to SQLite's own waiting, which is not fair.
        self._turn = contextlib.nullcontext() if self.postgres else threading.Lock()
        self.engine = self._postgres_engine() if self.postgres else self._sqlite_engine()

    def _postgres_engine(self):
        options = {"connect_timeout": 3, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3,
                   "tcp_user_timeout": 15_000}  # milliseconds; a host that vanished  # fmt: skip
        return create_engine(
            self.url, pool_size=10, max_overflow=10, pool_timeout=10, pool_pre_ping=True, connect_args=options
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
    def write(self, durable: bool = True) -> Iterator[Connection]:
        """A transaction; without `durable` a power failure may undo it (never a part of it), which spares a disk flush.

        Leases, heartbeats and the like may go that way: what they say is renewed or expires.
        """
        options = {"wan_mode": "durable" if durable else "quick"}
        with self._turn, _unavailable(), self.engine.connect() as conn, conn.execution_options(**options).begin():
            if self.postgres and not durable:
                conn.exec_driver_sql("SET LOCAL synchronous_commit = off")
            yield conn

    def transact(self, work: Callable[[Connection], T], durable: bool = True) -> T:
        """`work` in one transaction (see `write`), run again when PostgreSQL rolled it back in favour of another."""
        for number in range(TRIES - 1):
            try:
                with self.write(durable) as conn:
                    return work(conn)
            except RolledBack:
                time.sleep(random.uniform(0, 0.01 * 2**number))  # jitter: the rivals must not meet again
        with self.write(durable) as conn:
            return work(conn)

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        with _unavailable(), self.engine.connect() as conn, conn.execution_options(wan_mode="read").begin():
            yield conn

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

    def changes(self, *kinds: str) -> "PostgresChanges | SQLiteChanges":
        """A waiter for changes of these kinds: queued, leased, progress, cancel, done (none given: all)."""
        return PostgresChanges(self.url, kinds) if self.postgres else SQLiteChanges(str(self.url.database))

    def close(self) -> None:
        self.engine.dispose()


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
    kinds = ("OperationalError", "InterfaceError", "AdminShutdown", "CrashShutdown", "CannotConnectNow")
    return error.connection_invalidated or any(kind.__name__ in kinds for kind in type(error.orig).__mro__)


class SQLiteChanges:
    """Sees commits of other connections, whatever their kind, through `PRAGMA data_version` (a few microseconds)."""

    INTERVAL = 0.005

    def __init__(self, path: str):
        import sqlite3

        self._conn = sqlite3.connect(path, check_same_thread=False)
        self._seen = self._version()

    def _version(self) -> int:
        return self._conn.execute("PRAGMA data_version").fetchone()[0]

    def wait(self, timeout: float) -> bool:
        """Block until something changed (True) or `timeout` seconds passed."""
        deadline = time.monotonic() + timeout
        while True:
            version = self._version()
            if version != self._seen:
                self._seen = version
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(self.INTERVAL)

    def close(self) -> None:
        self._conn.close()


class PostgresChanges:
    """LISTEN on one connection, opened again whenever it breaks."""

    def __init__(self, url, kinds: tuple[str, ...] = ()):
        self._kinds = kinds
        self._dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._conn: psycopg.Connection | None = None

    def wait(self, timeout: float) -> bool:
        """Block until something changed (True) or `timeout` seconds passed; a fresh connection counts as a change."""
        try:
            if self._conn is None:
                self._conn = psycopg.connect(self._dsn, autocommit=True, connect_timeout=3)
                self._conn.execute(f"LISTEN {CHANNEL}")
                return True
            return self._heard(self._conn, timeout)
        except psycopg.Error:
            self.close()
            time.sleep(min(timeout, 0.5))
            return True

    def _heard(self, conn: psycopg.Connection, timeout: float) -> bool:
        for notice in conn.notifies(timeout=timeout):
            if not self._kinds or notice.payload.split(" ")[0] in self._kinds:
                return True
        return False

    def close(self) -> None:
        if self._conn is not None:
            with contextlib.suppress(psycopg.Error):
                self._conn.close()
            self._conn = None
