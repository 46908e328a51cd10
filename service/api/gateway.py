"""What the routes share: the store, the files, the keys, and the tasks that run beside them."""

import asyncio
import contextlib
import gc
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from starlette.concurrency import run_in_threadpool

from contract import traces
from contract.adapters import parse
from service.adapters import Adapters
from service.api import addresses, answers, webhooks
from service.api.auth import Caller, Keys
from service.api.catalogue import Catalogue, Served
from service.api.feed import Feed, News
from service.api.intake import Intake
from service.api.requests import RequestBody, stable_seed
from service.api.shapes import notices
from service.errors import InvalidRequest, ServiceError, StorageError, Unavailable
from service.logs import prompt_fields
from service.media.files import Kept
from service.metrics import measured_metrics, store_metrics, used_metrics
from service.settings import Settings
from service.storage import Storage, input_key
from service.store import Job, JobStore, NewJob, Priority
from service.store.outbox import Delivery

logger = logging.getLogger(__name__)
SWEEP_SECONDS = 2.0
READY_SECONDS = 2.0  # less than a probe waits
WEBHOOKS_AT_ONCE = 8
BEGIN_AT_ONCE = 2  # event streams that read their job
WEBHOOK_PAUSE_SECONDS = 0.2  # between two looks for due webhooks


