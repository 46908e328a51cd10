"""One call, one video: what `/v1/videos/sync` and BentoML's `/generate` do."""

import contextlib

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from service.api import answers, body, content, events, requests
from service.api.auth import Caller
from service.api.gateway import Gateway
from service.api.shapes import same_path
from service.errors import InvalidRequest, ServiceError, Unavailable


async def video_of(request: Request, gateway: Gateway, caller: Caller, idempotency_key: str | None = None) -> Response:
    """Submit the body's request and wait for the MP4; a client that leaves cancels its job."""
    wanted = requests.parse(same_path.plain(await body.read(request)))
    done = await finished(request, gateway, caller, wanted, idempotency_key)
    stored = await run_in_threadpool(gateway.store.get, done.id, caller.name)
    answer = await run_in_threadpool(content.video_response, request, gateway.files, stored)
    answer.headers.update(_headers(done))
    return answer


async def finished(
    request: Request, gateway: Gateway, caller: Caller, wanted: requests.RequestBody, idempotency_key: str | None
) -> answers.VideoAnswer:
    """Submit and wait until the video is there; ServiceError if it will not be."""
    job, made = await gateway.submit(wanted, caller, idempotency_key)
    done = None
    try:
        first = await gateway.to_follow(job.id, caller)
        done = await events.until_done(gateway, request, first, caller, gateway.settings.sync_timeout_seconds)
    finally:
        if done is None and made and not gateway.stopping:
            await run_in_threadpool(_cancel_quietly, gateway, job.id)
    if done is None:
        raise Unavailable("the video was not finished in time; the job was cancelled", 60)
    if done.status != "completed":
        raise _failed(done)
    return done


def _headers(done: answers.VideoAnswer) -> dict[str, str]:
    return {
        "X-Request-Id": done.id,
        "X-Model": done.model,
        "X-Seed": str(done.model_dump()["seed"]),
        "X-Inference-Time-S": f"{done.inference_time_s or 0:.3f}",
        "X-Stage-Durations": ",".join(f"{name}={value:g}" for name, value in (done.stage_durations or {}).items()),
    }


def _cancel_quietly(gateway: Gateway, job_id: str) -> None:
    with contextlib.suppress(ServiceError):  # over already, or the database is away
        gateway.store.cancel(job_id)


def _failed(video: answers.VideoAnswer) -> ServiceError:
    message = video.error.message if video.error else "the job was cancelled"
    if video.error and video.error.code == "invalid_value":
        return InvalidRequest("body", "…", message)
    error = ServiceError(message)
    error.code = video.error.code if video.error else "cancelled"
    error.status = 500 if video.error else 409
    return error
