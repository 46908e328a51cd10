"""One attempt of one job: from a lease to a stored video, or to a clear reason why not."""

import asyncio
import contextlib
import logging
import math
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from contract import traces
from service import formats, storage
from service.errors import (
    CheckpointRefused,
    Fault,
    GenerationCancelled,
    GenerationFailed,
    GenerationRejected,
    LeaseLost,
    NotFound,
    ServiceError,
    StageHung,
    StorageError,
    Unavailable,
)
from service.metrics import worker_metrics
from service.settings import Settings
from service.store import JobStore, Lease, Loss, Progress
from service.store.faults import HANDED_OVER, PREEMPTED
from service.store.jobs import TERMINAL
from service.worker import run_directories, video
from service.worker.early import EarlyVideo
from service.worker.health import Health, check_frames, digest
from service.worker.inputs import read_all
from service.worker.triton import Generator
from service.worker.uploads import Uploads

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.05  # how often the run directory is looked at
REPORT_SECONDS = 0.3  # least time between two progress reports to the database


class Stop(Enum):
    """Why an attempt shall stop before its end."""

    cancel = "cancel"  # the caller asked
    preempt = "preempt"  # an urgent job needs the place
    drain = "drain"  # the worker shuts down
    lost = "lost"  # another worker owns the job


@dataclass
class Tools:
    """What every attempt of a worker shares."""

    store: JobStore
    files: storage.Storage
    triton: Generator
    settings: Settings
    name: str  # of the worker
    health: Health
    disk_trouble: bool = False  # the last write of a file failed; the worker starts nothing before that has changed


def tools_for(settings: Settings, store: JobStore, triton: Generator) -> Tools:
    # without a name of its own it must not meet that of another: see `Worker._take_back`
    name = settings.worker_id or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    files = storage.Storage(settings.storage, settings.storage_endpoint_url)
    return Tools(store, files, triton, settings, name, Health(store, name, settings.sick_after))


