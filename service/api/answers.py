"""What the API answers: the job in the shape of OpenAI's and vLLM-Omni's `/v1/videos`, with what they lack added."""

from typing import Any, Literal

from pydantic import BaseModel, create_model

from contract import PARAMETERS, traces
from service.formats import BY_NAME, H264
from service.store import Estimate, Job, Priority
from service.store.jobs import COMPLETED, FAILED, RUNNING


class ErrorDetail(BaseModel):
    code: str | int  # a number, the status, in OpenRouter's shape
    message: str
    param: str | None = None
    type: str
    trace_id: str | None = None  # where requests are traced


class ErrorAnswer(BaseModel):
    error: ErrorDetail


class JobError(BaseModel):
    code: str
    message: str


# The negative prompt may be long; who sent it has it.
SHOWN = tuple(p for p in PARAMETERS if p.name not in ("prompt", "negative_prompt"))


class VideoAnswer(BaseModel):
    """A video job. Times are in seconds, points in time since the epoch."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    progress: int
    created_at: int
    started_at: int | None = None
    completed_at: int | None = None
    expires_at: int | None = None
    prompt: str
    size: str
    seconds: str
    quality: str = "standard"
    remixed_from_video_id: str | None = None
    error: JobError | None = None
    priority: str
    inputs: list[str] | None = None  # pictures and clips that came with the request
    user: str | None = None
    # how it goes
    phase: str | None = None
    step: int = 0
    queue_position: int | None = None
    eta_seconds: float | None = None
    predicted_gpu_seconds: float
    attempts: int
    cancel_requested: bool = False
    resumed_from: int | None = None
    preview_url: str | None = None
    stream_url: str | None = None  # of the frames that are decoded, where the request says `stream`
    trace_id: str | None = None  # of OpenTelemetry, where requests are traced
    # the result
    url: str | None = None
    thumbnail_url: str | None = None
    media_type: str | None = None
    file_name: str | None = None
    file_bytes: int | None = None
    frames_sha256: str | None = None
    steps_computed: int | None = None
    steps_skipped: int | None = None
    engine: dict | None = None  # how the DiT was run: linear, attention, compiled, dtype
    inference_time_s: float | None = None
    # queue (until the first lease), text_encoder, denoise, vae_decoder, encode (the MP4, made and stored)
    stage_durations: dict[str, float] | None = None
    peak_memory_mb: float | None = None


# with every parameter, which a job of an older version may not name
_SHOWN: dict[str, Any] = {p.name: (p.rule.json | None, None) for p in SHOWN}
Video = create_model("Video", __base__=VideoAnswer, **_SHOWN)


class VideoList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Attempt(BaseModel):
    """An attempt that made no video. Times are in seconds since the epoch."""

    number: int
    fault: Literal["job", "worker", "dependency", "operator"]
    code: str
    message: str
    step: int
    advanced: bool  # a newer checkpoint was stored, or no attempt before came as far
    counted: bool  # against the job
    worker: str | None
    node: str | None
    gpu: str | None
    began_at: float | None
    ended_at: float


class AttemptList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Attempt]


class VideoDeleted(BaseModel):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "wan"
    variant: str
    workers: int  # that serve it now; with none, jobs wait for the autoscaler
    defaults: dict
    limits: dict
    media: dict  # pictures and clips that a request may carry
    loras: list[str]  # adapters that it may name


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


def percent(job: Job) -> int:
    """0 to 100; the denoise loop is taken for 90, decoding and storing for the rest."""
    if job.status == COMPLETED:
        return 100
    share = 90 * job.step // job.steps if job.steps else 0
    return min(99, share + {"decode": 2, "encode": 6}.get(job.phase or "", 0))


def video(job: Job, estimate: Estimate | None) -> VideoAnswer:
    """The answer for one job."""
    request, info = job.request, job.info or {}
    done, made = job.status == COMPLETED, BY_NAME[request.get("output_format", H264.name)]
    return Video(
        id=job.id,
        model=job.model,
        status=job.status,
        progress=percent(job),
        created_at=int(job.created_at),
        started_at=_whole(job.started_at),
        completed_at=_whole(job.completed_at),
        expires_at=_whole(job.expires_at),
        prompt=request["prompt"],
        size=f"{request['width']}x{request['height']}",
        seconds=f"{request['num_frames'] / request['fps']:g}",
        error=JobError(code=job.error_code or "", message=job.error_message or "") if job.status == FAILED else None,
        **{p.name: request.get(p.name) for p in SHOWN},
        inputs=list(request.get("media", {})) or None,
        user=request.get("user"),
        remixed_from_video_id=request.get("remixed_from"),
        priority=Priority(job.priority).name,
        phase=job.phase,
        step=job.step,
        queue_position=estimate.position if estimate else None,
        eta_seconds=round(estimate.finish_seconds, 2) if estimate else None,
        predicted_gpu_seconds=round(job.cost, 3),
        attempts=job.attempts,
        cancel_requested=job.cancel_requested,
        resumed_from=info.get("resumed_from"),
        preview_url=_preview_url(job),
        stream_url=f"/v1/videos/{job.id}/content" if is_streaming(job) else None,
        trace_id=traces.trace_id(job.traceparent) if job.traceparent else None,
        url=f"/v1/videos/{job.id}/content" if done else None,
        media_type=made.media_type if done else None,
        file_name=f"{job.id}.{made.suffix}" if done else None,
        thumbnail_url=f"/v1/videos/{job.id}/content?variant=thumbnail" if done else None,
        file_bytes=job.video_bytes,
        **{name: info.get(name) for name in ("frames_sha256", "steps_computed", "steps_skipped", "engine")},
        inference_time_s=info.get("gpu_seconds"),
        stage_durations=info.get("seconds"),
    )


def is_streaming(job: Job) -> bool:
    """Whether frames can be had while others are still decoded."""
    return job.status == RUNNING and job.phase in ("decode", "encode") and bool(job.request.get("stream"))


def _preview_url(job: Job) -> str | None:
    if job.status != RUNNING or not job.preview_key:
        return None
    return f"/v1/videos/{job.id}/content?variant=preview&step={job.step}"


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
