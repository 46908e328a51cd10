"""Workers that stop, start again or are stopped while something else is away: no job loses an attempt by it."""

import asyncio
import os
import subprocess
import sys
import time

from service.stack import ROOT
from service.storage import Storage
from service.store import JobStore, upkeep
from service.worker import run_directories
from tests.service.fake_triton import FakeTriton
from tests.service.running import WorkerThread, over, submit, until, worker


def test_a_worker_that_starts_again_under_its_name_goes_on_at_once(settings, store):
    named = settings.model_copy(update={"worker_id": "pod-0", "lease_seconds": 60.0})
    first = WorkerThread(named, FakeTriton(settings.runs, step_seconds=0.1))
    job_id = submit(store)
    until(lambda: store.get(job_id).checkpoint_step == 5)
    orphan = run_directories.Run(settings.runs, f"{job_id}-1")
    first.kill()
    assert not (orphan.path / "cancel").exists()
    with worker(named, FakeTriton(settings.runs)):
        until(lambda: (orphan.path / "cancel").exists() or not orphan.path.exists(), seconds=5)
        job = over(store, job_id)
    assert (job.status, job.attempts, job.fence, job.info["resumed_from"]) == ("completed", 1, 2, 5)


def test_a_drain_without_a_database_ends_in_time_and_costs_no_attempt(settings, postgres, monkeypatch):
    monkeypatch.setattr(upkeep, "JUMP_SECONDS", 2.0)
    postgres.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public", "wan")
    away = settings.model_copy(update={"database_url": postgres.url(), "drain_seconds": 0.0, "handover_seconds": 3.0})
    store = JobStore.from_settings(away)
    thread = WorkerThread(away, FakeTriton(settings.runs, step_seconds=0.1))
    job_id = submit(store, steps=1000)
    until(lambda: store.get(job_id).checkpoint_step)
    postgres.kill()
    try:
        asked = time.monotonic()
        thread.drain()
        assert time.monotonic() - asked < 3 + 10  # the hand-over, and a try to connect that was under way
    finally:
        postgres.start()
    until(lambda: store.sweep() is not None and store.get(job_id).status == "queued", seconds=30)
    assert store.get(job_id).attempts == 0
    store.close()


def test_a_worker_ends_although_its_database_hangs(settings, postgres):
    postgres.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public", "wan")
    store = JobStore(postgres.url())
    environment = {"WAN_STATE_DIR": str(settings.state_dir), "WAN_DATABASE_URL": postgres.url(), "WAN_TRITON_URL": "127.0.0.1:9",
                   "WAN_MODEL_CARD": str(settings.model_card)}  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "service.worker"], cwd=ROOT, env=os.environ | environment)
    try:
        until(lambda: store.stats()["workers"] == {"waiting": 1}, seconds=60)
        store.close()
        with postgres.frozen():
            time.sleep(1.5)  # it asks, and gets no answer
            process.terminate()
            assert process.wait(40) == 0
    finally:
        process.kill()
        process.wait()


class HungStore(Storage):
    """Takes for ever to store a checkpoint once it is told to hang."""

    hangs = False

    def put(self, source, key):
        while self.hangs and "checkpoint" in key:
            time.sleep(0.05)
        return super().put(source, key)


def test_a_drain_with_a_store_that_hangs_hands_over_with_the_checkpoint_before(settings, store):
    quick = settings.model_copy(update={"drain_seconds": 0.0, "handover_seconds": 1.5})
    thread = WorkerThread(quick, FakeTriton(settings.runs, step_seconds=0.1, checkpoint_every=1))
    files = thread.worker.tools.files = HungStore(settings.storage)
    job_id = submit(store, steps=1000)
    until(lambda: store.get(job_id).checkpoint_step)
    files.hangs = True
    thread.loop.call_soon_threadsafe(thread.worker.drain)
    until(lambda: store.get(job_id).status == "queued", seconds=6)
    files.hangs = False
    thread.thread.join(10)
    assert store.get(job_id).attempts == 0
    assert store.get(job_id).step == store.get(job_id).checkpoint_step > 0


class SlowStart(FakeTriton):
    """Shows step 0 for a second before the first step, as a stage does that loads."""

    async def generate(self, request_id, request, preview=False, media=None):
        (self.run_dir / request_id / "progress.json").write_text('{"step": 0, "steps": 10, "phase": "denoise"}')
        await asyncio.sleep(1)
        return await super().generate(request_id, request, preview, media)


def test_a_resumed_job_never_falls_back_to_step_0(settings, store):
    first = WorkerThread(settings.model_copy(update={"drain_seconds": 0.0}),
                         FakeTriton(settings.runs, step_seconds=0.1, checkpoint_every=1))  # fmt: skip
    job_id = submit(store)
    until(lambda: store.get(job_id).step >= 3)
    first.drain()
    steps = {store.get(job_id).step}
    with worker(settings, SlowStart(settings.runs)):
        until(lambda: steps.add(store.get(job_id).step) or store.get(job_id).done)
    assert min(steps) >= 3


def test_a_stopping_worker_hands_its_job_over_without_losing_a_step(settings, store):
    quick = settings.model_copy(update={"drain_seconds": 0.0})
    first = WorkerThread(quick, FakeTriton(settings.runs, step_seconds=0.1, checkpoint_every=1))
    job_id = submit(store)
    until(lambda: store.get(job_id).step >= 3)
    first.drain()
    waiting = store.get(job_id)
    assert (waiting.status, waiting.attempts) == ("queued", 0)
    assert waiting.checkpoint_step is not None
    with worker(settings):
        job = over(store, job_id)
    assert (job.status, job.attempts) == ("completed", 1)
    assert job.info["resumed_from"] >= 3


def test_a_draining_worker_finishes_what_fits_and_leases_no_more(settings, store):
    thread = WorkerThread(settings, FakeTriton(settings.runs, step_seconds=0.05))
    running = submit(store)
    until(lambda: store.get(running).status == "in_progress")
    waiting = submit(store)
    thread.drain()
    assert (store.get(running).status, store.get(waiting).status) == ("completed", "queued")
