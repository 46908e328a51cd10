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

from service.api.answers import VideoAnswer
from service.errors import NotFound, RateLimited, ServiceError, Unavailable
from service.store.jobs import TERMINAL

logger = logging.getLogger(__name__)
LOOK_SECONDS = 1.0  # the longest time between two rounds
CHANGED_AT_ONCE, WAITING_AT_ONCE = 100, 50  # jobs that are read in one round: changed ones, and places in the queue
READ_REST = 4.0  # pause after reading: this many times what it took
TELL_AT_ONCE, TELL_REST = 20, 0.02  # followers that get news together; seconds until the next ones do


@dataclass(frozen=True)
class News:
    """A job as it was after its change at `changed_at`; the text is made once for all followers."""

    video: VideoAnswer
    changed_at: float

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
            async with asyncio.timeout(timeout):
                await self._event.wait()
        self._event.clear()
        news, self._news = self._news, None
        return news


class Feed:
    """All followers. Belongs to the event loop."""

    def __init__(self, limit: int):
        self._limit = limit
        self._followers: dict[str, set[Follower]] = defaultdict(set)
        self._owners: Counter[str] = Counter()
        self._last: dict[str, News] = {}  # of every followed job; those that were read longest ago come first
        self._wake = asyncio.Event()

    def check_room(self, owner: str, share: float) -> None:
        """RateLimited if the owner follows too many jobs, Unavailable if all do; `share` of the places for one owner."""
        if self._owners.total() >= self._limit:
            raise Unavailable(f"{self._limit} event streams are open, the most this gateway serves; poll instead", 10)
        if self._owners[owner] >= self._limit * share:
            raise RateLimited(f"{self._owners[owner]} event streams are open with this key; close some", retry_after=10)

    @contextlib.contextmanager
    def following(self, first: News, owner: str) -> Iterator[Follower]:
        """A follower that knows the job as `first`."""
        follower, job_id = Follower(), first.video.id
        self._followers[job_id].add(follower)
        self._owners[owner] += 1
        last = self._last.setdefault(job_id, first)
        if last.changed_at > first.changed_at:
            follower.tell(last)
        try:
            yield follower
        finally:
            self._followers[job_id].discard(follower)
            self._owners[owner] -= 1
            self._owners += Counter()  # drops those at zero
            if not self._followers[job_id]:
                del self._followers[job_id], self._last[job_id]

    def wake(self) -> None:
        """A job changed: the next round begins now, or when the pause is over."""
        self._wake.set()

    def close(self) -> None:
        for followers in self._followers.values():
            for follower in followers:
                follower.tell(None)

    async def run(self, changes_of: Callable[[list[str]], dict[str, float]], read: Callable[[str], News]) -> None:
        """Rounds for ever; `changes_of` tells when jobs changed, `read` reads one. Both are called in a thread."""
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):  # wait_for may swallow a cancel that comes with the event
                    await self._wake.wait()
            self._wake.clear()
            began = time.monotonic()
            if self._followers:
                try:
                    known = dict(self._last)
                    found = await run_in_threadpool(_look, known, changes_of, read)
                    await asyncio.sleep(READ_REST * (time.monotonic() - began))
                    await self._tell(known, found)
                except ServiceError as error:  # the database is away; the streams outlive that
                    logger.warning("event streams wait", extra={"reason": str(error)})
                except Exception:
                    logger.exception("event streams broke")

    async def _tell(self, known: dict[str, News], found: dict[str, News | None]) -> None:
        """Passes news on, to a few followers at a time: others have their turn between them."""
        for job_id, news in found.items():
            last = known[job_id]
            if self._last.get(job_id) is not last:
                continue  # others follow it by now, who may know more
            del self._last[job_id]
            self._last[job_id] = news or last  # at the end: the waiting ones take turns
            if news is None or news.state != last.state:
                for number, follower in enumerate(list(self._followers[job_id]), 1):
                    follower.tell(news)
                    if number % TELL_AT_ONCE == 0:
                        await asyncio.sleep(TELL_REST)


def _look(
    last: dict[str, News], changes_of: Callable[[list[str]], dict[str, float]], read: Callable[[str], News]
) -> dict[str, News | None]:
    """What those jobs are now that may have news; None for a deleted one."""
    changed_at = changes_of(list(last))
    changed = [job_id for job_id, news in last.items() if changed_at.get(job_id) != news.changed_at]
    skip = set(changed)
    waiting = [job_id for job_id, news in last.items() if news.video.status == "queued" and job_id not in skip]
    found: dict[str, News | None] = {}
    for job_id in [*changed[:CHANGED_AT_ONCE], *waiting[:WAITING_AT_ONCE]]:
        try:
            found[job_id] = read(job_id)
        except NotFound:
            found[job_id] = None
    return found
