"""Wakes those who follow a job when its row changes: one query for all of them, however many there are."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator


class Bell:
    """Rings for one follower of one job."""

    def __init__(self):
        self._event = asyncio.Event()

    async def wait(self, timeout: float) -> None:
        """Until the job changed since the last wait, at most `timeout` seconds."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._event.wait(), timeout)
        self._event.clear()

    def ring(self) -> None:
        self._event.set()


class Bells:
    """The bells of all followers. Belongs to the event loop, but for `changed`."""

    def __init__(self):
        self._bells: dict[str, set[Bell]] = defaultdict(set)
        self._seen: dict[str, float] = {}

    @contextlib.contextmanager
    def following(self, job_id: str) -> Iterator[Bell]:
        bell = Bell()
        self._bells[job_id].add(bell)
        try:
            yield bell
        finally:
            self._bells[job_id].discard(bell)
            if not self._bells[job_id]:
                del self._bells[job_id]

    def changed(self, look: Callable[[list[str]], dict[str, float]]) -> list[str]:
        """Those of the followed jobs that changed since the last call; `look` tells when each did. For one thread."""
        followed = list(self._bells)
        now = look(followed) if followed else {}
        changed = [job_id for job_id in followed if now.get(job_id) != self._seen.get(job_id)]
        self._seen = now
        return changed

    def ring(self, job_ids: list[str] | None = None) -> None:
        """Ring for these jobs, or for all."""
        for job_id in list(self._bells) if job_ids is None else job_ids:
            for bell in self._bells.get(job_id, ()):
                bell.ring()