class Attempt:
    """Runs a leased job. `denoising` is True as long as it occupies a denoise slot; `freed` is called when it no longer does."""

    def __init__(self, tools: Tools, lease: Lease, freed: Callable[[], None] = lambda: None):
        self.tools, self.lease, self.job = tools, lease, lease.job
        self.run_dir = run_directories.Run(tools.settings.runs, lease.request_id)
        self.denoising, self._freed = True, freed
        self.stop: Stop | None = None
        self._phase: str | None = None
        self._first_step: int | None = None  # of the checkpoint that this attempt goes on from
        self._last_step = 0
        self._last_progress: dict = {}
        self._uploads = Uploads(tools.files, lease, self.run_dir)
        self._early = EarlyVideo(tools.files, lease, self.run_dir)
        self._reported: Progress | None = None
        self._moved = time.monotonic()

    async def run(self) -> str:
        """Do the job and return its new status."""
        follower = asyncio.create_task(self._follow())
        work = asyncio.create_task(self._work())
        try:
            await asyncio.wait({follower, work}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                status = await work
            else:
                self.run_dir.cancel()
                work.cancel()
                await asyncio.wait({work})
                status = await self._given_up(await follower)
            if status in TERMINAL:  # otherwise the directory keeps the checkpoint for the next attempt
                await asyncio.to_thread(self.run_dir.remove)
            return status
        except LeaseLost:
            return self._lost()
        finally:
            self._free_slot()
            for task in (follower, work):
                if not task.done():
                    task.cancel()
                    await asyncio.wait({task})
            await self._uploads.stop()
            await self._early.stop()

    def ask(self, stop: Stop) -> None:
        """Stop the denoise loop before its next step."""
        if self.stop is None:
            self.stop = stop
            self.run_dir.cancel()

    def _free_slot(self) -> None:
        if self.denoising:
            self.denoising = False
            self._freed()

    # --- the work itself

    async def _work(self) -> str:
        try:
            await self._prepare()
            frames, info = await self._generate()
            self._free_slot()
            return await self._deliver(frames, info)
        except LeaseLost:
            raise
        except GenerationCancelled as error:
            return await self._stopped(error)
        except (GenerationRejected, GenerationFailed, StorageError) as error:
            return await self._broken(error)
        except Exception as error:
            logger.exception("the attempt broke")
            return await self._broken(GenerationFailed(f"{type(error).__name__}: {error}"))

    async def _prepare(self) -> None:
        """Make the run directory and put the newest checkpoint into it."""
        job = self.job
        stored_step = job.checkpoint_step if job.checkpoint_key else None
        limit = self.tools.settings.storage_retry_seconds
        await self._stubbornly(limit, self._make_directory, stored_step or 0)
        if stored_step is not None and not self.run_dir.checkpoint.exists():
            try:
                await self._stubbornly(limit, self.tools.files.get, job.checkpoint_key, self.run_dir.checkpoint)
            except NotFound:
                logger.warning("the checkpoint is no longer stored; starting over")
        self._first_step = run_directories.checkpoint_step(self.run_dir.checkpoint) or 0
        if self.stop is not None:
            self.run_dir.cancel()

    def _make_directory(self, least_step: int) -> None:
        """With the newest checkpoint that is on this machine, if it is not older than the stored one."""
        try:
            self.run_dir.create()
            local = run_directories.best_local_checkpoint(self.tools.settings.runs, self.job.id)
            if local is not None and local[1] >= least_step:
                _copy(local[0], self.run_dir.checkpoint)
        except FileNotFoundError:
            pass  # whoever tidies up was faster
        except OSError as error:
            raise StorageError(f"cannot write the run directory: {error}") from error

    async def _generate(self):
        if self.lease.fence == 1:
            worker_metrics().queue_wait.observe(max(0.0, self.job.leased_at - self.job.created_at))
        logger.info("started", extra={"attempt": self.lease.fence, "checkpoint_step": self.job.checkpoint_step})
        preview = bool(self.job.request.get("preview"))
        stored, limit = self.job.request.get("media", {}), self.tools.settings.storage_retry_seconds
        media = await self._stubbornly(limit, read_all, self.tools.files, stored)
        with traces.span("triton", kind="client"):
            return await self.tools.triton.generate(self.lease.request_id, self.job.request, preview, media)

    async def _deliver(self, frames, info: dict) -> str:
        """Encode, store, publish. A finished video waits for a store that is away, on this machine."""
        started = time.monotonic()
        self._phase = "encode"
        request = self.job.request
        made = formats.BY_NAME[request.get("output_format", formats.H264.name)]
        local = self.run_dir.path / f"video.{made.suffix}"
        fps = int(request.get("fps") or info.get("fps") or 16)
        note = video.note(request, self.tools.settings.model_name)
        await asyncio.to_thread(check_frames, frames)
        await self._early.end()
        with traces.span("encode", {"wan.format": made.name}):
            encoded = self._stubbornly(math.inf, _encode, frames, fps, local, made, request.get("crf"), note)
            _, frames_sha256 = await asyncio.gather(encoded, asyncio.to_thread(digest, frames))
        key = storage.video_key(self.job.id, self.lease.fence, made.suffix)
        with traces.span("store"):
            size = await self._stubbornly(math.inf, self.tools.files.put, local, key)
        computed = dict(info.get("seconds") or {})
        waited = max(0.0, (self.job.started_at or 0.0) - self.job.created_at)
        seconds = {"queue": round(waited, 4), **computed, "encode": round(time.monotonic() - started, 4)}
        video_sha256 = await asyncio.to_thread(storage.digest, local)
        info = {**info, "seconds": seconds, "frames_sha256": frames_sha256, "video_sha256": video_sha256}
        if gpu_seconds := sum(computed.values()):
            info["gpu_seconds"] = gpu_seconds
        status = await persistently(self.tools.store.complete, self.lease, key, size, info)
        if status == "completed":
            self._measure(info, seconds)
            await persistently(self.tools.health.proved)
        await self._tidy(key if status == "completed" else None)
        return status

    def _measure(self, info: dict, seconds: dict) -> None:
        metrics = worker_metrics()
        metrics.job.observe(max(0.0, time.time() - self.job.created_at))
        for stage, value in seconds.items():
            metrics.stage.labels(stage).observe(value)
        metrics.gpu_seconds.inc(info.get("gpu_seconds", 0))
        resumed = info.get("resumed_from") or 0
        computed, skipped = info.get("steps_computed", info.get("steps", 0)), info.get("steps_skipped", 0)
        for kind, count in (("computed", computed), ("cached", skipped), ("resumed", resumed)):
            metrics.steps.labels(kind).inc(count)
        logger.info("completed", extra={"seconds": seconds, "resumed_from": info.get("resumed_from")})

    async def _tidy(self, video: str | None) -> None:
        """Remove what nobody needs beside the `video` of a job that ended; the sweep of a deleted job removes the rest."""
        await self._uploads.wait()  # it would bring back what is removed here
        with contextlib.suppress(StorageError):
            await asyncio.to_thread(self.tools.files.delete, storage.preview_key(self.job.id))
            await asyncio.to_thread(self.tools.files.delete_videos, self.job.id, video)
        await self._uploads.remove_checkpoints(self.lease.fence + 1)

    # --- the ways an attempt can end early

    async def _stopped(self, error: GenerationCancelled) -> str:
        """The loop saw the cancel file: on request of the caller, or because the worker hands its jobs over."""
        if self.stop in (Stop.drain, Stop.preempt):
            if self.stop is Stop.preempt:
                self._free_slot()  # the urgent job does not wait for the upload
            await self._keep_checkpoint()
            loss = HANDED_OVER if self.stop is Stop.drain else PREEMPTED
            status = await persistently(self.tools.store.ended, self.lease, loss)
            logger.info(loss.code, extra={"step": self._uploads.step})
            return status
        if self.stop is Stop.cancel:
            await persistently(self.tools.store.cancelled, self.lease)
            await self._tidy(None)
            logger.info("cancelled")
            return "cancelled"
        return self._lost() if self.stop is Stop.lost else await self._broken(GenerationFailed(str(error)))

    async def _broken(self, error: ServiceError) -> str:
        """Keep the newest checkpoint for the next attempt, unless it may be what broke this one."""
        if error.fault is Fault.worker:
            self.tools.health.broke(f"{error.code}: {error}")  # before the slot is free
        if isinstance(error, CheckpointRefused):
            logger.warning("the checkpoint is dropped", extra={"reason": str(error)})
            await persistently(self.tools.store.drop_checkpoint, self.lease)
            for job_id, _, run in run_directories.attempts(self.tools.settings.runs):
                if job_id == self.job.id:
                    run.checkpoint.unlink(missing_ok=True)
        elif error.fault is not Fault.job:
            await self._keep_checkpoint()
        if isinstance(error, StageHung):
            run_directories.mark_broken(self.tools.settings.runs)
        status = await persistently(self.tools.store.ended, self.lease, Loss.of(error))
        logger.warning("the attempt failed", extra={"reason": str(error), "status": status})
        if status in TERMINAL:
            await self._tidy(None)
        return status

    async def _given_up(self, reason: str) -> str:
        if reason == "lost":
            return self._lost()
        return await self._broken(StageHung(reason))

    def _lost(self) -> str:
        logger.warning("the lease was lost; nothing is written")
        return "lost"

    async def _stubbornly(self, seconds: float, operation, *arguments):
        """An operation on files, tried again for so many seconds or until the attempt shall stop."""
        deadline, pause = time.monotonic() + seconds, 0.5
        while True:
            try:
                return await asyncio.to_thread(operation, *arguments)
            except StorageError as error:
                self.tools.disk_trouble = True
                if self.stop is not None:
                    raise GenerationCancelled("stopped while files could not be written") from error
                if time.monotonic() + pause > deadline:
                    raise
                logger.warning("storage is tried again", extra={"reason": str(error)})
                await asyncio.sleep(pause)
                pause = min(pause * 2, 10)

    # --- progress

    async def _follow(self) -> str:
        """Carry progress, previews and checkpoints out of the run directory; returns when the attempt must be given up."""
        last_beat = time.monotonic()  # the lease is fresh
        while True:
            progress = await asyncio.to_thread(self.run_dir.progress)
            self._note(progress)
            if self.stop is not None:
                self.run_dir.cancel()
            age = time.monotonic() - last_beat
            news = self._report(progress) != self._reported or self._uploads.news
            if age >= self.tools.settings.heartbeat_seconds or (news and age >= REPORT_SECONDS):
                last_beat = time.monotonic()
                if not await self._beat(progress):
                    self.stop = Stop.lost
                    return "lost"
            stall = self.tools.settings.stall_seconds
            if self._phase is None and time.monotonic() - self._moved > stall:
                run_directories.mark_broken(self.tools.settings.runs)
                return f"no progress for {stall:g} s"
            await asyncio.sleep(POLL_SECONDS)

    def _note(self, progress: dict) -> None:
        """Follow the step counter: durations for the metrics, the slot that becomes free."""
        if progress != self._last_progress:
            self._last_progress, self._moved = progress, time.monotonic()
        step = progress.get("step", 0)
        if step > self._last_step:
            seconds = progress.get("step_seconds", 0)
            if seconds > 0 and progress.get("phase", "denoise") == "denoise":
                for _ in range(min(step - self._last_step, 1000)):
                    worker_metrics().step.observe(seconds)
            self._last_step = step
        if progress.get("phase") == "decode":
            self._free_slot()
            self._early.begin()

    def _report(self, progress: dict) -> Progress:
        phase = self._phase or progress.get("phase")
        eta = progress.get("eta_seconds") if phase in ("denoise", "decode") else None
        step = progress.get("step") or self._first_step
        return Progress(step, progress.get("steps"), progress.get("skipped"), phase, eta)

    async def _beat(self, progress: dict) -> bool:
        """Heartbeat with the newest progress; False when the lease is gone. A database that is away is tried again."""
        report = self._report(progress)
        if self._phase is None:
            self._uploads.begin()
        news = self._uploads.take()
        try:
            full = Progress(**{**vars(report), **news})
            cancel = await asyncio.to_thread(self.tools.store.heartbeat, self.lease, full)
        except LeaseLost:
            return False
        except Unavailable as error:
            self._uploads.news = {**news, **self._uploads.news}
            logger.warning("heartbeat not stored", extra={"reason": str(error)})
            return True
        self._reported = report
        if cancel:
            self.ask(Stop.cancel)
        self._uploads.told(news)
        return True

    async def _keep_checkpoint(self) -> None:
        """Store the newest checkpoint and say so, before the job goes to another worker."""
        if news := await self._uploads.last_checkpoint():
            await persistently(self.tools.store.heartbeat, self.lease, Progress(**news))


async def persistently(operation, *arguments):
    """A final write to the store, tried for as long as the database is away: the result must not be lost."""
    pause = 0.2
    while True:
        try:
            return await asyncio.to_thread(operation, *arguments)
        except Unavailable as error:
            logger.warning("the result waits for the database", extra={"reason": str(error)})
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5)


def _copy(source: Path, target: Path) -> None:
    temporary = target.with_suffix(".copy")
    try:
        shutil.copyfile(source, temporary)
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)


def _encode(frames, fps: int, target: Path, *how) -> None:
    try:
        video.encode(frames, fps, target, *how)
    except OSError as error:
        raise StorageError(f"cannot write the video: {error}") from error
