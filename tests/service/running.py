"""Runs a gateway and workers in threads of the test process, on a real socket."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import uvicorn

from service.api.app import create_app
from service.settings import Settings
from service.store import JobStore, NewJob
from service.worker.attempt import tools_for
from service.worker.worker import Worker
from tests.service.fake_triton import FakeTriton

CARD = Path(__file__).with_name("card.json")
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


def settings_for(folder: Path, **more) -> Settings:
    values = {"state_dir": folder, "model_card": CARD, "model_name": "wan-test", "heartbeat_seconds": 0.5,
              "lease_seconds": 3, "drain_seconds": 5, "log_level": "ERROR"}  # fmt: skip
    return Settings(**(values | more))


@contextlib.contextmanager
def gateway(settings: Settings) -> Iterator[str]:
    """The URL of a gateway that serves for as long as the block runs."""
    app = create_app(settings)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the gateway did not start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


class WorkerThread:
    """A worker with its own event loop; `drain` and `kill` end it."""

    def __init__(self, settings: Settings, triton: FakeTriton):
        self.settings, self.triton = settings, triton
        self.loop: asyncio.AbstractEventLoop | None = None
        self.worker: Worker | None = None
        self._task: asyncio.Task | None = None
        self.thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self.thread.start()
        while self.worker is None:
            time.sleep(0.01)

    async def _main(self) -> None:
        store = JobStore.from_settings(self.settings)
        self.loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self.worker = Worker(tools_for(self.settings, store, self.triton))
        with contextlib.suppress(asyncio.CancelledError):
            await self.worker.run()
        store.close()

    def drain(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.worker.drain)
        self.thread.join(15)
        assert not self.thread.is_alive()

    def kill(self) -> None:
        """As far as a thread can be killed: every task ends at once and writes nothing more."""

        def end() -> None:
            for task in asyncio.all_tasks():
                task.cancel()

        self.loop.call_soon_threadsafe(end)
        self.thread.join(15)


@contextlib.contextmanager
def worker(settings: Settings, triton: FakeTriton | None = None) -> Iterator[WorkerThread]:
    thread = WorkerThread(settings, triton or FakeTriton(settings.runs))
    try:
        yield thread
    finally:
        thread.drain()


def wait_for(client: httpx.Client, job_id: str, *statuses: str, seconds: float = 60) -> dict:
    """Poll until the job has one of the statuses (none given: until it is over)."""
    wanted = statuses or ("completed", "failed", "cancelled")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        video = client.get(f"/v1/videos/{job_id}").json()
        if video.get("status") in wanted:
            return video
        time.sleep(0.05)
    raise AssertionError(f"still {video} after {seconds} s, expected {wanted}")


def submit(store, priority=1, **more):
    return store.submit(NewJob("anonymous", REQUEST | more, cost=1.0, priority=priority))[0].id


def until(check, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def over(store, job_id):
    until(lambda: store.get(job_id).done)
    return store.get(job_id)