class Gateway:
    """One per process; `start` and `stop` belong to the event loop that serves the requests."""

    def __init__(self, settings: Settings):
        self.settings, self.catalogue = settings, Catalogue(settings)
        self.keys = Keys(settings, lambda: self.store)
        self.intake = Intake(settings, self.catalogue)
        self.adapters = Adapters(settings)
        self.files = Storage(settings.storage, settings.storage_endpoint_url)
        self._store: JobStore | None = None
        self._tasks: list[asyncio.Task] = []
        self._ended = threading.Event()
        self.feed = Feed(settings.max_streams)
        self._beginning = asyncio.Semaphore(BEGIN_AT_ONCE)
        self._changed = asyncio.Event()
        self._lookout = ThreadPoolExecutor(1, "wan-ready")
        self._look: asyncio.Future[bool] | None = None

    @property
    def store(self) -> JobStore:
        if self._store is None:
            raise Unavailable("the job database cannot be reached yet")
        return self._store

    async def start(self) -> None:
        """Open the database (later, if it is away now) and begin the housekeeping."""
        # Everything that was imported stays; without this each full collection walks it and stops all requests for 0.1 s.
        gc.collect()
        gc.freeze()
        self._ended.clear()
        await self._open()
        self._tasks = [asyncio.create_task(loop()) for loop in (self._sweep, self._webhooks, self._tell)]
        if self._store is None:
            self._tasks.append(asyncio.create_task(self._keep_opening()))

    async def _open(self) -> None:
        try:
            self._store = await run_in_threadpool(JobStore.from_settings, self.settings)
        except Unavailable as error:
            logger.warning("waiting for the database", extra={"reason": str(error)})
            return
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, args=(loop,), name="wan-changes", daemon=True).start()

    async def _keep_opening(self) -> None:
        while self._store is None:
            await asyncio.sleep(1)
            await self._open()

    async def stop(self) -> None:
        self._ended.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tick()
        self.feed.close()
        if self._store is not None:
            await run_in_threadpool(self._store.close)

    @property
    def stopping(self) -> bool:
        return self._ended.is_set()

    # --- jobs

    async def submit(
        self, request: RequestBody, caller: Caller, idempotency_key: str | None, about: dict | None = None
    ) -> tuple[Job, bool]:
        """Price, admit and store a job; (job, False) when the idempotency key was used before.

        `about`: kept with the request, such as what it is a remix of.
        """
        priority = caller.allow(request.priority, "priority" in request.model_fields_set)
        if request.webhook_url is not None:
            addresses.check_url(request.webhook_url, self.settings.webhook_allow_private, ports=self.settings.ports)
        served = await self.served(request.model)
        self.intake.check(request, served.card)
        async with self.intake.kept(request) as kept:
            shown = next(((file.width, file.height) for file in kept.values()), None)
            values = request.resolve(served.card, shown) | (about or {})
            rank = await self._rank(values, served)
            new = self._priced(request, served, values, caller, Priority[priority], idempotency_key, rank)
            job, made = await run_in_threadpool(self._submit, new, kept, request.reuse_finished, caller)
        traces.note({"wan.job": job.id})
        extra = {"job": job.id, "owner": caller.name, "gpu_seconds": round(job.cost, 2), "repeated": not made}
        logger.info("submitted", extra=extra | prompt_fields(values["prompt"], self.settings.log_prompts))
        return job, made

    async def _rank(self, values: dict, served: Served) -> int:
        """Of the request's adapters together; InvalidRequest for one that the model does not have."""
        if not (wanted := parse(values["lora"])):
            return 0
        return sum(entry.rank for entry in await run_in_threadpool(self.adapters.named, wanted, served.name))

    def _priced(
        self,
        request: RequestBody,
        served: Served,
        values: dict,
        caller: Caller,
        priority: Priority,
        idempotency_key: str | None,
        rank: int,
    ) -> NewJob:
        if request.given("seed") is None and idempotency_key is not None:
            # a repetition must be recognised as the same request although its seed would be drawn anew
            values["seed"] = stable_seed(caller.name, idempotency_key)
        raw, cost = served.price(values, request.media(), rank)
        if cost > self.settings.max_job_gpu_seconds:
            raise _too_much(cost, self.settings.max_job_gpu_seconds)
        return NewJob(
            owner=caller.name,
            request=values,
            cost=cost,
            raw_cost=raw,
            priority=priority,
            idempotency_key=idempotency_key,
            deadline=request.deadline_seconds,
            webhook_url=request.webhook_url,
            weight=caller.weight,
            model=served.name,
            traceparent=traces.traceparent(),
        )

    def _submit(self, new: NewJob, kept: dict[str, Kept], reuse: bool, caller: Caller) -> tuple[Job, bool]:
        """Store the files, then the job. Files of a job that is not made go at once, or when their reservation runs out."""
        media = {name: {"key": input_key(new.id, file.path.name), "sha256": file.sha256, "type": file.type}
                 for name, file in kept.items()}  # fmt: skip
        new = replace(new, request=new.request | ({"media": media} if media else {}))
        if reuse and (earlier := self.store.finished_like(new.owner, new.model, new.request)) is not None:
            return earlier, False
        if not kept:
            return self.store.submit(new, caller.max_queued, caller.gpu_seconds_per_day)
        self.store.reserve(new)
        try:
            for name, file in kept.items():
                self.files.put(file.path, media[name]["key"])
            job, made = self.store.submit(new, caller.max_queued, caller.gpu_seconds_per_day)
        except Unavailable:  # the job may have been stored all the same
            raise
        except ServiceError:
            self._remove_files(new.id)
            raise
        if not made:
            self._remove_files(new.id)
        return job, made

    def _remove_files(self, job_id: str) -> None:
        try:
            self.files.delete_job(job_id)
        except StorageError as error:
            logger.warning("files stay for now", extra={"job": job_id, "reason": str(error)})

    async def served(self, name: object) -> Served:
        """The model that a request names; one that is not known may have been announced a moment ago."""
        if isinstance(name, str) and name not in self.catalogue.models:
            await run_in_threadpool(self.catalogue.refresh, self.store)
        return self.catalogue.find(name)

    async def answer(self, job_id: str, caller: Caller) -> answers.VideoAnswer:
        return (await run_in_threadpool(self.read, job_id, caller.name)).video

    def read(self, job_id: str, owner: str | None = None) -> News:
        """The job as it is now."""
        job, estimate = self.store.get_with_estimate(job_id, owner)
        return News(answers.video(job, estimate), job.updated_at)

    async def to_follow(self, job_id: str, caller: Caller) -> News:
        """The job before following it; many that begin at once do not hold up other requests."""
        async with self._beginning:
            return await run_in_threadpool(self.read, job_id, caller.name)

    async def answer_for(self, job: Job) -> answers.VideoAnswer:
        estimate = await run_in_threadpool(self.store.estimate, job)
        return answers.video(job, estimate)

    # --- changes

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        changes = self.store.database.changes()
        while not self._ended.is_set():
            if not changes.wait(1.0):
                continue
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                loop.call_soon_threadsafe(self._tick)
        changes.close()

    async def _tell(self) -> None:
        await self.feed.run(lambda job_ids: self.store.changes_of(job_ids), self.read)

    def _tick(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self.feed.wake()

    async def changed(self, timeout: float) -> None:
        """Wait until any job changed, at most `timeout` seconds."""
        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(timeout):
                await self._changed.wait()

    # --- upkeep

    async def _sweep(self) -> None:
        """Expired leases, missed deadlines, old videos; any number of gateways may do this at once."""
        while True:
            try:
                await run_in_threadpool(self.catalogue.refresh, self.store)
                await run_in_threadpool(self._remove_expired)
            except ServiceError as error:
                logger.warning("upkeep postponed", extra={"reason": str(error)})
            except Exception:
                logger.exception("upkeep broke")
            await asyncio.sleep(SWEEP_SECONDS)

    def _remove_expired(self) -> None:
        gone = []
        for job_id in self.store.sweep():
            try:
                self.files.delete_job(job_id)
                gone.append(job_id)
            except StorageError as error:
                logger.warning("files stay for now", extra={"job": job_id, "reason": str(error)})
        if gone:
            self.store.forget(gone)

    async def _webhooks(self) -> None:
        """Several at a time: one receiver that hangs must not hold up the others."""
        sender, places = webhooks.Sender(self.settings), asyncio.Semaphore(WEBHOOKS_AT_ONCE)
        async with asyncio.TaskGroup() as sending:
            while True:
                await places.acquire()
                delivery = await self._due_webhook()
                if delivery is not None:
                    sending.create_task(self._send(sender, delivery, places))
                    continue
                places.release()
                await asyncio.sleep(WEBHOOK_PAUSE_SECONDS)
                await self.changed(1.0)

    async def _due_webhook(self) -> Delivery | None:
        try:
            return await run_in_threadpool(self.store.due_webhook)
        except ServiceError as error:
            logger.warning("webhooks postponed", extra={"reason": str(error)})
        except Exception:
            logger.exception("webhooks broke")
        return None

    async def _send(self, sender: webhooks.Sender, delivery: Delivery, places: asyncio.Semaphore) -> None:
        try:
            job = await run_in_threadpool(self.store.get, delivery.job_id)
            event = notices.event(job, json.loads(delivery.body))
            with traces.span("webhook", parent=job.traceparent, kind="producer", new=True) as span:
                error, retry_in = await sender.send(delivery, event)
                if error is not None:
                    span.failed(error)
            await run_in_threadpool(self.store.webhook_done, delivery, error, retry_in)
        except ServiceError as error:  # it is due again when its hold is over
            logger.warning("webhook postponed", extra={"reason": str(error)})
        except Exception:
            logger.exception("webhook broke")
        finally:
            places.release()

    # --- operator

    async def ready(self) -> bool:
        """Whether the database answers within READY_SECONDS; one look at a time, not in the threads of the requests."""
        if self._look is None or self._look.done():
            self._look = asyncio.get_running_loop().run_in_executor(self._lookout, self._answers)
        done, _ = await asyncio.wait({self._look}, timeout=READY_SECONDS)
        return bool(done) and self._look.result()

    def _answers(self) -> bool:
        try:
            self.store.ping()
            return True
        except ServiceError:
            return False

    def _stats(self) -> dict[str, dict]:
        return {name: self.store.stats(self.settings.slot_seconds, name) for name in self.catalogue.models}

    async def metrics(self) -> str:
        try:
            text = store_metrics(await run_in_threadpool(self._stats))
            if self.settings.key_metrics:
                text += used_metrics(await run_in_threadpool(self.store.used_today))
        except ServiceError as error:
            logger.warning("no metrics of the store", extra={"reason": str(error)})
            text = ""
        return text + await run_in_threadpool(measured_metrics, self.settings.metrics_dir)


def _too_much(cost: float, allowed: float) -> InvalidRequest:
    return InvalidRequest(
        "body", f"{cost:.0f} predicted GPU-seconds", f"at most {allowed:g}; ask for less or fewer steps"
    )
