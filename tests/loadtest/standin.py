"""A stand-in for the service with known service times: first come, first served, `workers` servers, exact departures.

Run as `python tests/loadtest/standin.py --service 0.02`; prints its port. Departure times are computed from the arrival
times (Lindley), so a late timer of this process delays an answer but never the queue behind it.
"""

import argparse
import asyncio
import heapq
import itertools
import json
import sys
import time
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class Job:
    id: str
    created: float
    start: float
    end: float
    body: dict
    cancelled: bool = False

    def status(self, now: float) -> str:
        if self.cancelled:
            return "cancelled"
        return "queued" if now < self.start else "in_progress" if now < self.end else "completed"

    def view(self) -> dict:
        now = time.monotonic()
        status, service = self.status(now), self.end - self.start
        stages = {
            "queue": self.start - self.created,
            "text_encoder": service * 0.1,
            "denoise": service * 0.7,
            "vae_decoder": service * 0.15,
            "encode": service * 0.05,
        }
        return {
            "id": self.id,
            "object": "video",
            "status": status,
            "created_at": self.created,
            "progress": int(100 * min(1, max(0, (now - self.start) / max(service, 1e-9)))),
            "started_at": self.start if now >= self.start else None,
            "predicted_gpu_seconds": service,
            "completed_at": self.end if status == "completed" else None,
            "stage_durations": stages if status == "completed" else {},
            "error": None,
        }


@dataclass
class StandIn:
    """`service` seconds per video and worker; jobs beyond `capacity` waiting are refused with 429.

    `stall`: (at, seconds) after the first request during which no job starts or ends.
    """

    service: float
    workers: int = 1
    capacity: int = 10**9
    stall: tuple[float, float] = (0.0, 0.0)
    factor_by_size: dict[str, float] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    free: list[float] = field(default_factory=list)
    first: float | None = None
    numbers: itertools.count = field(default_factory=itertools.count)

    def admit(self, body: dict) -> Job | None:
        now = time.monotonic()
        self.first = now if self.first is None else self.first
        self.free = self.free or [0.0] * self.workers
        if self.capacity < 10**9 and sum(job.status(now) == "queued" for job in self.jobs.values()) >= self.capacity:
            return None
        start = self.unstall(max(now, heapq.heappop(self.free)))
        end = start + self.service * self.factor_by_size.get(body.get("size", ""), 1.0)
        stall_at = self.first + self.stall[0]
        end += self.stall[1] if start < stall_at < end else 0
        heapq.heappush(self.free, end)
        job = Job(f"video_{next(self.numbers)}", now, start, end, body)
        self.jobs[job.id] = job
        return job

    def unstall(self, start: float) -> float:
        at, seconds = self.first + self.stall[0], self.stall[1]
        return at + seconds if at <= start < at + seconds else start

    def application(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/v1/videos", self.list),
                web.post("/v1/videos", self.create),
                web.get("/v1/videos/{id}", self.get),
                web.get("/v1/videos/{id}/events", self.events),
                web.get("/v1/videos/{id}/content", self.content),
                web.post("/v1/videos/{id}/cancel", self.cancel),
                web.get("/metrics", self.metrics),
            ]
        )
        return app

    def find(self, request: web.Request) -> Job:
        job = self.jobs.get(request.match_info["id"])
        if job is None:
            raise web.HTTPNotFound(text=json.dumps({"error": {"code": "not_found"}}))
        return job

    async def list(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    async def create(self, request: web.Request) -> web.Response:
        job = self.admit(await request.json())
        if job is None:
            return web.json_response({"error": {"code": "queue_full"}}, status=429, headers={"Retry-After": "1"})
        return web.json_response(job.view())

    async def get(self, request: web.Request) -> web.Response:
        return web.json_response(self.find(request).view())

    async def events(self, request: web.Request) -> web.StreamResponse:
        job = self.find(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for until in (job.start, job.end):
            while (delay := until - time.monotonic()) > 0 and not job.cancelled:
                await asyncio.sleep(min(delay, 1.0))
            await response.write(f"event: status\ndata: {json.dumps(job.view())}\n\n".encode())
        return response

    async def content(self, request: web.Request) -> web.Response:
        self.find(request)
        return web.Response(body=b"\0" * 2000, content_type="video/mp4")

    async def cancel(self, request: web.Request) -> web.Response:
        job = self.find(request)
        job.cancelled = True
        return web.json_response(job.view())

    async def metrics(self, request: web.Request) -> web.Response:
        now = time.monotonic()
        states = [job.status(now) for job in self.jobs.values()]
        lines = ["# TYPE wan_jobs counter"]
        lines += [f'wan_jobs_total{{status="{s}"}} {states.count(s)}' for s in ("completed", "cancelled")]
        lines += ["# TYPE wan_queue_jobs gauge", f'wan_queue_jobs{{priority="normal"}} {states.count("queued")}']
        return web.Response(text="\n".join(lines) + "\n", content_type="text/plain")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--service", type=float, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--capacity", type=int, default=10**9)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--forever", action="store_true", help="do not end with standard input")
    parser.add_argument("--stall", type=float, nargs=2, default=(0.0, 0.0))
    parser.add_argument("--factor", nargs="*", default=[], help="WxH=factor of the service time")
    given = parser.parse_args()
    factors = {size: float(value) for size, value in (text.split("=") for text in given.factor)}
    standin = StandIn(given.service, given.workers, given.capacity, tuple(given.stall), factors)
    runner = web.AppRunner(standin.application(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", given.port)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    if given.forever:
        await asyncio.Event().wait()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # ends with the process that started it


if __name__ == "__main__":
    asyncio.run(main())
