"""Workers that break: they stop taking jobs, prove themselves, and no job pays for them."""

import asyncio
import contextlib
import io
import time

import httpx
import numpy as np
import pytest
from PIL import Image

from service.errors import GenerationFailed
from service.storage import Storage
from service.store import JobStore
from service.worker import health, run_directories, status
from tests.service import pictures
from tests.service.fake_triton import FakeTriton
from tests.service.running import gateway, over, submit, until, worker


def of_its_own(settings, name, **more):
    """Settings of a worker on another machine."""
    return settings.model_copy(update={"run_dir": settings.state_dir / f"run-{name}", "worker_id": name, **more})


class Broken(FakeTriton):
    """Fails every job after 0.3 s, as a stage does whose GPU is gone."""

    async def generate(self, request_id, request, preview=False, media=None):
        self.calls.append(request_id)
        await asyncio.sleep(0.3)
        raise GenerationFailed("CUDA error: an illegal memory access was encountered", "device_error", "GPU-1")


def test_beside_a_worker_that_breaks_at_every_job_none_fails(settings, store):
    bad = of_its_own(settings, "bad")
    broken = Broken(bad.runs)
    with contextlib.ExitStack() as stack:
        stack.enter_context(worker(bad, broken))
        for name in ("a", "b", "c"):
            good = of_its_own(settings, name)
            stack.enter_context(worker(good, FakeTriton(good.runs, step_seconds=0.02)))
        jobs = [submit(store, prompt=str(number)) for number in range(40)]
        until(lambda: all(store.get(job_id).done for job_id in jobs), seconds=120)
        ended = [store.get(job_id) for job_id in jobs]
        assert [job.status for job in ended] == ["completed"] * 40
        assert store.stats()["workers"].get("sick") == 1
    lost = [row for job_id in jobs for row in store.history(job_id)]
    assert 2 <= len(lost) == sum(call.startswith("video_") for call in broken.calls) < 6
    assert {(row["worker"], row["code"], row["gpu"]) for row in lost} == {("bad", "device_error", "GPU-1")}


def test_a_sick_worker_leases_again_once_it_makes_known_frames(settings, store):
    triton = FakeTriton(settings.runs)
    with worker(settings, triton) as thread:
        over(store, submit(store))  # its frames are known now
        triton.error = GenerationFailed("CUDA error", "device_error")
        jobs = [submit(store, prompt=name) for name in ("x", "y")]
        until(lambda: store.stats()["workers"] == {"sick": 1})
        assert not thread.worker.ready
        until(lambda: run_directories.broken_since(settings.runs))  # the canary failed too: Triton shall be restarted
        triton.error, triton.is_ready = None, False
        until(lambda: run_directories.broken_since(settings.runs) is None)
        triton.is_ready = True
        assert [over(store, job_id).status for job_id in jobs] == ["completed", "completed"]
        assert thread.worker.ready


def test_a_job_that_breaks_a_worker_that_is_healthy_ends_as_poison(settings, store):
    class Poisoned(FakeTriton):
        async def generate(self, request_id, request, preview=False, media=None):
            if request["prompt"] == "poison":
                raise GenerationFailed("the latents are NaN", "not_finite")
            return await super().generate(request_id, request, preview, media)

    with worker(settings.model_copy(update={"max_attempts": 2}), Poisoned(settings.runs)):
        job = over_slowly(store, submit(store, prompt="poison"))
        assert (job.status, job.error_code) == ("failed", "poison_job")
        assert "the latents are NaN" in job.error_message
        assert over(store, submit(store)).status == "completed"


def over_slowly(store, job_id):
    until(lambda: store.get(job_id).done, seconds=40)
    return store.get(job_id)


def test_a_canary_whose_frames_differ_or_are_all_alike_does_not_pass(settings, store):
    with worker(settings):
        known = over(store, submit(store))
    triton, run = FakeTriton(settings.runs), run_directories.Run(settings.runs, "canary-1")
    asyncio.run(health.canary(triton, Storage(settings.storage), run, known, settings.card))
    assert not run.path.exists()
    other = known.__class__(**{**vars(known), "request": known.request | {"seed": 8}})
    with pytest.raises(GenerationFailed, match="came out differently"):
        asyncio.run(health.canary(triton, Storage(settings.storage), run, other, settings.card))
    with pytest.raises(GenerationFailed, match="all values of the frames are 7"):
        health.check_frames(np.full((2, 4, 4, 3), 7, np.uint8))
    health.check_frames(np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3))


