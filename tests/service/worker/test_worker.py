"""Workers around a stand-in for Triton: everything but the model is real."""

import asyncio
import json
import time

import httpx

from service.errors import GenerationRejected, StageHung
from service.storage import Storage
from service.worker import run_directories
from tests.service.fake_triton import FakeTriton
from tests.service.running import WorkerThread, over, submit, until, worker


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
    assert (job.status, job.attempts, job.info["resumed_from"]) == ("completed", 1, 5)
    assert [row["code"] for row in store.history(job.id)] == ["generation_failed"]
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
    assert (job.status, job.attempts) == ("completed", 1)
    assert job.info["resumed_from"] >= 5
    assert [path.name for path in (settings.state_dir / "videos" / job_id).iterdir()] == ["video-2.mp4"]


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


def test_a_video_of_an_attempt_that_died_before_it_said_so_goes_with_the_one_that_counts(settings, store):
    triton = FakeTriton(settings.runs)
    triton.break_at["p"] = 4
    folder = settings.state_dir / "videos"
    job_id = submit(store)
    (folder / job_id).mkdir(parents=True)
    (folder / job_id / "video-1.mp4").write_bytes(b"of the first attempt")
    with worker(settings, triton):
        assert over(store, job_id).video_key == f"{job_id}/video-2.mp4"
        until(lambda: [path.name for path in (folder / job_id).iterdir()] == ["video-2.mp4"])


def test_a_job_that_failed_leaves_no_checkpoint(settings, store):
    triton = FakeTriton(settings.runs, step_seconds=0.1)
    triton.break_at["p"], triton.break_with = 8, GenerationRejected("too much")
    with worker(settings, triton):
        job_id = submit(store)
        until(lambda: (settings.state_dir / "videos" / job_id / "checkpoint-1.safetensors").exists())
        assert over(store, job_id).status == "failed"
        until(lambda: not list((settings.state_dir / "videos" / job_id).iterdir()))
    assert store.with_leftovers() == []


class JunkProgress(FakeTriton):
    """Writes a progress.json that no stage would."""

    async def generate(self, request_id, request, preview=False, media=None):
        (self.run_dir / request_id / "progress.json").write_text('[{"step": 1}]')
        await asyncio.sleep(0.5)
        return await super().generate(request_id, request, preview, media)


def test_junk_in_the_progress_costs_no_attempt(settings, store):
    with worker(settings, JunkProgress(settings.runs)):
        job = over(store, submit(store))
    assert (job.status, job.attempts) == ("completed", 1)


def test_another_machine_resumes_from_the_stored_checkpoint(settings, store, tmp_path):
    first = WorkerThread(settings, FakeTriton(settings.runs, step_seconds=0.1))
    job_id = submit(store)
    until(lambda: store.get(job_id).checkpoint_step == 5)
    first.kill()
    elsewhere = settings.model_copy(update={"run_dir": tmp_path / "other-machine"})
    with worker(elsewhere, FakeTriton(elsewhere.runs)):
        assert over(store, job_id).info["resumed_from"] == 5


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


def test_a_video_that_waits_for_a_store_can_be_cancelled(settings, store):
    (settings.state_dir / "videos").write_text("a file where the folder should be")
    with worker(settings):
        job_id = submit(store)
        until(lambda: store.get(job_id).phase == "encode")
        store.cancel(job_id)
        assert over(store, job_id).status == "cancelled"


def test_directories_of_dead_attempts_are_stopped_and_removed(settings, store):
    job_id = submit(store)
    stale = run_directories.Run(settings.runs, f"{job_id}-77")
    stale.create()
    with worker(settings):
        over(store, job_id)
        until(lambda: (stale.path / "cancel").exists() or not stale.path.exists())


def test_a_frozen_stage_is_given_up_and_the_job_is_not_to_blame(settings, store):
    impatient = settings.model_copy(update={"stall_seconds": 0.5})
    with worker(impatient, FakeTriton(settings.runs, step_seconds=30)):
        job_id = submit(store)
        until(lambda: store.history(job_id))
        (lost,) = store.history(job_id)[:1]
        assert (lost["fault"], lost["code"], lost["message"]) == ("worker", "stage_hung", "no progress for 0.5 s")
        assert store.get(job_id).status == "queued"


def test_after_a_stage_that_hung_triton_gets_nothing_until_it_was_restarted(settings, store):
    patient = settings.model_copy(update={"stall_seconds": 4})
    triton = FakeTriton(settings.runs)
    triton.error = StageHung("Stub process 'denoise_0_0' is not healthy. (INTERNAL)")
    with worker(patient, triton):
        job_id = submit(store)
        until(lambda: run_directories.broken_since(settings.runs))
        triton.error = None
        until(lambda: store.stats()["workers"] == {"waiting": 1} and store.get(job_id).status == "queued")
        assert len(triton.calls) == 1
        triton.is_ready = False  # the restart
        until(lambda: run_directories.broken_since(settings.runs) is None, seconds=3)
        triton.is_ready = True
        assert over(store, job_id).fence == 2


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
    server.server_close()


class SlowDecoder(FakeTriton):
    """Decodes for a second once the steps are done, and says that 7 seconds are left."""

    async def generate(self, request_id, request, preview=False, media=None):
        result = await super().generate(request_id, request, preview, media)
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
