"""The routes of `/v1`."""

import re
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from service.api import answers, body, content, events, growing, intake, requests, stills, sync
from service.api.auth import ANONYMOUS, Caller
from service.api.gateway import Gateway
from service.api.shapes import same_path
from service.errors import Forbidden, InvalidRequest, NotFound
from service.storage import preview_key
from service.store.jobs import TERMINAL

router = APIRouter(prefix="/v1")
ID = Path(alias="id", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Job id")
POLL_AFTER = "openai-poll-after-ms"  # OpenAI's clients poll that often
POLL_MS = (500, 10_000)
KEY = re.compile(r"[\x21-\x7e]{1,255}")


# async, although they wait for nothing: FastAPI runs plain functions in a thread, twice per request
async def gateway_of(request: Request) -> Gateway:
    return request.app.state.gateway


async def caller_of(request: Request) -> Caller:
    return request.state.caller  # put there by the guard, which knew the key


TheGateway = Annotated[Gateway, Depends(gateway_of)]
TheCaller = Annotated[Caller, Depends(caller_of)]
JobId = Annotated[str, ID]


def poll_after_ms(eta_seconds: float | None) -> int:
    """When a look at a job is worth while: after a tenth of what is left."""
    return max(POLL_MS[0], min(POLL_MS[1], round(100 * (eta_seconds or 0))))


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

_BODY: dict[str, Any] = {
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


def errors(*statuses: int) -> dict:
    return {status: {"model": answers.ErrorAnswer} for status in (401, 429, 503, *statuses)}


@router.post("/videos", response_model=answers.Video, responses=errors(400, 403, 409, 413, 415, 422), **_BODY)
async def create_video(
    request: Request, response: Response, gateway: TheGateway, caller: TheCaller, idempotency_key: IdempotencyKey
):
    """Submit a video; answers at once with the job."""
    wanted = requests.parse(same_path.plain(await body.read(request)))
    job, made = await gateway.submit(wanted, caller, idempotency_key)
    response.headers["Location"] = f"/v1/videos/{job.id}"
    response.headers[POLL_AFTER] = str(POLL_MS[0])
    if not made:
        response.headers["Idempotent-Replayed"] = "true"
    return await gateway.answer_for(job)


@router.post(
    "/videos/sync",
    response_class=Response,
    responses=errors(400, 403, 409, 413, 415, 422, 500)
    | {200: {"content": {"video/mp4": {}}, "description": "The MP4"}},
    **_BODY,
)
async def create_video_sync(request: Request, gateway: TheGateway, caller: TheCaller, idempotency_key: IdempotencyKey):
    """Submit a video and wait for the MP4. Leaving the call cancels the job."""
    return await sync.video_of(request, gateway, caller, idempotency_key)


@router.get("/videos", response_model=answers.VideoList, responses=errors(400))
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
    data = [await gateway.answer_for(job) if not job.done else answers.video(job, None)
            for job in page]  # fmt: skip
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return answers.VideoList(data=data, first_id=first, last_id=last, has_more=more)


@router.get("/videos/{id}", response_model=answers.Video, responses=errors(400, 404))
async def retrieve_video(gateway: TheGateway, caller: TheCaller, job_id: JobId):
    """State, progress, queue position and ETA of a job."""
    video = await gateway.answer(job_id, caller)
    headers = {} if video.status in TERMINAL else {POLL_AFTER: str(poll_after_ms(video.eta_seconds))}
    return Response(
        video.model_dump_json(), 200, headers, "application/json"
    )  # the busiest route: no second validation


@router.head("/videos/{id}/content", include_in_schema=False)
@router.get(
    "/videos/{id}/content",
    response_class=Response,
    responses=errors(400, 404, 416) | content.DOCUMENTED,
)
async def download_video(
    request: Request,
    gateway: TheGateway,
    caller: TheCaller,
    job_id: JobId,
    variant: Literal["video", "thumbnail", "spritesheet", "preview"] = "video",
    step: Annotated[int, Query(ge=0, description="Makes preview URLs distinct; not interpreted")] = 0,
):
    """The video (Range requests are served), a picture of it, or the newest preview of a running job.

    Of a job that said `stream`, while it is decoded: the frames so far as a fragmented MP4, which grows until all are there.
    """
    job = await run_in_threadpool(gateway.store.get, job_id, caller.name)
    if variant == "preview":
        if not job.preview_key:
            raise NotFound("there is no preview of this video", "variant")
        key = preview_key(job_id)
        size = await run_in_threadpool(gateway.files.size, key)
        return content.file_response(request, gateway.files, key, size, "image/webp", f"{job_id}.webp")
    if variant == "video" and answers.is_streaming(job):
        return growing.response(request, gateway, job)
    if job.video_key is None:
        raise NotFound(f"the video is {job.status}; only a completed one can be downloaded", "id")
    if variant in stills.STILLS:
        still = stills.STILLS[variant]
        key, size = await stills.stored(gateway, job, still)
        name = f"{job_id}-{variant}.{still.suffix}"
        return content.file_response(request, gateway.files, key, size, still.media_type, name)
    return await run_in_threadpool(content.video_response, request, gateway.files, job)


@router.get(
    "/videos/{id}/events",
    response_class=StreamingResponse,
    responses=errors(400, 404) | {200: {"content": {"text/event-stream": {}}, "description": "One event a change"}},
)
async def video_events(gateway: TheGateway, caller: TheCaller, job_id: JobId):
    """Server-sent events: the job at every change; the event's name is its status, and the stream ends with the job."""
    gateway.feed.check_room(caller.name, 1.0 if caller.name == ANONYMOUS else 0.5)
    first = await gateway.to_follow(job_id, caller)  # 404 before the stream begins
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(events.stream(gateway, first, caller), 200, headers, "text/event-stream")


@router.get("/videos/{id}/attempts", response_model=answers.AttemptList, responses=errors(400, 403, 404))
async def video_attempts(gateway: TheGateway, caller: TheCaller, job_id: JobId):
    """For admin keys: how the attempts at any job ended that made no video, and whose fault it was."""
    if not caller.admin:
        raise Forbidden('only a key with "admin": true may see the attempts', "id")
    await run_in_threadpool(gateway.store.get, job_id)  # 404
    history = await run_in_threadpool(gateway.store.history, job_id)
    return answers.AttemptList(data=[answers.Attempt(number=row["fence"], **row) for row in history])


@router.post("/videos/{id}/cancel", response_model=answers.Video, responses=errors(400, 404, 409))
async def cancel_video(gateway: TheGateway, caller: TheCaller, job_id: JobId):
    """Cancel a queued job at once and a running one within a denoise step."""
    job = await run_in_threadpool(gateway.store.cancel, job_id, caller.name)
    return await gateway.answer_for(job)


@router.delete("/videos/{id}", response_model=answers.VideoDeleted, responses=errors(400, 404))
async def delete_video(gateway: TheGateway, caller: TheCaller, job_id: JobId):
    """Delete a video and its files; a job that is not over is cancelled first."""
    await run_in_threadpool(gateway.store.delete, job_id, caller.name)
    return answers.VideoDeleted(id=job_id)


@router.get("/models", response_model=answers.ModelList, responses=errors())
async def list_models(gateway: TheGateway, caller: TheCaller):
    """The models, their defaults and the limits of every parameter; the one that goes without saying is first."""
    adapters = await run_in_threadpool(gateway.adapters.all)
    data = [
        answers.Model(
            id=served.name,
            created=0,
            variant=served.card.variant,
            workers=served.workers,
            defaults=asdict(served.card.defaults),
            limits=requests.limits(served.card),
            media=intake.offered(served.card),
            loras=[entry.name for entry in adapters if entry.model == served.name],
        )
        for served in gateway.catalogue.models.values()
    ]
    return answers.ModelList(data=data)
