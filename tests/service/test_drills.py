"""Full disks and a store that is away: every job ends in a clear state, and none is lost.

A full disk is a small tmpfs with a file that fills it; it needs root.
"""

import contextlib
import functools
import os
import socket
import subprocess
import sys
import time

import httpx
import pytest

from service.launcher.server import TritonServer
from service.stack import ROOT
from service.storage import Storage
from service.store import JobStore
from tests.service import running
from tests.service.fake_triton import FakeTriton
from tests.service.running import gateway, settings_for, worker

PROMPT = "a red circle moves left on a black background"  # real Triton draws it, so a real one
until = functools.partial(running.until, seconds=40.0)


def submit(store, **more):
    return running.submit(store, prompt=PROMPT, **more)


class SmallDisk:
    """A file system of a few megabytes."""

    def __init__(self, path, megabytes):
        self.path, self.filler = path, path / "filler"
        path.mkdir(parents=True, exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
        done = subprocess.run(mount, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")

    def fill(self):
        with contextlib.suppress(OSError), self.filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self):
        self.filler.unlink()

    def unmount(self):
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


@pytest.fixture
def small_disk():
    """Mounts a small disk at a path; gone at the end of the test."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disks = []

    def mount(path, megabytes=3):
        disks.append(SmallDisk(path, megabytes))
        return disks[-1]

    yield mount
    for disk in disks:
        disk.unmount()


def completed(store, job_id):
    until(lambda: store.get(job_id).done)
    job = store.get(job_id)
    assert job.status == "completed", job.error_message
    return job


def test_while_the_store_is_full_jobs_wait_and_then_complete(tmp_path, small_disk):
    disk = small_disk(tmp_path / "small")
    settings = settings_for(tmp_path, storage_url=str(disk.path), storage_retry_seconds=1)
    store = JobStore.from_settings(settings)
    disk.fill()
    with worker(settings):
        first = submit(store)
        until(lambda: store.get(first).phase == "encode" and store.troubled("store"))
        second = submit(store)
        time.sleep(3)
        assert [store.get(job_id).status for job_id in (first, second)] == ["in_progress", "queued"]
        assert store.get(first).phase == "encode"  # its video waits on the worker's own disk
        disk.free()
        jobs = [completed(store, job_id) for job_id in (first, second)]
    files = Storage(settings.storage)
    assert all(files.size(job.video_key) == job.video_bytes > 0 for job in jobs)
    assert [(job.attempts, job.fence, job.info["resumed_from"]) for job in jobs] == [(1, 1, None)] * 2
    store.close()


@contextlib.contextmanager
def worker_process(settings, triton_url, **more):
    """A worker of its own with real Triton."""
    environment = os.environ | {
        "WAN_STATE_DIR": str(settings.state_dir), "WAN_RUN_DIR": str(settings.runs), "WAN_TRITON_URL": triton_url,
        "WAN_DRAIN_SECONDS": "0", "WAN_MODEL_CARD": str(settings.model_card), "OMP_NUM_THREADS": "1",
        "WAN_MODEL_NAME": settings.model_name,
    } | more  # fmt: skip
    with subprocess.Popen([sys.executable, "-m", "service.worker"], cwd=ROOT, env=environment) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


def test_a_video_that_does_not_fit_into_the_run_directory_waits_for_room(tmp_path, small_disk):
    disk = small_disk(tmp_path / "run")
    settings = settings_for(tmp_path, run_dir=disk.path)

    class FillsDisk(FakeTriton):
        async def generate(self, *arguments):
            result = await super().generate(*arguments)
            disk.fill()
            return result

    store = JobStore.from_settings(settings)
    with worker(settings, FillsDisk(disk.path)):
        job_id = submit(store)
        until(lambda: store.get(job_id).phase == "encode")
        until(lambda: store.stats()["workers"] == {"waiting": 1})
        disk.free()
        assert completed(store, job_id).attempts == 1
    store.close()


def test_a_full_run_directory_stops_no_denoise_and_changes_no_frame(tmp_path, small_disk, triton):
    disk = small_disk(triton.run_dir, megabytes=8)
    settings = settings_for(tmp_path, run_dir=triton.run_dir)
    store = JobStore.from_settings(settings)
    request = {"width": 64, "height": 64, "num_frames": 5, "steps": 200, "cache_threshold": 0.0}
    with worker_process(settings, triton.grpc_url):
        undisturbed = completed(store, submit(store, **request))
        job_id = submit(store, **request)
        until(lambda: store.get(job_id).step >= 5)
        disk.fill()
        full_at = store.get(job_id).step
        until(lambda: store.get(job_id).phase in ("decode", "encode", None))  # denoise went on without its files
        disk.free()
        job = completed(store, job_id)
    assert full_at < 150
    assert (job.attempts, job.info["steps_computed"]) == (1, 200)
    assert job.info["frames_sha256"] == undisturbed.info["frames_sha256"]
    store.close()


@pytest.mark.slow
def test_a_stage_that_hangs_is_restarted_and_the_job_goes_on_from_its_checkpoint(tmp_path, repository):
    settings = settings_for(tmp_path, run_dir=tmp_path / "run")
    store = JobStore.from_settings(settings)
    often = {"WAN_CHECKPOINT_SECONDS": "0.2"}
    with (
        TritonServer(repository, run_dir=settings.runs, log_path=tmp_path / "log", environment=often) as triton,
        worker_process(settings, triton.grpc_url, WAN_STALL_SECONDS="5"),
    ):
        job_id = submit(store, width=64, height=64, num_frames=5, steps=200, cache_threshold=0.0)
        until(lambda: store.get(job_id).checkpoint_step)
        for stub in triton.stubs:
            if "denoise" in stub.instance:
                stub.process.suspend()
        hung = time.monotonic()
        until(lambda: triton.restarts == 1, seconds=90)
        until(lambda: store.get(job_id).done, seconds=90)
        print(f"{time.monotonic() - hung:.1f} s from the hang to the video")
        job = completed(store, job_id)
    assert (job.attempts, job.fence) == (1, 2)
    assert job.info["resumed_from"] >= 5
    store.close()


def test_a_full_disk_under_the_database_refuses_and_forgets_nothing(tmp_path, small_disk):
    disk = small_disk(tmp_path / "small")
    settings = settings_for(tmp_path, database_url=f"sqlite:///{disk.path}/jobs.db")
    with gateway(settings) as url, httpx.Client(base_url=url, timeout=60) as client:
        kept = client.post("/v1/videos", json={"prompt": "kept", "steps": 2}).json()
        disk.fill()
        refused = [client.post("/v1/videos", json={"prompt": "x" * 7000}) for _ in range(3)][-1]
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]
        assert "full" in refused.json()["error"]["message"]
        assert client.get(f"/v1/videos/{kept['id']}").json()["status"] == "queued"
        disk.free()
        later = client.post("/v1/videos", json={"prompt": "later", "steps": 2}).json()
        with worker(settings):
            for job in (kept, later):
                until(lambda job=job: client.get(f"/v1/videos/{job['id']}").json()["status"] == "completed")


def test_an_object_store_that_is_away_for_a_while_delays_the_video_only(tmp_path, monkeypatch):
    import boto3
    from moto.server import ThreadedMotoServer

    for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="drill")
    server.stop()
    settings = settings_for(tmp_path, storage_url="s3://drill/videos", storage_endpoint_url=endpoint)
    store = JobStore.from_settings(settings)
    with worker(settings, FakeTriton(settings.runs)):
        job_id = submit(store)
        until(lambda: store.get(job_id).phase == "encode")
        time.sleep(1)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()  # with the bucket: its contents belong to this process
        job = completed(store, job_id)
    assert Storage(settings.storage, endpoint).size(job.video_key) == job.video_bytes
    assert job.attempts == 1
    server.stop()
    store.close()
