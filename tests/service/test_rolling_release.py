"""A fleet between two releases: the code before the last migration, out of git, beside this one on one database."""

import ast
import contextlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from loadtest.base.databases import find_binaries
from service.store import JobStore
from service.store.migrations import MIGRATIONS
from tests.service.fake_triton import FakeTriton
from tests.service.running import gateway, settings_for, until, wait_for, worker

ROOT = Path(__file__).parents[2]
FILE = "service/store/migrations.py"
DRIVER = Path(__file__).with_name("earlier_release.py")
STEPS = 40  # of 0.05 s
CHECKPOINT_EVERY = 5


def git(*words: str) -> bytes:
    """Output of git; skips where there is none, or no history."""
    try:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the code before the last migration is not here: {error}")


def migrations_in(source: str) -> int:
    """How many versions of the schema a release's `migrations.py` lists."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "MIGRATIONS":
            return len(node.value.elts)
    return 0


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    """The tree of the last commit whose schema was one version behind."""
    folder = tmp_path_factory.mktemp("earlier")
    for commit in git("log", "-30", "--format=%H", "--", FILE).decode().split():
        if migrations_in(git("show", f"{commit}:{FILE}").decode()) == len(MIGRATIONS) - 1:
            with tarfile.open(fileobj=io.BytesIO(git("archive", commit))) as archive:
                archive.extractall(folder, filter="data")
            return folder
    pytest.skip("git's history does not reach back before the last migration (a shallow clone?)")


@contextlib.contextmanager
def release_before(tree: Path, folder: Path, database_url: str, name: str):
    """URL of the earlier release's gateway, which has a worker beside it; `end()` stops both as a roll-out does."""
    command = [sys.executable, str(DRIVER), str(folder), str(folder / name), database_url]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WAN_") and k != "PYTHONPATH"}
    with subprocess.Popen(
        command, cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            url = process.stdout.readline().strip()
            assert url, "the earlier release did not start"
            yield url
        finally:
            process.stdin.close()
            process.wait(30)


@contextlib.contextmanager
def this_release(folder: Path, database_url: str):
    settings = settings_for(folder, run_dir=folder / "new", database_url=database_url, drain_seconds=0)
    with (
        gateway(settings) as url,
        worker(settings, FakeTriton(settings.runs, step_seconds=0.05, checkpoint_every=CHECKPOINT_EVERY)) as running,
    ):
        yield url, running


def submit(url: str, seed: int) -> str:
    answer = httpx.post(f"{url}/v1/videos", json={"prompt": "x", "steps": STEPS, "seed": seed}, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def schema_version(database_url: str) -> int:
    """Without migrating anything."""
    from service.store.database import Database

    database = Database(database_url)
    with database.read() as conn:
        version = conn.execute(text("SELECT max(version) FROM schema_version")).scalar_one()
    database.close()
    return version


@pytest.fixture
def one_database(request, tmp_path) -> str:
    """PostgreSQL as a fleet has it, where it is installed."""
    if find_binaries() is None:
        return f"sqlite:///{tmp_path}/jobs.db"
    server = request.getfixturevalue("postgres")
    server.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public", "wan")
    return server.url()


@pytest.mark.slow
def test_an_upgrade_with_jobs_in_flight_and_its_undoing_lose_and_repeat_nothing(earlier, one_database, tmp_path):
    with release_before(earlier, tmp_path, one_database, "old") as old:
        assert schema_version(one_database) == len(MIGRATIONS) - 1
        jobs = [submit(old, seed) for seed in range(2)]
        with httpx.Client(base_url=old, timeout=30) as before:
            until(lambda: before.get(f"/v1/videos/{jobs[0]}").json()["step"] > 2)
            with (
                this_release(tmp_path, one_database) as (new, running),
                httpx.Client(base_url=new, timeout=30) as after,
            ):
                assert schema_version(one_database) == len(MIGRATIONS)
                jobs += [submit(old, 10), submit(new, 11), submit(old, 12), submit(new, 13)]
                states = {url.get(f"/v1/videos/{job}").json()["model"] for url in (before, after) for job in jobs}
                assert states == {"wan-test"}  # each reads what the other wrote
                wait_for(after, jobs[0], seconds=60)
                wait_for(before, jobs[3], seconds=60)
                last = submit(new, 20)
                jobs.append(last)

                def has_checkpoint() -> bool:
                    attempts = list(running.worker.attempts.values())
                    shown = [after.get(f"/v1/videos/{attempt.job.id}").json() for attempt in attempts]
                    return any(CHECKPOINT_EVERY < video["step"] < STEPS for video in shown)

                until(has_checkpoint, seconds=30)  # this one is handed to the earlier release
        with release_before(earlier, tmp_path, one_database, "undone") as undone:  # starts on the newer schema
            jobs.append(submit(undone, 30))
            with httpx.Client(base_url=undone, timeout=30) as client:
                videos = [wait_for(client, job, seconds=90) for job in jobs]
    assert [video["status"] for video in videos] == ["completed"] * len(jobs)
    assert [video["attempts"] for video in videos] == [1] * len(jobs)
    assert any(video["resumed_from"] for video in videos)  # what was handed over went on from its checkpoint
    store = JobStore(one_database)  # the release after all comes again
    assert all(store.get(job).video_bytes for job in jobs)
    assert store.stats(model="wan-test")["finished"] == {"completed": len(jobs)}
    store.close()


def test_versions_are_counted_in_a_source(tmp_path):
    assert migrations_in((ROOT / FILE).read_text()) == len(MIGRATIONS)
    assert migrations_in("MIGRATIONS: list = [(), ()]") == 2
    assert migrations_in("x = 1") == 0
