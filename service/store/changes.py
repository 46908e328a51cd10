"""Waking up when jobs change: by PostgreSQL's notifications, SQLite's version counter, or the clock."""

import contextlib
import random
import sqlite3
import time
from typing import Any, Protocol

import psycopg
from sqlalchemy import make_url

from service.store.patience import Patience

# For a host that vanished: TCP gives up after 15 s, with data on their way (tcp_user_timeout, milliseconds) or without.
CONNECT: dict[str, Any] = {"connect_timeout": 3, "keepalives_idle": 6, "keepalives_interval": 3, "keepalives_count": 3,
           "tcp_user_timeout": 12_000}  # fmt: skip
ASK_SECONDS = 5.0  # a connection that only listens hears nothing of its end
ANSWER_SECONDS = 5.0


class Changes(Protocol):
    def wait(self, timeout: float) -> bool:
        """Block until something may have changed (True) or `timeout` seconds passed."""

    def close(self) -> None: ...


class Ticks:
    """For PostgreSQL behind a pooler, which carries no notifications: whoever waits looks for himself."""

    INTERVAL = 0.5

    def wait(self, timeout: float) -> bool:
        time.sleep(min(timeout, random.uniform(0.5, 1.5) * self.INTERVAL))  # jitter: not all at once
        return True

    def close(self) -> None:
        pass


class SQLiteChanges:
    """Sees commits of other connections, whatever their kind, through `PRAGMA data_version` (a few microseconds)."""

    INTERVAL = 0.005

    def __init__(self, path: str):
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
    """LISTEN on one connection of its own, opened again whenever it breaks or says nothing when asked."""

    def __init__(self, url: str, channel: str, kinds: tuple[str, ...], patience: Patience):
        self._kinds, self._channel, self._patience = kinds, channel, patience
        self._dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._conn: psycopg.Connection | None = None
        self._asked = 0.0

    def wait(self, timeout: float) -> bool:
        """Block until something changed (True) or `timeout` seconds passed; a fresh connection counts as a change."""
        try:
            if self._conn is None:
                self._conn = psycopg.connect(self._dsn, autocommit=True, **CONNECT)
                self._ask(self._conn, f"LISTEN {self._channel}")
                return True
            if time.monotonic() - self._asked > ASK_SECONDS:
                self._ask(self._conn, "SELECT 1")
            return self._heard(self._conn, timeout)
        except psycopg.Error:
            self.close()
            time.sleep(min(timeout, random.uniform(0.25, 0.75)))  # jitter: all others lost theirs too
            return True

    def _ask(self, conn: psycopg.Connection, statement: str) -> None:
        with self._patience.watching(conn.fileno(), ANSWER_SECONDS):
            conn.execute(statement.encode())
        self._asked = time.monotonic()

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
