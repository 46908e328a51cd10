"""Fixtures of the service tests: both database engines and a clock that stands still."""

import pytest

from loadtest.base.databases import Postgres, find_binaries
from service.store import JobStore


@pytest.fixture(scope="session")
def postgres():
    if find_binaries() is None:
        pytest.skip("no PostgreSQL server installed (Debian: apt-get install postgresql)")
    server = Postgres()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path):
    """The URL of an empty database of each engine."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.db"
    server = request.getfixturevalue("postgres")
    server.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public", "wan")
    return server.url()


class Clock:
    """Time that moves only when told."""

    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(database_url, clock):
    opened = JobStore(database_url, clock=clock)
    yield opened
    opened.close()
