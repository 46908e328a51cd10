"""The routes of `/v1`."""

import re
from dataclasses import asdict
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from service.api import answers, body, content, events, intake, requests, sync
from service.api.auth import ANONYMOUS, Caller
from service.api.gateway import Gateway
from service.errors import InvalidRequest, NotFound
from service.storage import preview_key

router = APIRouter(prefix="/v1")
ID = Path(alias="id", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Job id")
KEY = re.compile(r"[\x21-\x7e]{1,255}")


# async, although they wait for nothing: FastAPI runs plain functions in a thread, twice per request
async def gateway_of(request: Request) -> Gateway:
    return request.app.state.gateway


async def caller_of(request: Request) -> Caller:
    return request.state.caller  # put there by the guard, which knew the key


TheGateway = Annotated[Gateway, Depends(gateway_of)]
TheCaller = Annotated[Caller, Depends(caller_of)]
JobId = Annotated[str, ID]


async def idempotency_key_of(
    idempotency_key: Annotated[
        str | None, Header(max_length=255, description="Repeating a request with it makes no second job.")
    ] = None,
) -> str | None:
    if idempotency_key is not None and not KEY.fullmatch(idempotency_key):
        allowed = "1 to 255 printable ASCII characters without spaces"
        raise InvalidRequest("Idempotency-Key", idempotency_key, allowed)
    return idempotency_key


IdempotencyKey = Annotated[str | None, Depends(idempotency_key_of)]

_BODY = {
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": requests.VideoRequest.model_json_schema(by_alias=False)},
                "multipart/form-data": {"schema": requests.form_schema()},
            },
        }
    }
}


def _errors(*statuses: int) -> dict:
    return {status: {"model": answers.ErrorAnswer} for status in (401, 429, 503, *statuses)}


@router.post("/videos", response_model=answers.Video, responses=_errors(400, 403, 409, 413, 415, 422), **_BODY)
async def create_video(
    request: Request, response: Response, gateway: TheGateway, caller: TheCaller, idempotency_key: IdempotencyKey
):
    """Submit a video; answers at once with the job."""
    wanted = requests.parse(await body.read(request))
    job, made = await gateway.submit(wanted, caller, idempotency_key)
    response.headers["Location"] = f"/v1/videos/{job.id}"
    if not made:
        response.headers["Idempotent-Replayed"] = "true"
    return await gateway.answer_for(job)


@router.post(
    "/videos/sync",
    response_class=Response,
    responses=_errors(400, 403, 409, 413, 415, 422, 500)
    | {200: {"content": {"video/mp4": {}}, "description": "The MP4"}},
    **_BODY,
)
async def create_video_sync(request: Request, gateway: TheGateway, caller: TheCaller, idempotency_key: IdempotencyKey):
    """Submit a video and wait for the MP4. Leaving the call cancels the job."""
    return await sync.video_of(request, gateway, caller, idempotency_key)


@router.get("/videos", response_model=answers.VideoList, responses=_errors(400))
async def list_videos(
    gateway: TheGateway,
    caller: TheCaller,
    after: Annotated[
        str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Last id of the page before")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
):
    """The caller's videos, newest first."""
    page, more = await run_in_threadpool(gateway.store.page, caller.name, after, limit, order == "desc")
    data = [await gateway.answer_for(job) if not job.done else answers.video(job, None, gateway.settings.model_name)
            for job in page]  # fmt: skip
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return answers.VideoList(data=data, first_id=first, last_id=last, has_more=more)


@router.get("/videos/{id}", response_model=answers.Video, responses=_errors(400, 404))
async def retrieve_video(gateway: TheGateway, caller: TheCaller, job_id: JobId):
    """State, progress, queue position and ETA of a job."""
    video = await gateway.answer(job_id, caller)
    return Response(video.model_dump_json(), media_type="application/json")  # the busiest route: no second validation


@router.head("/videos/{id}/content", include_in_schema=False)
@router.get(
    "/videos/{id}/content",
    response_class=Response,
    responses=_errors(400, 404, 416)
    | {
        200: {"content": {"video/mp4": {}, "image/webp": {}}, "description": "The file"},
        206: {"content": {"video/mp4": {}}, "description": "A part of it"},
    },
)
async def download_video(
    request: Request,
    gateway: TheGateway,
    caller: TheCaller,
    job_id: JobId,
    variant: Literal["video", "preview"] = "video",
    step: Annotated[int, Query(ge=0, description="Makes preview URLs distinct; not interpreted")] = 0,
):
    """The MP4 (Range requests are served), or the newest preview of a running job."""
    job = await run_in_threadpool(gateway.store.get, job_id, caller.name)
    if variant == "preview":
        if not job.preview_key:
            raise NotFound("there is no preview of this video", "variant")
        key = preview_key(job_id)
        size = await run_in_threadpool(gateway.files.size, key)
        return content.file_response(request, gateway.files, key, size, "image/webp", f"{job_id}.webp")
    if job.video_key is None:
        raise NotFound(f"the video is {job.status}; only a completed one can be downloaded", "id")
    size = await run_in_threadpool(gateway.files.size, job.video_key)
    return content.file_response(request, gateway.files, job.video_key, size, "video/mp4", f"{job_id}.mp4")


@router.get(
    "/videos/{id}/events",
    response_class=StreamingResponse,
    responses=_errors(400, 404) | {200: {"content": {"text/event-stream": {}}, "description": "One event a change"}},
)
async def video_events(gateway: TheGateway, caller: TheCaller, job_id: JobId):
    """Server-sent events: the job at every change; the event's name is its status, and the stream ends with the job."""
    gateway.feed.check_room(caller.name, 1.0 if caller.name == ANONYMOUS else 0.5)
    first = await gateway.to_follow(job_id, caller)  # 404 before the stream begins
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(events.stream(gateway, first, caller), 200, headers, "text/event-stream")


@router.post("/videos/{id}/cancel", response_model=answers.Video, responses=_errors(400, 404, 409))
async def cancel_video(gateway: TheGateway, caller: TheCaller, job_id: JobId):
    """Cancel a queued job at once and a running one within a denoise step."""
    job = await run_in_threadpool(gateway.store.cancel, job_id, caller.name)
    return await gateway.answer_for(job)


@router.delete("/videos/{id}", response_model=answers.VideoDeleted, responses=_errors(400, 404))
async def delete_video(gateway: TheGateway, caller: TheCaller, job_id: JobId):
    """Delete a video and its files; a job that is not over is cancelled first."""
    await run_in_threadpool(gateway.store.delete, job_id, caller.name)
    return answers.VideoDeleted(id=job_id)


@router.get("/models", response_model=answers.ModelList, responses=_errors())
async def list_models(gateway: TheGateway, caller: TheCaller):
    """The served model, its defaults and the limits of every parameter."""
    model = answers.Model(
        id=gateway.settings.model_name,
        created=0,
        defaults=asdict(gateway.card.defaults),
        limits=requests.limits(gateway.card),
        media=intake.offered(gateway.card),
    )
    return answers.ModelList(data=[model])
