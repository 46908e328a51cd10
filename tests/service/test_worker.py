"""Workers around a stand-in for Triton: everything but the model is real."""

import asyncio
import json
import os
import subprocess
import sys
import time

import httpx
import psutil
import pytest

from service import runs
from service.errors import GenerationRejected, StageHung
from service.stack import ROOT
from service.storage import Storage
from service.store import JobStore, NewJob, upkeep
from tests.service.fake_triton import FakeTriton
from tests.service.running import WorkerThread, settings_for, worker

REQUEST = {
    "prompt": "p",
    "width": 32,
    "height": 32,
    "num_frames": 5,
    "steps": 10,
    "guidance_scale": 1.0,
    "fps": 16,
    "seed": 7,
}


@pytest.fixture
def settings(tmp_path):
    return settings_for(tmp_path)


@pytest.fixture
def store(settings):
    opened = JobStore.from_settings(settings)
    yield opened
    opened.close()


def submit(store, **more):
    return store.submit(NewJob("anonymous", REQUEST | more, cost=1.0))[0].id


def until(check, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def over(store, job_id):
    until(lambda: store.get(job_id).done)
    return store.get(job_id)


def test_a_job_becomes_a_video_and_leaves_nothing_else(settings, store):
    with worker(settings):
        job = over(store, submit(store, preview=True))
        assert (job.status, job.step, job.attempts) == ("completed", 10, 1)
        files = Storage(settings.storage)
        assert files.size(job.video_key) == job.video_bytes > 0
        until(lambda: not list(settings.runs.iterdir()))
    assert [path.name for path in (settings.state_dir / "videos" / job.id).iterdir()] == ["video-1.mp4"]
    assert store.stats()["workers"] == {}


def test_an_attempt_that_breaks_is_resumed_from_its_checkpoint(settings, store):
    triton = FakeTriton(settings.runs)
    triton.break_at["p"] = 8
    with worker(settings, triton):
        job = over(store, submit(store))
    assert (job.status, job.attempts, job.info["resumed_from"]) == ("completed", 2, 5)
    assert triton.steps_done == [("p", step) for step in [*range(1, 9), *range(6, 11)]]


def test_a_killed_worker_loses_no_job_and_its_late_writes_are_ignored(settings, store):
    triton = FakeTriton(settings.runs, step_seconds=0.1)
    first = WorkerThread(settings, triton)
    job_id = submit(store)
    until(lambda: store.get(job_id).checkpoint_step == 5)
    first.kill()
    second = FakeTriton(settings.runs, step_seconds=0.01)
    with worker(settings, second):
        job = over(store, job_id)
    assert (job.status, job.attempts) == ("completed", 2)
    assert job.info["resumed_from"] >= 5
    assert [path.name for path in (settings.state_dir / "videos" / job_id).iterdir()] == ["video-2.mp4"]


def test_a_worker_that_starts_again_under_its_name_goes_on_at_once(settings, store):
    named = settings.model_copy(update={"worker_id": "pod-0", "lease_seconds": 60.0})
    first = WorkerThread(named, FakeTriton(settings.runs, step_seconds=0.1))
    job_id = submit(store)
    until(lambda: store.get(job_id).checkpoint_step == 5)
    orphan = runs.Run(settings.runs, f"{job_id}-1")
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
        server = psutil.Process(postgres.process.pid)
        frozen = [server, *server.children(recursive=True)]
        for part in frozen:
            part.suspend()
        try:
            time.sleep(1.5)  # it asks, and gets no answer
            process.terminate()
            assert process.wait(40) == 0
        finally:
            for part in frozen:
                part.resume()
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


def test_checkpoints_of_earlier_attempts_go_with_the_next_and_the_last_with_the_job(settings, store):
    triton = FakeTriton(settings.runs, step_seconds=0.2, checkpoint_every=3)
    triton.break_at["p"] = 4
    folder = settings.state_dir / "videos"
    with worker(settings, triton):
        job_id = submit(store)
        until(lambda: (folder / job_id / "checkpoint-1.safetensors").exists())
        until(lambda: [path.name for path in (folder / job_id).iterdir()] == ["checkpoint-2.safetensors"])
        assert over(store, job_id).info["resumed_from"] == 3
        until(lambda: [path.name for path in (folder / job_id).iterdir()] == ["video-2.mp4"])


def test_a_job_that_failed_leaves_no_checkpoint(settings, store):
    hopeless = settings.model_copy(update={"max_attempts": 1})
    triton = FakeTriton(settings.runs, step_seconds=0.1)
    triton.break_at["p"] = 8
    with worker(hopeless, triton):
        job_id = submit(store)
        until(lambda: (settings.state_dir / "videos" / job_id / "checkpoint-1.safetensors").exists())
        assert over(store, job_id).status == "failed"
        until(lambda: not list((settings.state_dir / "videos" / job_id).iterdir()))
    assert store.with_leftovers() == []


class JunkProgress(FakeTriton):
    """Writes a progress.json that no stage would."""

    async def generate(self, request_id, request, preview=False):
        (self.run_dir / request_id / "progress.json").write_text('[{"step": 1}]')
        await asyncio.sleep(0.5)
        return await super().generate(request_id, request, preview)


def test_junk_in_the_progress_costs_no_attempt(settings, store):
    with worker(settings, JunkProgress(settings.runs)):
        job = over(store, submit(store))
    assert (job.status, job.attempts) == ("completed", 1)


class SlowStart(FakeTriton):
    """Shows step 0 for a second before the first step, as a stage does that loads."""

    async def generate(self, request_id, request, preview=False):
        (self.run_dir / request_id / "progress.json").write_text('{"step": 0, "steps": 10, "phase": "denoise"}')
        await asyncio.sleep(1)
        return await super().generate(request_id, request, preview)


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


def test_another_machine_resumes_from_the_stored_checkpoint(settings, store, tmp_path):
    first = WorkerThread(settings, FakeTriton(settings.runs, step_seconds=0.1))
    job_id = submit(store)
    until(lambda: store.get(job_id).checkpoint_step == 5)
    first.kill()
    elsewhere = settings.model_copy(update={"run_dir": tmp_path / "other-machine"})
    with worker(elsewhere, FakeTriton(elsewhere.runs)):
        assert over(store, job_id).info["resumed_from"] == 5


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


def test_cancel_stops_the_loop_within_a_step(settings, store):
    triton = FakeTriton(settings.runs, step_seconds=0.2)
    with worker(settings, triton):
        job_id = submit(store, steps=100)
        until(lambda: store.get(job_id).step >= 1)
        asked = time.monotonic()
        store.cancel(job_id)
        assert over(store, job_id).status == "cancelled"
        assert triton.stopped_at[f"{job_id}-1"] - asked < 0.2 + 0.2


def test_a_lost_lease_stops_the_attempt_and_writes_nothing(settings, store):
    triton = FakeTriton(settings.runs, step_seconds=0.1)
    with worker(settings, triton):
        job_id = submit(store, steps=60)
        until(lambda: store.get(job_id).step >= 1)
        with store.database.write() as conn:  # another worker takes the job
            conn.exec_driver_sql(
                f"UPDATE jobs SET fence = 99, worker = 'other', lease_until = 1e12 WHERE id = '{job_id}'"
            )
        until(lambda: triton.stopped_at or not triton._slots.locked())
        time.sleep(0.5)
        job = store.get(job_id)
    assert (job.status, job.fence, job.worker, job.video_key) == ("in_progress", 99, "other", None)


def test_a_rejected_request_is_not_tried_again(settings, store):
    triton = FakeTriton(settings.runs)
    triton.error = GenerationRejected("WIDTH is 17; allowed: multiples of 16")
    with worker(settings, triton):
        job = over(store, submit(store))
    assert (job.status, job.error_code, len(triton.calls)) == ("failed", "invalid_value", 1)
    assert "WIDTH is 17" in job.error_message


def test_nothing_is_leased_while_triton_is_not_ready(settings, store):
    triton = FakeTriton(settings.runs)
    triton.is_ready = False
    with worker(settings, triton):
        job_id = submit(store)
        until(lambda: store.stats()["workers"] == {"waiting": 1})
        assert store.get(job_id).status == "queued"
        triton.is_ready = True
        assert over(store, job_id).status == "completed"


def test_a_worker_never_holds_more_jobs_in_denoise_than_triton_has_slots(settings, store):
    triton = FakeTriton(settings.runs, step_seconds=0.05, slot_count=2)
    with worker(settings, triton):
        jobs = [submit(store, prompt=str(number)) for number in range(5)]
        until(lambda: store.stats()["running"] == 2)
        time.sleep(0.2)
        assert len(triton.calls) == 2
        for job_id in jobs:
            assert over(store, job_id).status == "completed"


def test_a_store_that_fails_for_a_while_delays_the_video_only(settings, store):
    blocked = settings.state_dir / "videos"
    blocked.write_text("a file where the folder should be")
    with worker(settings):
        job_id = submit(store)
        until(lambda: store.get(job_id).phase == "encode")
        time.sleep(0.3)
        blocked.unlink()
        assert over(store, job_id).status == "completed"


def test_a_store_that_stays_broken_fails_the_job_with_a_clear_reason(settings, store):
    (settings.state_dir / "videos").write_text("a file where the folder should be")
    impatient = settings.model_copy(update={"storage_retry_seconds": 0.1, "max_attempts": 1})
    with worker(impatient):
        job = over(store, submit(store))
        job = store.get(job.id) if job.status == "failed" else job
    assert (job.status, job.error_code) in [("failed", "storage_unavailable")]
    assert "video store" in job.error_message


def test_directories_of_dead_attempts_are_stopped_and_removed(settings, store):
    job_id = submit(store)
    stale = runs.Run(settings.runs, f"{job_id}-77")
    stale.create()
    with worker(settings):
        over(store, job_id)
        until(lambda: (stale.path / "cancel").exists() or not stale.path.exists())


def test_a_frozen_stage_is_given_up(settings, store):
    impatient = settings.model_copy(update={"stall_seconds": 0.5, "max_attempts": 1})
    with worker(impatient, FakeTriton(settings.runs, step_seconds=30)):
        job = over(store, submit(store))
    assert (job.status, job.error_message) == ("failed", "no progress for 0.5 s")


def test_after_a_stage_that_hung_triton_gets_nothing_until_it_was_restarted(settings, store):
    patient = settings.model_copy(update={"stall_seconds": 4})
    triton = FakeTriton(settings.runs)
    triton.error = StageHung("Stub process 'denoise_0_0' is not healthy. (INTERNAL)")
    with worker(patient, triton):
        job_id = submit(store)
        until(lambda: runs.broken_since(settings.runs))
        triton.error = None
        until(lambda: store.stats()["workers"] == {"waiting": 1})
        assert (store.get(job_id).status, len(triton.calls)) == ("queued", 1)
        triton.is_ready = False  # the restart
        until(lambda: runs.broken_since(settings.runs) is None, seconds=3)
        triton.is_ready = True
        assert over(store, job_id).attempts == 2


def test_worker_metrics_are_served_over_http(settings, store):
    from prometheus_client import start_http_server

    server, _ = start_http_server(0)
    with worker(settings):
        over(store, submit(store))
    text = httpx.get(f"http://127.0.0.1:{server.server_port}/metrics").text
    for name in ("wan_queue_wait_seconds_bucket", 'wan_stage_seconds_count{stage="denoise"}', "wan_gpu_seconds_total",
                 'wan_denoise_steps_total{kind="computed"}', "wan_denoise_step_seconds_count", 'le="3600.0"'):  # fmt: skip
        assert name in text
    server.shutdown()


class SlowDecoder(FakeTriton):
    """Decodes for a second once the steps are done, and says that 7 seconds are left."""

    async def generate(self, request_id, request, preview=False):
        result = await super().generate(request_id, request, preview)
        progress = {"step": 10, "steps": 10, "skipped": 0, "step_seconds": 1.0, "eta_seconds": 7.0, "phase": "decode"}
        (self.run_dir / request_id / "progress.json").write_text(json.dumps(progress))
        await asyncio.sleep(1)
        return result


def test_the_time_left_of_a_job_goes_on_while_it_is_decoded(settings, store):
    with worker(settings, SlowDecoder(settings.runs)):
        job_id = submit(store)
        until(lambda: store.get(job_id).phase == "decode")
        assert store.get(job_id).eta_seconds == 7.0
        assert over(store, job_id).status == "completed"
