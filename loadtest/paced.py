"""The service in one process around a stand-in for Triton that takes time but no computing: numbers made with it are simulated."""

import asyncio
import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import uvicorn

from service.api.app import create_app
from service.attempt import Tools
from service.cost import CostModel
from service.settings import Settings
from service.storage import Storage
from service.store import JobStore
from service.worker import Worker


class PacedGenerator:
    """A Generator whose requests take what the cost model predicts, 10 % more or less, `speedup` times as fast."""

    def __init__(self, costs: CostModel, slots: int, speedup: float):
        self.costs, self.speedup, self._slots = costs, speedup, slots
        self.ran: list[str] = []

    async def ready(self) -> bool:
        return True

    async def slots(self) -> int:
        return self._slots

    async def close(self) -> None:
        pass

    async def generate(self, request_id: str, request: dict, preview: bool = False) -> tuple[np.ndarray, dict]:
        self.ran.append(request_id)
        seconds = self.costs.predict(request) * random.Random(request["seed"]).uniform(0.9, 1.1)
        await asyncio.sleep(seconds / self.speedup)
        frames = np.zeros((request["num_frames"], request["height"], request["width"], 3), np.uint8)
        return frames, {"seed": request["seed"], "steps": request["steps"], "seconds": {"denoise": seconds}}


@contextlib.contextmanager
def gateway(settings: Settings) -> Iterator[str]:
    """A gateway in a thread; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = uvicorn.Config(create_app(settings), host="127.0.0.1", port=port, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


@contextlib.contextmanager
def worker(settings: Settings, generator: PacedGenerator) -> Iterator[None]:
    """A worker in a thread with its own event loop."""
    running: dict = {}

    async def main() -> None:
        store = JobStore.from_settings(settings)
        running["worker"] = Worker(Tools(store, Storage(settings.storage), generator, settings))
        running["loop"] = asyncio.get_running_loop()
        await running["worker"].run()
        store.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    try:
        yield
    finally:
        running["loop"].call_soon_threadsafe(running["worker"].drain)
        thread.join(30)


def settings_in(folder: Path, card: Path, **more) -> Settings:
    return Settings(state_dir=folder, model_card=card, log_level="ERROR", **more)
