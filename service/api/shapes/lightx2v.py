"""LightX2V's `/v1/tasks`: create, status, result, cancel, list, state of the queue."""

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from service.api import answers, body, content
from service.api.shapes.routing import JobId, TheCaller, TheGateway, errors, json_or_form
from service.api.shapes.translation import ANY, submit, without
from service.errors import Conflict, NotFound
from service.store import Job
from service.store.jobs import QUEUED, RUNNING

router = APIRouter(prefix="/v1/tasks", tags=["LightX2V"])
STATES = {QUEUED: "pending", RUNNING: "processing"}  # the others have the same name there
# the files are those of media that the checkpoint may take
NAMES = {
    "image_path": "input_reference", "image_file": "input_reference",
    "last_frame_path": "last_image", "last_frame_file": "last_image", "video_path": "video",
    "lora_name": "lora",
}  # fmt: skip
FOREIGN = {
    "task_id": (), "use_prompt_enhancer": (), "image_mask_path": (), "presigned_url": (), "reuse": (), "sr_ratio": (),
    "audio_path": (), "audio_file": (), "talk_objects": (), "num_fragments": ("1",),
    "save_result_path": ANY,  # the file is fetched from /result
    "video_duration": ANY, "resize_mode": ANY,  # of audio and pictures that are not there
}  # fmt: skip
AT_ONCE = 100
_BODY = {
    "type": "object",
    "required": ["prompt"],
    "description": "LightX2V's VideoTaskRequest; what is left out takes the model's default.",
    "properties": {"prompt": {"type": "string", "minLength": 1}, "seed": {"type": "integer", "minimum": 0}},
}


class Task(BaseModel):
    task_id: str
    task_status: str
    save_result_path: str


class TaskState(BaseModel):
    task_id: str
    status: Literal["pending", "processing", "completed", "failed", "cancelled"]
    start_time: float | None
    end_time: float | None
    error: str | None
    error_type: str | None
    save_result_path: str
    progress: int


class TaskList(BaseModel):
    tasks: list[TaskState]


class QueueState(BaseModel):
    is_processing: bool
    pending_count: int
    active_count: int
    queue_size: int
    queue_available: int


class Stopped(BaseModel):
    stop_status: Literal["success", "do_nothing"]
    reason: str


def _state(job: Job) -> TaskState:
    return TaskState(
        task_id=job.id,
        status=STATES.get(job.status, job.status),
        start_time=job.started_at,
        end_time=job.completed_at,
        error=job.error_message,
        error_type=job.error_code,
        save_result_path=f"{job.id}.mp4",
        progress=answers.percent(job),
    )


@router.post("/video", include_in_schema=False)
@router.post("/video/form", include_in_schema=False)
@router.post("/", include_in_schema=False)
@router.post("/video/", response_model=Task, responses=errors(400, 403, 409, 413, 415, 422), **json_or_form(_BODY))
async def create_task(request: Request, gateway: TheGateway, caller: TheCaller):
    """Submit a video in LightX2V's words."""
    values = _with_lora(without(await body.read(request), FOREIGN))
    job, _ = await submit(gateway, caller, values, NAMES)
    return Task(task_id=job.id, task_status=STATES[QUEUED], save_result_path=f"{job.id}.mp4")


def _with_lora(values: dict) -> dict:
    """Name and strength of the adapter as the one text that the parameter reads."""
    name, strength = values.pop("lora_name", None), values.pop("lora_strength", None)
    return values | ({"lora_name": name if strength is None else f"{name}:{strength}"} if name else {})


@router.get("/", response_model=TaskList, responses=errors())
async def list_tasks(gateway: TheGateway, caller: TheCaller):
    """The caller's newest hundred tasks."""
    page, _ = await run_in_threadpool(gateway.store.page, caller.name, None, AT_ONCE, True)
    return TaskList(tasks=[_state(job) for job in page])


@router.get("/queue/status", response_model=QueueState, responses=errors())
async def queue_state(gateway: TheGateway, caller: TheCaller):
    """How full the whole queue is."""
    stats = await run_in_threadpool(gateway.store.stats)
    waiting, running, most = sum(stats["queued"].values()), stats["running"], gateway.settings.max_queued
    return QueueState(
        is_processing=running > 0, pending_count=waiting, active_count=running, queue_size=most,
        queue_available=max(0, most - waiting),
    )  # fmt: skip


@router.get("/{id}/status", response_model=TaskState, responses=errors(400, 404))
async def task_state(gateway: TheGateway, caller: TheCaller, job_id: JobId):
    """The state of a task."""
    return _state(await run_in_threadpool(gateway.store.get, job_id, caller.name))


@router.get("/{id}/result", response_class=Response, responses=errors(400, 404, 416) | content.DOCUMENTED)
async def task_result(request: Request, gateway: TheGateway, caller: TheCaller, job_id: JobId):
    """The MP4 of a completed task, also in parts."""
    job = await run_in_threadpool(gateway.store.get, job_id, caller.name)
    if job.video_key is None:
        raise NotFound(f"the task is {STATES.get(job.status, job.status)}; only a completed one has a result", "id")
    return await run_in_threadpool(content.video_response, request, gateway.files, job)


@router.delete("/all/running", response_model=Stopped, responses=errors())
async def cancel_all(gateway: TheGateway, caller: TheCaller):
    """Cancel the caller's tasks that wait or run, of the newest hundred."""
    page, _ = await run_in_threadpool(gateway.store.page, caller.name, None, AT_ONCE, True)
    for job in page:
        if not job.done:
            await run_in_threadpool(_cancel, gateway, job.id, caller.name)
    return Stopped(stop_status="success", reason="all tasks that waited or ran are being stopped")


@router.delete("/{id}", response_model=Stopped, responses=errors(400, 404))
async def cancel_task(gateway: TheGateway, caller: TheCaller, job_id: JobId):
    """Cancel a task; its entry stays."""
    stopped = await run_in_threadpool(_cancel, gateway, job_id, caller.name)
    if stopped:
        return Stopped(stop_status="success", reason="the task is being stopped")
    return Stopped(stop_status="do_nothing", reason="the task is over")


def _cancel(gateway, job_id: str, owner: str) -> bool:
    try:
        gateway.store.cancel(job_id, owner)
    except Conflict:
        return False
    return True
