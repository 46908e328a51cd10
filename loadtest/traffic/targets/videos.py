"""Load through the public API: create a job, follow it by events or polling, fetch the video."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator

import aiohttp

from loadtest.base.inputs import TargetUnavailable
from loadtest.traffic.profile import Order, Target
from loadtest.traffic.record import STAGES, Clock, Record

DONE = ("completed", "failed", "cancelled")
REOPEN = 20  # times an event stream that broke off is opened again


class VideosSender:
    """`/v1/videos` over HTTP/1.1 with as many connections as there are requests in flight."""

    def __init__(self, target: Target, session: aiohttp.ClientSession):
        self.target, self.session = target, session
        self.videos = f"{target.url}/v1/videos"

    @classmethod
    async def open(cls, target: Target, in_flight: int, stack: contextlib.AsyncExitStack) -> "VideosSender":
        headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
        connector = aiohttp.TCPConnector(limit=0)  # limits.in_flight bounds it; a pool limit would delay sending unseen
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
        session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers)
        return cls(target, await stack.enter_async_context(session))

    async def check(self) -> None:
        try:
            async with self.session.get(f"{self.videos}?limit=1", allow_redirects=False) as answer:
                if answer.status != 200:
                    raise TargetUnavailable(f"GET {self.videos} answers {answer.status}: {(await answer.text())[:200]}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TargetUnavailable(f"{self.target.url} does not answer: {error}") from error

    async def send(self, order: Order, record: Record, clock: Clock) -> None:
        try:
            if await self._create(order, record, clock):
                follow = self._events if self.target.follow == "events" else self._poll
                await follow(record, clock)
                await self._finish(record, clock)
        except (aiohttp.ClientError, OSError, ValueError, KeyError) as error:
            record.outcome, record.error = "error", f"{type(error).__name__}: {error}"[:300]

    async def abandon(self, record: Record) -> None:
        if record.job_id:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                timeout = aiohttp.ClientTimeout(total=5)
                async with self.session.post(f"{self.videos}/{record.job_id}/cancel", timeout=timeout) as answer:
                    await answer.read()

    async def _create(self, order: Order, record: Record, clock: Clock) -> bool:
        async with self.session.post(self.videos, json=body_of(order), allow_redirects=False) as answer:
            text = await answer.text()
            if answer.status in (429, 503):
                record.outcome, record.error = "rejected", f"{answer.status}: {text[:200]}"
            elif answer.status >= 300:
                record.outcome, record.error = "error", f"{answer.status}: {text[:200]}"
            else:
                job = json.loads(text)
                record.accepted, record.job_id = clock(), job["id"]
                record.predicted_gpu_seconds = job.get("predicted_gpu_seconds")
                return True
        return False

    async def _events(self, record: Record, clock: Clock) -> None:
        """Follow the event stream; one that ends early (a gateway restarted) is opened again."""
        url, lost = f"{self.videos}/{record.job_id}/events", "ended"
        for _ in range(REOPEN):
            try:
                async with self.session.get(url, allow_redirects=False) as answer:
                    answer.raise_for_status()
                    async for event in sse(answer.content):
                        if note_status(event.get("status"), record, clock):
                            return
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                lost = str(error)
            await asyncio.sleep(min(1.0, self.target.poll_seconds))
        raise ValueError(f"the event stream broke {REOPEN} times before the job was done, last: {lost}")

    async def _poll(self, record: Record, clock: Clock) -> None:
        jitter = random.Random(record.index)  # requests of one burst must not poll in step for ever
        while not note_status((await self._job(record))["status"], record, clock):
            await asyncio.sleep(self.target.poll_seconds * jitter.uniform(0.8, 1.2))

    async def _job(self, record: Record) -> dict:
        async with self.session.get(f"{self.videos}/{record.job_id}", allow_redirects=False) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def _finish(self, record: Record, clock: Clock) -> None:
        """Fetch the video, then (outside the measured time) the job's own account of its stages."""
        status = record.outcome
        if status == "completed" and self.target.fetch_content:
            record.outcome = "timeout"  # until the bytes are here
            async with self.session.get(f"{self.videos}/{record.job_id}/content") as answer:
                answer.raise_for_status()
                async for part in answer.content.iter_chunked(1 << 16):
                    record.content_bytes += len(part)
            record.delivered, record.outcome = clock(), status
        job = await self._job(record)
        record.stages = stages_of(job, record)
        if self.target.delete:
            async with self.session.delete(f"{self.videos}/{record.job_id}") as answer:
                answer.raise_for_status()
        if status != "completed":
            record.error = str((job.get("error") or {}).get("message", ""))[:300]


def body_of(order: Order) -> dict:
    """The JSON of POST /v1/videos for an order, in the words that other servers of this API know as well."""
    body = order.request
    if "width" in body:
        body["size"] = f"{body.pop('width')}x{body.pop('height')}"
    if "steps" in body:
        body["num_inference_steps"] = body.pop("steps")
    priority = order.shape.priority
    return body | ({} if priority is None else {"priority": priority})


def stages_of(job: dict, record: Record) -> dict[str, float]:
    """Seconds of each stage as the service tells them; without its word, the queue ends when we saw the work begin."""
    told = job.get("stage_durations") or {}
    stages = {name: float(told[name]) for name in STAGES if told.get(name) is not None}
    if "queue" not in stages and record.started is not None:
        stages["queue"] = max(0.0, record.started - (record.sent or 0.0))
    return stages


def note_status(status: str | None, record: Record, clock: Clock) -> bool:
    """Write a status change into the record; true once the job is at its end."""
    if status == "in_progress" and record.started is None:
        record.started = clock()
    if status not in DONE:
        return False
    record.finished, record.outcome = clock(), status
    return True


async def sse(stream: aiohttp.StreamReader) -> AsyncIterator[dict]:
    """The JSON objects in the `data:` fields of a server-sent event stream."""
    data: list[str] = []
    async for raw in stream:
        line = raw.decode("utf-8").rstrip("\r\n")
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            text, data = "\n".join(data), []
            if text.startswith("{"):
                yield json.loads(text)
