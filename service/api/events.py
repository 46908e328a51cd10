"""Server-sent events of one job: its full state at every change, until it is over."""

import time
from collections.abc import AsyncIterator

from starlette.requests import Request

from service.api.answers import VideoAnswer
from service.api.auth import Caller
from service.api.feed import News
from service.api.gateway import Gateway

PING_SECONDS = 15.0


async def watch(gateway: Gateway, first: News, caller: Caller, ping: float) -> AsyncIterator[News | None]:
    """The job at every change, None after `ping` seconds without one; ends with the job."""
    with gateway.feed.following(first, caller.name) as follower:
        last = first
        yield first
        while not (last.over or follower.ended or gateway.stopping):
            news = await follower.next(ping)
            if news is None or news.state != last.state:
                yield news
            last = news or last


async def stream(gateway: Gateway, first: News, caller: Caller) -> AsyncIterator[str]:
    """Text of the event stream; the event's name is the job's status."""
    yield "retry: 1000\n\n"
    async for news in watch(gateway, first, caller, PING_SECONDS):
        yield ": still here\n\n" if news is None else news.event


async def until_done(
    gateway: Gateway, request: Request, first: News, caller: Caller, timeout: float
) -> VideoAnswer | None:
    """The finished job; None when it was deleted, the client has left or the time is over."""
    deadline = time.monotonic() + timeout
    async for news in watch(gateway, first, caller, 0.5):
        if news is not None and news.over:
            return news.video
        if await request.is_disconnected() or time.monotonic() > deadline:
            return None
    return None
