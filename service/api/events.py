"""Server-sent events of one job: its full state at every change, until it is over."""

import time
from collections.abc import AsyncIterator

from starlette.requests import Request

from service.api.answers import Video
from service.api.auth import Caller
from service.api.bells import Bell
from service.api.gateway import Gateway
from service.errors import NotFound, ServiceError

PING_SECONDS = 15.0
LOOK_SECONDS = 1.0  # how often a job is looked at whose own row did not change: its place in the queue may have


async def watch(gateway: Gateway, job_id: str, caller: Caller, ping: float) -> AsyncIterator[Video | None]:
    """The job at every change, None after `ping` seconds without one; ends with the job."""
    with gateway.bells.following(job_id) as bell:
        async for video in _look(gateway, job_id, caller, ping, bell):
            yield video


async def _look(gateway: Gateway, job_id: str, caller: Caller, ping: float, bell: Bell) -> AsyncIterator[Video | None]:
    last, told = None, time.monotonic()
    while not gateway.stopping:
        try:
            video = await gateway.answer(job_id, caller)
        except NotFound:
            if last is None:
                raise
            return  # deleted meanwhile
        except ServiceError:
            if last is None:
                raise
            video = last  # the database is away; the stream outlives that
        seen = video.model_dump(exclude={"eta_seconds"})
        if last is None or seen != last.model_dump(exclude={"eta_seconds"}):
            last, told = video, time.monotonic()
            yield video
            if video.status in ("completed", "failed", "cancelled"):
                return
        elif time.monotonic() - told >= ping:
            told = time.monotonic()
            yield None
        await bell.wait(LOOK_SECONDS)


async def stream(gateway: Gateway, job_id: str, caller: Caller, first: Video) -> AsyncIterator[str]:
    """Text of the event stream; the event's name is the job's status."""
    yield "retry: 1000\n\n"
    try:
        async for video in watch(gateway, job_id, caller, PING_SECONDS):
            yield ": still here\n\n" if video is None else f"event: {video.status}\ndata: {video.model_dump_json()}\n\n"
    except ServiceError:
        return  # the client connects again


async def until_done(gateway: Gateway, request: Request, job_id: str, caller: Caller, timeout: float) -> Video | None:
    """The finished job; None when the client has left or the time is over."""
    deadline = time.monotonic() + timeout
    async for video in watch(gateway, job_id, caller, 0.5):
        if video is not None and video.status in ("completed", "failed", "cancelled"):
            return video
        if await request.is_disconnected() or time.monotonic() > deadline:
            return None
    return None
