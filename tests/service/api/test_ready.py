"""Readiness is answered in time, whatever the database does."""

import asyncio
import sqlite3
import threading
import time

import pytest
from starlette.concurrency import run_in_threadpool

from service.api.gateway import Gateway
from service.store import NewJob
from tests.service.running import settings_for


async def timed_ready(gateway) -> tuple[bool, float]:
    started = time.monotonic()
    return await gateway.ready(), time.monotonic() - started


def test_sixty_writers_that_wait_for_a_locked_database_do_not_delay_the_answer(tmp_path):
    async def check():
        gateway = Gateway(settings_for(tmp_path))
        await gateway.start()
        other = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None, timeout=10)
        other.execute("BEGIN IMMEDIATE")
        try:
            new = [NewJob("a", {"prompt": "p", "steps": 1}, 1.0) for _ in range(60)]
            writers = [asyncio.create_task(run_in_threadpool(gateway.store.submit, job)) for job in new]
            await asyncio.sleep(0.5)
            assert not any(writer.done() for writer in writers)
            answer = await timed_ready(gateway)
        finally:
            other.execute("ROLLBACK")
            other.close()
        await asyncio.gather(*writers)
        await gateway.stop()
        return answer

    ready, seconds = asyncio.run(check())
    assert ready
    assert seconds < 2.5


def test_a_database_that_does_not_answer_makes_the_gateway_not_ready_in_two_seconds(tmp_path, monkeypatch):
    release = threading.Event()

    async def check():
        gateway = Gateway(settings_for(tmp_path))
        await gateway.start()
        ping = gateway.store.ping
        monkeypatch.setattr(gateway.store, "ping", lambda: release.wait(30))
        answers = await asyncio.gather(*[timed_ready(gateway) for _ in range(5)])
        release.set()
        monkeypatch.setattr(gateway.store, "ping", ping)
        await asyncio.sleep(0.2)
        answers.append(await timed_ready(gateway))
        await gateway.stop()
        return answers

    *hung, healed = asyncio.run(check())
    assert [ready for ready, _ in hung] == [False] * 5
    assert max(seconds for _, seconds in hung) == pytest.approx(2, abs=1.5)
    assert healed[0]
