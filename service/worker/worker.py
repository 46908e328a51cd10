"""`python -m service.worker`: leases jobs for the Triton server beside it, runs them and stores the videos.

Pulls a job only when Triton is ready and has a free denoise slot, so nothing waits in Triton's own queue. On SIGTERM it leases no
more, lets its jobs run for `WAN_DRAIN_SECONDS`, then hands the rest over with their checkpoints.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict

from contract import traces
from service.errors import ServiceError, SettingsError, StorageError, Unavailable
from service.logs import job_id, prompt_fields, setup
from service.settings import Settings, load_settings
from service.store import JobStore, Lease
from service.store.faults import HANDED_OVER
from service.worker import run_directories
from service.worker.attempt import Attempt, Stop, Tools, persistently, tools_for
from service.worker.health import CANARY_SECONDS, canary
from service.worker.status import serve_status

logger = logging.getLogger(__name__)
ALIVE_SECONDS = 5.0  # how often the worker reports itself
TIDY_SECONDS = 5.0
TRY_SECONDS = 5.0  # between two looks whether files can be written
EXIT_SECONDS = 5.0  # for the last words to database and Triton, each


class Worker:
    """Any number of these may share a job store; each belongs to one Triton server and one run directory."""

    def __init__(self, tools: Tools):
        self.tools, self.settings = tools, tools.settings
        self.name = tools.name
        self.slots = self.settings.slots
        self.attempts: dict[asyncio.Task, Attempt] = {}
        self.node = self.settings.node or socket.gethostname()
        self.health = tools.health
        self._looped = time.monotonic()  # when the leasing loop came round last
        self.draining = asyncio.Event()
        self._hurry = asyncio.Event()
        self._wake = asyncio.Event()
        self._ready = False
        self._proving: asyncio.Task | None = None
        self._tried = 0.0
        self._trying: asyncio.Future | None = None  # out whether files can be written

    @property
    def ready(self) -> bool:
        """Whether it could take a job; a store that is away is not its fault."""
        return not self.health.sick and not self.draining.is_set()

    @property
    def loop_age(self) -> float:
        """Seconds since the leasing loop came round; 0 when it has ended."""
        return 0.0 if self.draining.is_set() else time.monotonic() - self._looped

    def drain(self) -> None:
        """Lease no more and end; said twice: hand the running jobs over at once."""
        if self.draining.is_set():
            self._hurry.set()
        self.draining.set()
        self._wake.set()

    async def run(self) -> None:
        """Work until `drain`."""
        self.settings.runs.mkdir(parents=True, exist_ok=True)
        leasing, asked = asyncio.create_task(self._keep_leasing()), asyncio.create_task(self.draining.wait())
        helpers = [leasing, asked, asyncio.create_task(self._report()), asyncio.create_task(self._tidy())]
        stop_listening = self._listen()
        logger.info("worker started", extra={"worker": self.name, "triton": self.settings.triton_url})
        try:
            await asyncio.wait({leasing, asked}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(
                {leasing}, timeout=EXIT_SECONDS
            )  # a lease may be under way, a database that hangs is not waited for
            if leasing.done():
                leasing.result()
            await self._drain()
        finally:
            stop_listening()
            for helper in helpers:
                helper.cancel()
            with contextlib.suppress(ServiceError, TimeoutError):
                async with asyncio.timeout(EXIT_SECONDS):
                    await asyncio.to_thread(self.tools.store.remove_worker, self.name)
            logger.info("worker stopped", extra={"worker": self.name})

    async def _take_back(self) -> None:
        """Give back at once what an earlier process of this name had leased, and stop what it left running in Triton."""
        while not self.draining.is_set():
            try:
                await asyncio.to_thread(
                    self.tools.store.announce, self.settings.card.to_dict(), asdict(self.settings.costs)
                )
                lost = await asyncio.to_thread(self.tools.store.take_back, self.name)
                if lost:
                    logger.info("leases of an earlier process given back", extra={"jobs": lost})
                    await asyncio.to_thread(self._tidy_runs)
                return
            except (Unavailable, OSError) as error:
                self._looped = time.monotonic()
                logger.warning("waiting for the database", extra={"reason": str(error)})
                await asyncio.sleep(0.5)

    # --- leasing

    async def _keep_leasing(self) -> None:
        await self._take_back()
        while not self.draining.is_set():
            self._looped = time.monotonic()
            await self._fill()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), 1.0)
            self._wake.clear()
            await self._pass_on_stops()

    def _free(self) -> bool:
        busy = sum(attempt.denoising for attempt in self.attempts.values())
        # one video per slot may still be decoded and stored while the slot denoises the next
        return self._ready and not self.health.sick and busy < self.slots and len(self.attempts) < 2 * self.slots

    async def _fill(self) -> None:
        """Lease as long as a slot is free and something waits."""
        try:
            while not self.draining.is_set():
                await self._look_at_triton()
                self._prove_if_due()
                if not self._free() or not await asyncio.to_thread(self.tools.store.anything_waits):
                    return
                if await asyncio.to_thread(self.tools.store.troubled, "store"):
                    self.tools.disk_trouble = self.tools.disk_trouble or time.monotonic() - self._tried > TRY_SECONDS
                    if not await self._files_work():
                        return
                lease = await asyncio.to_thread(self.tools.store.lease, self.name)
                if lease is None:
                    return
                self._start(lease)
        except Unavailable as error:
            logger.warning("no job can be leased", extra={"reason": str(error)})
            await asyncio.sleep(0.5)

    async def _look_at_triton(self) -> None:
        ready = await self.tools.triton.ready()
        if ready and not self.slots:
            self.slots = await self.tools.triton.slots()
        if self._is_broken(ready) or not await self._files_work():
            ready = False
        if ready != self._ready:
            logger.info("ready" if ready else "not ready", extra={"slots": self.slots})
        self._ready = ready

    async def _files_work(self) -> bool:
        """After trouble with files, here or elsewhere: whether they can be written. Jobs wait meanwhile for what they need."""
        if not self.tools.disk_trouble:
            return True
        if self._trying is None:  # one at a time: a store that hangs must not take all threads
            self._trying = asyncio.ensure_future(asyncio.to_thread(self._try_files))
        done, _ = await asyncio.wait({self._trying}, timeout=TRY_SECONDS)
        if done:
            trouble, self._trying = self._trying.result(), None
            self.tools.disk_trouble, self._tried = trouble is not None, time.monotonic()
        if self.tools.disk_trouble:
            logger.warning("files cannot be written", extra={"reason": trouble if done else "no answer"})
        return not self.tools.disk_trouble

    def _try_files(self) -> str | None:
        """What is wrong with the store or the run directory; trouble with the store is made known to all workers."""
        try:
            self.tools.files.try_out()
        except ServiceError as error:
            with contextlib.suppress(ServiceError):
                self.tools.store.report_trouble("store")
            return str(error)
        try:
            run_directories.try_out(self.settings.runs)
        except OSError as error:
            return str(error)
        return None

    def _prove_if_due(self) -> None:
        idle = self._ready and not self.attempts and (self._proving is None or self._proving.done())
        if idle and self.health.due:
            self._proving = asyncio.create_task(self._prove())

    async def _prove(self) -> None:
        """Make a video whose frames are known; if that fails, the next try comes later and finds Triton restarted."""
        run = run_directories.Run(self.settings.runs, f"canary-{secrets.token_hex(8)}")
        try:
            known = await asyncio.to_thread(self.tools.store.canary, self.name)
            async with asyncio.timeout(CANARY_SECONDS):
                await canary(self.tools.triton, self.tools.files, run, known, self.settings.card)
            await asyncio.to_thread(self.health.proved)
            logger.info("this worker is healthy")
        except (Unavailable, StorageError) as error:
            logger.warning("the canary waits for database or store", extra={"reason": str(error)})
        except Exception as error:
            self.health.broke(f"canary: {type(error).__name__}: {error}")
            run_directories.mark_broken(self.settings.runs)
        self._wake.set()

    def _is_broken(self, ready: bool) -> bool:
        """Whether Triton waits for a restart, whatever it says itself; if none comes, it is tried again after a while."""
        since = run_directories.broken_since(self.settings.runs)
        if since is None:
            return False
        if not ready or time.time() - since > self.settings.stall_seconds:
            run_directories.clear_broken(self.settings.runs)
            return False
        return True

    def _start(self, lease: Lease) -> None:
        attempt = Attempt(self.tools, lease, self._wake.set)
        task = asyncio.create_task(self._run(attempt))
        self.attempts[task] = attempt
        task.add_done_callback(self._ended)

    async def _run(self, attempt: Attempt) -> str:
        job, fence = attempt.job, attempt.lease.fence
        job_id.set(job.id)
        if fence == 1:
            traces.spent("queue", job.created_at, job.leased_at or job.created_at, job.traceparent)
        about: dict[str, str | int] = {"wan.job": job.id, "wan.attempt": fence, "wan.worker": self.tools.name}
        with traces.span("attempt", about, parent=job.traceparent, kind="consumer", new=True) as span:
            logger.info("leased", extra=prompt_fields(job.request["prompt"], self.settings.log_prompts))
            status = await attempt.run()
            span.note({"wan.status": status})
            return status

    def _ended(self, task: asyncio.Task) -> None:
        self.attempts.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            logger.error("an attempt ended unexpectedly", exc_info=task.exception())
        self._wake.set()

    # --- what others want

    def _listen(self):
        """Wake the loop when a job arrives or a cancel is asked for; returns the function that ends this."""
        loop, ended = asyncio.get_running_loop(), threading.Event()

        def listen() -> None:
            changes = self.tools.store.database.changes("queued", "cancel")
            while not ended.is_set():
                if changes.wait(1.0) and not ended.is_set():
                    with contextlib.suppress(RuntimeError):  # the loop has just been closed
                        loop.call_soon_threadsafe(self._wake.set)
            changes.close()

        thread = threading.Thread(target=listen, name="wan-changes", daemon=True)
        thread.start()
        return ended.set

    async def _pass_on_stops(self) -> None:
        running = {attempt.job.id: attempt for attempt in self.attempts.values()}
        if not running:
            return
        try:
            stops = await asyncio.to_thread(self.tools.store.stop_requests, list(running))
            for job, cancelled in stops.items():
                running[job].ask(Stop.cancel if cancelled else Stop.preempt)
        except Unavailable:
            pass  # the heartbeat brings it too

    # --- helpers

    def _state(self) -> str:
        if self.draining.is_set():
            return "draining"
        if self.health.sick:
            return "sick"
        if not self._ready:
            return "waiting"
        return "busy" if self.attempts else "idle"

    async def _report(self) -> None:
        """Show that the worker lives; the state follows within half a second."""
        last, told = 0.0, None
        while True:
            now = state, slots, running = self._state(), self.slots, len(self.attempts)
            if now != told or time.monotonic() - last > ALIVE_SECONDS:
                with contextlib.suppress(ServiceError):
                    await asyncio.to_thread(self.tools.store.report_worker, self.name, state, slots, running, self.node)
                    last, told = time.monotonic(), now
            await asyncio.sleep(0.5)

    async def _tidy(self) -> None:
        """Stop what dead workers left running in this Triton, and remove directories of finished jobs."""
        while True:
            with contextlib.suppress(ServiceError, OSError):
                await asyncio.to_thread(self.tools.store.sweep)
                await asyncio.to_thread(self._tidy_runs)
                await asyncio.to_thread(self._tidy_files)
            await asyncio.sleep(TIDY_SECONDS)

    def _tidy_runs(self) -> None:
        mine = {attempt.lease.request_id for attempt in list(self.attempts.values())}
        for job, fence, run in run_directories.attempts(self.settings.runs):
            if run.path.name in mine or self.tools.store.is_held(job, fence):
                continue
            run.cancel()
            if self.tools.store.is_over(job) and run_directories.quiet_for(run) > TIDY_SECONDS:
                run.remove()

    def _tidy_files(self) -> None:
        """What was left of jobs that ended without a worker, or whose worker died before it could remove it."""
        for job in self.tools.store.with_leftovers():
            self.tools.files.delete_checkpoints(job)
            self.tools.files.delete_videos(job, self.tools.store.get(job).video_key)
            self.tools.store.leftovers_removed(job)

    async def _drain(self) -> None:
        """Let the running jobs end, then hand over those that take too long."""
        logger.info("draining", extra={"jobs": len(self.attempts)})
        if self.attempts:
            ending = asyncio.create_task(asyncio.wait(set(self.attempts)))
            hurry = asyncio.create_task(self._hurry.wait())
            await asyncio.wait(
                {ending, hurry}, timeout=self.settings.drain_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            hurry.cancel()
            ending.cancel()
            await self._hand_over()

    async def _hand_over(self) -> None:
        """Stop the attempts with their checkpoints; those that cannot end in time are given back with what is stored."""
        for attempt in self.attempts.values():
            attempt.ask(Stop.drain)
        limit = self.settings.handover_seconds
        if not self.attempts:
            return
        _, late = await asyncio.wait(set(self.attempts), timeout=limit * 2 / 3)
        if not late:
            return
        leases = [self.attempts[task].lease for task in late]
        logger.warning("handing over without the last checkpoint", extra={"jobs": [lease.job.id for lease in leases]})
        for task in late:
            task.cancel()
        releases = [persistently(self.tools.store.ended, lease, HANDED_OVER) for lease in leases]
        try:
            async with asyncio.timeout(limit / 3):
                await asyncio.gather(*releases, return_exceptions=True)
        except TimeoutError:
            logger.warning("the database is away; the leases run out, which is not counted after such an absence")


async def serve(settings: Settings, triton=None) -> None:
    """Run a worker with the real tools until SIGTERM or SIGINT."""
    from service.worker.triton import TritonGenerator

    store = JobStore.from_settings(settings, connections=1)
    generator = triton or TritonGenerator(settings.triton_url)
    worker = Worker(tools_for(settings, store, generator))
    if settings.worker_metrics_port:
        serve_status(settings.worker_metrics_port, worker)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, worker.drain)
    try:
        await worker.run()
    finally:
        # A thread that waits for a database or a store that is away must not keep the process, and with it the pod.
        exit_anyway = threading.Timer(EXIT_SECONDS, os._exit, (0,))
        exit_anyway.daemon = True
        exit_anyway.start()
        await generator.close()
        store.close()


def main() -> int:
    try:
        settings = load_settings()
        if settings.metrics_dir is not None:
            settings.metrics_dir.mkdir(parents=True, exist_ok=True)
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(settings.metrics_dir)
        setup(settings.log_level)
        traces.begin(settings.otlp_endpoint, "wan-worker")
        asyncio.run(serve(settings))
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
