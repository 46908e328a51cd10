"""Checkpoints and previews of a running attempt on their way from the run directory into the store."""

import asyncio
import logging

from service import storage
from service.errors import ServiceError, StorageError
from service.store import Lease
from service.worker import run_directories

logger = logging.getLogger(__name__)


class Uploads:
    """Goes on beside the heartbeats, which a slow store must not delay; what it stored is `news` for the next one."""

    def __init__(self, files: storage.Storage, lease: Lease, run_dir: run_directories.Run):
        self.files, self.lease, self.run_dir = files, lease, run_dir
        self.step = lease.job.checkpoint_step or 0
        self.news: dict = {}  # columns of the job
        self._previewed = 0.0
        self._supersedes = self._superseded = False
        self._task: asyncio.Task | None = None

    def begin(self) -> None:
        """Store what is new, unless that is being done."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._store_news())

    async def wait(self) -> None:
        if self._task is not None:
            await asyncio.wait({self._task})

    async def stop(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    def take(self) -> dict:
        """The news, which now are the caller's to tell."""
        news, self.news = self.news, {}
        return news

    def told(self, news: dict) -> None:
        """The job names what was stored: the checkpoints of earlier attempts are of no use any more."""
        self._supersedes = self._supersedes or "checkpoint_key" in news

    async def remove_checkpoints(self, before: int) -> None:
        """Remove the stored checkpoints of attempts with a smaller fence than `before`."""
        try:
            await asyncio.to_thread(self.files.delete_checkpoints, self.lease.job.id, before)
        except StorageError as error:
            logger.warning("old checkpoints stay for now", extra={"reason": str(error)})

    async def last_checkpoint(self) -> dict:
        """The news with the newest checkpoint, stored now if that is possible."""
        try:
            self.news |= await self._checkpoint() or {}
        except ServiceError as error:
            logger.warning("the last checkpoint is not stored", extra={"reason": str(error)})
        return self.take()

    async def _store_news(self) -> None:
        try:
            self.news |= await self._checkpoint() or {}
            self.news |= await self._preview() or {}
            if self._supersedes and not self._superseded:
                await self.remove_checkpoints(self.lease.fence)
                self._superseded = True
        except (ServiceError, OSError) as error:
            logger.warning("checkpoint or preview not stored", extra={"reason": str(error)})

    async def _checkpoint(self) -> dict | None:
        """Store a checkpoint that is newer than the stored one; returns the columns that say so."""
        step = await asyncio.to_thread(run_directories.checkpoint_step, self.run_dir.checkpoint)
        if step is None or step <= self.step:
            return None
        key = storage.checkpoint_key(self.lease.job.id, self.lease.fence)
        await asyncio.to_thread(self.files.put, self.run_dir.checkpoint, key)
        self.step = step
        return {"checkpoint_key": key, "checkpoint_step": step}

    async def _preview(self) -> dict | None:
        try:
            changed = self.run_dir.preview.stat().st_mtime
        except OSError:
            return None
        if changed <= self._previewed:
            return None
        key = storage.preview_key(self.lease.job.id)
        await asyncio.to_thread(self.files.put, self.run_dir.preview, key)
        self._previewed = changed
        return {"preview_key": key}
