"""`python -m loadtest fairness`: many clients at once; does every job run exactly once, in order, and are shares fair?

Only the GPU time is simulated; HTTP, database, worker and video files are real. Exit code 1 if a promise is broken.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import socket
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import uvicorn

from service.api.app import create_app
from service.settings import Settings
from service.stack import ROOT
from service.store import JobStore
from service.store.jobs import COMPLETED, Job
from service.worker.attempt import tools_for
from service.worker.worker import Worker


class PacedGenerator:
    """A Generator whose requests take what the cost model predicts, 10 % more or less, `speedup` times as fast."""

    def __init__(self, settings: Settings, slots: int, speedup: float):
        self.costs, self.geometry = settings.costs, settings.card.geometry
        self.speedup, self._slots = speedup, slots
        self.ran: list[str] = []

    async def ready(self) -> bool:
        return True

    async def slots(self) -> int:
        return self._slots

    async def close(self) -> None:
        pass

    async def generate(
        self, request_id: str, request: dict, preview: bool = False, media: dict[str, bytes] | None = None
    ) -> tuple[np.ndarray, dict]:
        self.ran.append(request_id)
        seconds = self.costs.predict(request, self.geometry) * random.Random(request["seed"]).uniform(0.9, 1.1)
        await asyncio.sleep(seconds / self.speedup)
        frames = np.zeros((request["num_frames"], request["height"], request["width"], 3), np.uint8)
        frames[:, 0] = 255  # frames of one value are taken for those of a broken device
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
        running["worker"] = Worker(tools_for(settings, store, generator))
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


OWNERS = 5
STEPS = (2, 4, 8)  # of the owners in turn: unequal jobs, equal shares
SPEEDUP = 100.0
COSTS = {"overhead": 0, "per_token": 0.05, "per_token_squared": 0, "per_pixel": 0, "skipped_per_threshold": 0}


@dataclass
class Report:
    """What was found; `spread` is the largest deviation of an owner from an equal share, 0.05 = 5 %."""

    jobs: int
    completed: int
    ran_more_than_once: list[str] = field(default_factory=list)
    out_of_order: int = 0
    spread: float = 0.0
    grain: float = 0.0  # what one job more or less means for the spread
    seconds: float = 0.0

    @property
    def met(self) -> bool:
        return (
            self.completed == self.jobs
            and not self.ran_more_than_once
            and not self.out_of_order
            and (self.spread <= max(0.05, self.grain))
        )


def submit(url: str, client: int, jobs: int, ids: list[str]) -> None:
    """One client: submits one job after the other under its owner's key."""
    owner = client % OWNERS
    headers = {"Authorization": f"Bearer key-{owner}"}
    body = {"width": 16, "height": 16, "num_frames": 1, "steps": STEPS[owner % len(STEPS)]}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
        for number in range(jobs):
            answer = http.post("/v1/videos", json=body | {"prompt": f"{client}-{number}"})
            ids.append(answer.raise_for_status().json()["id"])


def drive(card: Path, clients: int, jobs: int, slots: int = 4) -> Report:
    """Submit everything, then let one worker do it all."""
    keys = ",".join(f"owner{n}:{hashlib.sha256(f'key-{n}'.encode()).hexdigest()}" for n in range(OWNERS))
    ids: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wan-fairness-") as folder:
        many = {"max_queued": jobs, "max_queued_per_key": jobs}
        costs = Path(folder) / "cost.json"
        costs.write_text(json.dumps(COSTS))
        settings = settings_in(Path(folder), card, api_keys=keys, cost_file=costs, **many)
        generator = PacedGenerator(settings, slots, SPEEDUP)
        store = JobStore.from_settings(settings)
        with gateway(settings) as url:
            work = [threading.Thread(target=submit, args=(url, n, jobs // clients, ids)) for n in range(clients)]
            for thread in work:
                thread.start()
            for thread in work:
                thread.join()
            with worker(settings, generator):
                while store.stats()["finished"].get("completed", 0) < len(ids) and time.monotonic() - began < 1800:
                    time.sleep(0.2)
        report = judge([store.get(job_id) for job_id in ids], generator.ran)
        store.close()
    report.seconds = time.monotonic() - began
    return report


def judge(jobs: list[Job], ran: list[str]) -> Report:
    """Compare what ran with what was promised."""
    times = Counter(request_id.rpartition("-")[0] for request_id in ran)
    report = Report(len(jobs), sum(job.status == COMPLETED for job in jobs))
    report.ran_more_than_once = [job_id for job_id, count in times.items() if count != 1]
    by_lease = sorted(jobs, key=lambda job: job.leased_at or 0.0)
    last: dict = {}
    for job in by_lease:  # a class: same owner, priority and cost
        kind = (job.owner, job.priority, job.raw_cost)
        report.out_of_order += job.turn < last.get(kind, 0)
        last[kind] = job.turn
    report.spread, report.grain = spread(by_lease)
    return report


def _used(job: Job) -> float:
    """GPU-seconds of a job that is done."""
    return (job.info or {})["gpu_seconds"]


def spread(by_lease: list[Job]) -> tuple[float, float]:
    """Largest deviation from equal GPU-seconds while every owner still had jobs waiting, and that of a single job."""
    left = Counter(job.owner for job in by_lease)
    given: dict[str, float] = defaultdict(float)
    for job in by_lease:
        given[job.owner] += _used(job)
        left[job.owner] -= 1
        if left[job.owner] == 0:
            break
    mean = sum(given.values()) / len(left)
    largest = max(_used(job) for job in by_lease)
    return max(abs(seconds - mean) for seconds in given.values()) / mean, largest / mean


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--card", type=Path, default=ROOT / "models/tiny/wan.json")


def handle(given: argparse.Namespace) -> int:
    report = drive(given.card, given.clients, given.jobs)
    print(report)
    return 0 if report.met else 1
