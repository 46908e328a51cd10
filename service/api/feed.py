"""Tells everybody who follows a job of its changes: one reader for all of them, however many there are.

One round reads when each followed job changed (one query), then those that did, and of the waiting ones, whose place in the queue
changes without them, some in turn. The pause after a round grows with what it cost, so that followers never take the gateway
from its other callers: with a thousand of them news are up to about a second late.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from starlette.concurrency import run_in_threadpool

from service.api.answers import Video
from service.errors import NotFound, RateLimited, ServiceError, Unavailable

logger = logging.getLogger(__name__)
LOOK_SECONDS = 1.0  # the longest time between two rounds
WAITING_AT_ONCE = 50  # queued jobs whose place is read in one round
READ_REST, SEND_REST = 4.0, 0.001  # pause: this many times what reading took; seconds for each follower that got news
TERMINAL = ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class News:
    """A job as it is now; the text is made once for all followers."""

    video: Video

    @property
    def over(self) -> bool:
        return self.video.status in TERMINAL

    @cached_property
    def event(self) -> str:
        return f"event: {self.video.status}\ndata: {self.video.model_dump_json()}\n\n"

    @cached_property
    def state(self) -> dict:
        return self.video.model_dump(exclude={"eta_seconds"})


class Follower:
    """Holds the newest state of one job until it is taken."""

    def __init__(self):
        self._event = asyncio.Event()
        self._news: News | None = None
        self.ended = False  # the job was deleted or the gateway stops

    def tell(self, news: News | None) -> None:
        self._news, self.ended = news, news is None
        self._event.set()

    async def next(self, timeout: float) -> News | None:
        """What is new; None after `timeout` seconds without news, or when `ended`."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._event.wait(), timeout)
        self._event.clear()
        news, self._news = self._news, None
        return news


class Feed:
    """All followers. Belongs to the event loop; only `_look` runs in a thread, one at a time."""

    def __init__(self, limit: int):
        self._limit = limit
        self._followers: dict[str, set[Follower]] = defaultdict(set)
        self._owners: Counter[str] = Counter()
        self._seen: dict[str, float | None] = {}  # when a job changed last, as the last round found it
        self._last: dict[str, News] = {}
        self._wake = asyncio.Event()

    def check_room(self, owner: str, share: float) -> None:
        """RateLimited if the owner follows too many jobs, Unavailable if all do; `share` of the places for one owner."""
        if self._owners.total() >= self._limit:
            raise Unavailable(f"{self._limit} event streams are open, the most this gateway serves; poll instead", 10)
        if self._owners[owner] >= self._limit * share:
            raise RateLimited(f"{self._owners[owner]} event streams are open with this key; close some", retry_after=10)

    @contextlib.contextmanager
    def following(self, job_id: str, owner: str) -> Iterator[Follower]:
        follower = Follower()
        self._followers[job_id].add(follower)
        self._owners[owner] += 1
        self._seen.pop(job_id, None)  # it may have changed since the follower read it
        self._last.pop(job_id, None)
        self.wake()
        try:
            yield follower
        finally:
            self._followers[job_id].discard(follower)
            self._owners[owner] -= 1
            if not self._followers[job_id]:
                for table in (self._followers, self._seen, self._last):
                    table.pop(job_id, None)
            self._owners += Counter()  # drops those at zero

    def wake(self) -> None:
        """A job changed: the next round begins now, or when the pause is over."""
        self._wake.set()

    def close(self) -> None:
        for followers in self._followers.values():
            for follower in followers:
                follower.tell(None)

    async def run(self, changes_of: Callable[[list[str]], dict[str, float]], read: Callable[[str], Video]) -> None:
        """Rounds for ever; `changes_of` tells when jobs changed, `read` reads one. Both are called in a thread."""
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), LOOK_SECONDS)
            self._wake.clear()
            began, told = time.monotonic(), 0
            if self._followers:
                try:
                    found = await run_in_threadpool(self._look, list(self._followers), changes_of, read)
                    told = self._tell(found)
                except ServiceError as error:  # the database is away; the streams outlive that
                    logger.warning("event streams wait", extra={"reason": str(error)})
                except Exception:
                    logger.exception("event streams broke")
            await asyncio.sleep(READ_REST * (time.monotonic() - began) + SEND_REST * told)

    def _look(
        self, followed: list[str], changes_of: Callable[[list[str]], dict[str, float]], read: Callable[[str], Video]
    ) -> dict[str, tuple[float | None, Video | None]]:
        """(time of the change, the job or None if it was deleted) of those that may have news."""
        now = changes_of(followed)
        changed = {job_id for job_id in followed if job_id not in self._seen or self._seen[job_id] != now.get(job_id)}
        last = dict(self._last)
        waiting = [job_id for job_id in last if last[job_id].video.status == "queued" and job_id not in changed]
        found = {}
        for job_id in [*changed, *waiting[:WAITING_AT_ONCE]]:
            try:
                found[job_id] = now.get(job_id), read(job_id)
            except NotFound:
                found[job_id] = now.get(job_id), None
        return found

    def _tell(self, found: dict[str, tuple[float | None, Video | None]]) -> int:
        """Passes news on; how many followers got some."""
        told = 0
        for job_id, (changed_at, video) in found.items():
            followers = self._followers.get(job_id)
            if not followers:
                continue
            news, last = News(video) if video else None, self._last.pop(job_id, None)
            self._seen[job_id] = changed_at
            if news is not None:
                self._last[job_id] = news  # at the end: the waiting ones take turns
            if news is None or last is None or news.state != last.state:
                told += len(followers)
                for follower in followers:
                    follower.tell(news)
        return told
