"""A PostgreSQL that vanishes, freezes or stands behind a pooler; nothing waits for ever and nobody loses a lease."""

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time

import psycopg
import pytest

from service.errors import ServiceError, Unavailable
from service.store import JobStore, NewJob, Progress, upkeep
from service.store.patience import Patience

PGBOUNCER = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"


def new(owner="alice"):
    return NewJob(owner, {"prompt": "p", "steps": 5}, 1.0)


@pytest.fixture
def empty(postgres):
    postgres.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public", "wan")
    return postgres


def test_a_socket_is_shut_when_its_time_is_over_and_not_before():
    patience = Patience()
    mine, other = socket.socketpair()
    with patience.watching(mine.fileno(), 60), patience.watching(mine.fileno(), 0.3):
        began = time.monotonic()
        assert mine.recv(1) == b""
        assert 0.2 < time.monotonic() - began < 5
    kept, peer = socket.socketpair()
    with patience.watching(kept.fileno(), 0.3):
        pass
    time.sleep(0.6)
    peer.send(b"x")
    assert kept.recv(1) == b"x"
    patience.close()
    for each in (mine, other, kept, peer):
        each.close()


def test_a_server_that_freezes_is_noticed_and_used_again_when_it_answers(empty):
    store = JobStore(empty.url())
    store.submit(new())
    lease = store.lease("w")
    with empty.frozen():
        began = time.monotonic()
        with pytest.raises(Unavailable):
            store.heartbeat(lease)
        assert time.monotonic() - began < 15
    assert store.heartbeat(lease) is False
    store.close()


def test_a_listener_that_hears_nothing_asks_and_comes_back(empty, monkeypatch):
    monkeypatch.setattr("service.store.changes.ASK_SECONDS", 0.5)
    monkeypatch.setattr("service.store.changes.ANSWER_SECONDS", 1.0)
    store = JobStore(empty.url())
    changes = store.database.changes("queued")
    while changes.wait(0.2):
        pass
    with empty.frozen():
        time.sleep(0.6)
        began = time.monotonic()
        assert changes.wait(1.0)  # the connection is given up
        assert time.monotonic() - began < 5
    deadline = time.monotonic() + 10
    while changes.wait(0.2):
        assert time.monotonic() < deadline
    store.submit(new())
    assert changes.wait(5)
    changes.close()
    store.close()


class Holder(threading.Thread):
    """Holds a lease as a worker does: a heartbeat twice a second, whatever becomes of it, and completes it at the end."""

    def __init__(self, store, lease, ended):
        super().__init__()
        self.store, self.lease, self.ended, self.problem = store, lease, ended, None

    def run(self):
        try:
            while not self.ended.wait(0.5):
                with contextlib.suppress(Unavailable):
                    self.store.heartbeat(self.lease, Progress(step=1))
            while True:
                with contextlib.suppress(Unavailable):
                    self.store.complete(self.lease, "v", 1, {"gpu_seconds": 1.0})
                    return
        except ServiceError as error:
            self.problem = error


@pytest.mark.parametrize("kind", [pytest.param("killed", marks=pytest.mark.slow), "frozen"])
def test_three_outages_longer_than_a_lease_take_no_lease_and_no_result(empty, monkeypatch, kind):
    monkeypatch.setattr(upkeep, "JUMP_SECONDS", 1.5)
    store, ended = JobStore(empty.url(), lease_seconds=2), threading.Event()
    for number in range(12):
        store.submit(new(f"owner-{number % 3}"))
    holders = [Holder(store, store.lease(f"w{number}"), ended) for number in range(12)]
    [holder.start() for holder in holders]
    swept = threading.Event()

    def sweep():
        while not swept.wait(0.3):
            with contextlib.suppress(Unavailable):
                store.sweep()

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for number in range(3):
            time.sleep(1)
            if kind == "frozen":
                with empty.frozen():
                    time.sleep(4)
            else:
                empty.kill()
                if number == 2:
                    ended.set()  # results that are there while nobody can be told
                time.sleep(4)
                empty.start()
        time.sleep(1)
        ended.set()
        [holder.join(60) for holder in holders]
    finally:
        swept.set()
        sweeper.join(30)
    assert [holder.problem for holder in holders] == [None] * 12
    made = store.page(None, limit=50)[0]
    assert [(job.status, job.attempts, job.fence) for job in made] == [("completed", 1, 1)] * 12
    assert not [row for job in made for row in store.history(job.id)]
    store.close()


@pytest.fixture
def bouncer(empty, tmp_path):
    """The address of a PgBouncer in transaction mode with five server connections."""
    if not os.access(PGBOUNCER, os.X_OK):
        pytest.skip("no PgBouncer installed (apt: pgbouncer)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "pgbouncer.ini"
    tmp_path.chmod(0o755)
    config.write_text(f"""[databases]
wan = host=127.0.0.1 port={empty.port} dbname=wan user=wan
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 5
max_client_conn = 1000
""")
    user = ["--user=postgres"] if os.geteuid() == 0 else []
    with subprocess.Popen([PGBOUNCER, "--quiet", *user, str(config)], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"postgresql://wan@127.0.0.1:{port}/wan"
        process.terminate()


def test_many_workers_share_a_few_connections_through_a_pooler(empty, bouncer):
    count, jobs = 60, 120
    first = JobStore(bouncer, connections=1, listen_url="off")
    for number in range(jobs):
        first.submit(new(f"owner-{number % 7}"))
    stores = [first] + [JobStore(bouncer, connections=1, listen_url="off") for _ in range(count - 1)]
    done, problems = [], []

    def work(number):
        store, name = stores[number], f"w{number}"
        changes = store.database.changes("queued")
        try:
            while (lease := store.lease(name)) is not None:
                store.heartbeat(lease, Progress(step=1))
                store.report_worker(name, "busy", 1, 1)
                store.complete(lease, "v", 1, {"gpu_seconds": 1.0})
                done.append(lease.job.id)
            assert changes.wait(2)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    [thread.start() for thread in threads]
    with psycopg.connect(empty.url()) as conn:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'wan' AND pid <> pg_backend_pid()"
        seen = 0
        while any(thread.is_alive() for thread in threads):
            seen = max(seen, conn.execute(query).fetchone()[0])
            conn.rollback()
            time.sleep(0.05)
    assert problems == []
    assert len(done) == len(set(done)) == jobs
    assert 0 < seen <= 6
    [store.close() for store in stores]