def test_a_canary_carries_the_pictures_that_the_model_needs(tmp_path):
    settings = pictures.settings_with_media(tmp_path, "image", needs=("image",))
    triton, files = FakeTriton(settings.runs), Storage(settings.storage)
    run = run_directories.Run(settings.runs, "canary-1")
    asyncio.run(health.canary(triton, files, run, None, settings.card))
    picture = Image.open(io.BytesIO(triton.media["canary-1"]["image"]))
    assert picture.size == (settings.card.defaults.width, settings.card.defaults.height)
    store = JobStore.from_settings(settings)
    with gateway(settings) as url, worker(settings):
        body = {"prompt": "x", "steps": 1, "size": "32x32", "num_frames": 5}
        made = httpx.post(f"{url}/v1/videos", data=body, files={"image": pictures.picture()}).json()
        known = over(store, made["id"])
    assert store.canary("another").id == known.id
    asyncio.run(health.canary(triton, files, run, known, settings.card))
    assert triton.media["canary-1"]["image"] == b"".join(files.read(known.request["media"]["image"]["key"], 0, 10**6))
    files.delete_job(known.id)
    asyncio.run(health.canary(triton, files, run, known, settings.card))  # its picture is gone: one of its own instead
    store.close()
    others = JobStore.from_settings(settings.model_copy(update={"model_name": "another"}))
    assert others.canary("another") is None  # a job of one model proves nothing of a worker of the other
    others.close()


def test_pauses_between_proofs_grow_and_one_success_ends_them(settings, store, monkeypatch):
    state = health.Health(store, "w", sick_after=2)
    state.broke("x")
    assert not state.sick
    pauses = []
    for _ in range(12):
        state.broke("x")
        pauses.append(state._next_try - time.monotonic())
    assert pauses == pytest.approx([min(2.0**n, 300) for n in range(12)], abs=0.5)
    assert state.sick
    assert not state.due
    state.proved()
    assert not state.sick


class Watched:
    loop_age, ready = 3.0, True


def test_liveness_is_the_age_of_the_workers_own_loop_and_readiness_its_health():
    assert status.answer("/live", Watched())[0] == status.answer("/ready", Watched())[0] == 200
    watched = Watched()
    watched.loop_age, watched.ready = 1000.0, False
    assert status.answer("/live", watched)[0] == status.answer("/ready", watched)[0] == 503
    assert b"wan_" in status.answer("/metrics", watched)[1] or status.answer("/metrics", watched)[0] == 200
    assert status.answer("/else", watched)[0] == 404


def test_a_store_that_is_away_pauses_every_worker_and_fails_nothing(settings, store):
    blocked = settings.state_dir / "videos"
    blocked.write_text("a file where the folder should be")
    with contextlib.ExitStack() as stack:
        tritons = []
        for name in ("a", "b", "c"):
            own = of_its_own(settings, name, storage_retry_seconds=0.2)
            tritons.append(FakeTriton(own.runs))
            stack.enter_context(worker(own, tritons[-1]))
        first = submit(store)
        until(lambda: store.troubled("store"))
        begun = sum(len(triton.calls) for triton in tritons)
        jobs = [first, *(submit(store, prompt=str(number)) for number in range(6))]
        time.sleep(3)
        assert sum(len(triton.calls) for triton in tritons) == begun == 1
        blocked.unlink()
        until(lambda: all(store.get(job_id).done for job_id in jobs), seconds=40)
    assert [store.get(job_id).status for job_id in jobs] == ["completed"] * 7
    assert [(store.get(job_id).attempts, store.history(job_id)) for job_id in jobs] == [(1, [])] * 7


def test_an_urgent_job_starts_within_a_step_and_the_other_goes_on_where_it_was(settings, store):
    triton = FakeTriton(settings.runs, step_seconds=0.3, checkpoint_every=1)
    with worker(settings, triton):
        low = submit(store, steps=20, prompt="low")
        until(lambda: store.get(low).step >= 2)
        asked = time.monotonic()
        urgent = submit(store, steps=2, prompt="urgent", priority=0)
        until(lambda: ("urgent", 1) in triton.steps_done)
        assert time.monotonic() - asked < 2 * 0.3 + 1.5  # a step of each; the rest is room for a busy machine
        assert over(store, urgent).status == "completed"
        job = over(store, low)
    assert (job.status, job.attempts, job.preemptions) == ("completed", 1, 1)
    assert [step for prompt, step in triton.steps_done if prompt == "low"] == list(range(1, 21))  # none twice
