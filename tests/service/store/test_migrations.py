"""Schema versions: one step at a time, once, never backwards; and the queries use the indexes made for them."""

import threading

import pytest
from sqlalchemy import inspect, text

from service.errors import SettingsError
from service.store import JobStore, NewJob
from service.store.database import Database
from service.store.migrations import MIGRATIONS, migrate
from service.store.schema import metadata

MORE = [*MIGRATIONS, ("ALTER TABLE workers ADD COLUMN zone TEXT",)]
FAR = [*MORE, ("ALTER TABLE workers ADD COLUMN shelf TEXT",)]


def test_the_migrations_make_the_tables_that_the_code_reads(database_url):
    store = JobStore(database_url)
    found = inspect(store.database.engine)
    for table in metadata.tables.values():
        assert {column["name"] for column in found.get_columns(table.name)} == {column.name for column in table.columns}
    store.close()


def test_an_older_database_keeps_its_jobs_and_one_of_the_release_after_the_next_is_refused(database_url):
    store = JobStore(database_url)
    job, _ = store.submit(NewJob("alice", {"prompt": "kept", "steps": 1}, 1.0))
    with store.database.write() as conn:
        assert migrate(conn, MORE) == len(MORE)
        assert migrate(conn, MORE) == len(MORE)
        conn.execute(text("UPDATE workers SET zone = 'a'"))
    assert store.get(job.id).request["prompt"] == "kept"
    store.close()
    beside = JobStore(database_url)  # this release while the next one has begun, and after it was undone
    assert beside.version == len(MORE)
    assert beside.complete(beside.lease("w"), "k", 1, {}) == "completed"
    with beside.database.write() as conn:
        migrate(conn, FAR)
    beside.close()
    with pytest.raises(SettingsError, match="run a newer release"):
        JobStore(database_url)


def test_a_migration_that_fails_changes_nothing(database_url):
    store = JobStore(database_url)
    broken = [*MIGRATIONS, ("ALTER TABLE workers ADD COLUMN half TEXT", "ALTER TABLE nowhere ADD COLUMN x TEXT")]
    with pytest.raises(Exception, match="nowhere"), store.database.write() as conn:
        migrate(conn, broken)
    assert "half" not in {column["name"] for column in inspect(store.database.engine).get_columns("workers")}
    store.close()


def test_processes_that_start_together_migrate_once(database_url):
    errors = []

    def start():
        try:
            JobStore(database_url).close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert errors == []


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (
            "SELECT * FROM jobs WHERE status = 'queued' AND level = 1 AND owner = 'a' ORDER BY turn, id LIMIT 1",
            "jobs_queue",
        ),
        (
            "SELECT * FROM jobs WHERE status = 'in_progress' AND lease_until < 5 ORDER BY lease_until LIMIT 9",
            "jobs_running",
        ),
        ("SELECT * FROM jobs WHERE owner = 'a' AND deleted = 0 ORDER BY created_at DESC, id DESC LIMIT 9", "jobs_page"),
    ],
)
def test_the_busy_queries_use_their_index(tmp_path, query, index):
    database = Database(f"sqlite:///{tmp_path}/jobs.db")
    with database.write() as conn:
        migrate(conn)
        plan = " ".join(str(row) for row in conn.execute(text(f"EXPLAIN QUERY PLAN {query}")))
    assert index in plan
    assert "SCAN" not in plan
    database.close()


def test_every_query_of_a_lease_avoids_scanning_the_jobs(tmp_path):
    from sqlalchemy import event

    store = JobStore(f"sqlite:///{tmp_path}/jobs.db")
    store.submit(NewJob("alice", {"prompt": "x", "steps": 1}, 1.0))
    seen = []
    event.listen(store.database.engine, "before_cursor_execute", lambda *a: seen.append((a[2], a[3])))
    assert store.lease("w") is not None
    plans = []
    with store.database.read() as conn:
        for statement, parameters in [entry for entry in seen if entry[0].startswith(("SELECT", "UPDATE"))]:
            plans += [str(row) for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    assert plans
    assert not [plan for plan in plans if "SCAN jobs" in plan]
    store.close()
