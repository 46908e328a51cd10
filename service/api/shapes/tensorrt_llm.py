"""TensorRT-LLM's synchronous `/v1/videos/generations`, which MLPerf's own client sends its requests to."""

import base64
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from service.api import body, requests, sync
from service.api.requests import VideoRequest
from service.api.shapes.routing import IdempotencyKey, TheCaller, TheGateway, errors, json_or_form
from service.api.shapes.same_path import plain
from service.api.shapes.translation import without
from service.errors import InvalidRequest

router = APIRouter(prefix="/v1", tags=["TensorRT-LLM"])
FORMATS = ("video_bytes", "video_path")
_BODY = VideoRequest.model_json_schema(by_alias=False)
_BODY = _BODY | {
    "title": "GenerationBody",
    "properties": _BODY["properties"] | {"response_format": {"enum": list(FORMATS), "default": "video_bytes"}},
}


class Generation(BaseModel):
    """One of `video_path` (in the video store of the server) and `video_bytes` (base64), as asked for."""

    object: Literal["video.generation"] = "video.generation"
    video_id: str
    video_path: str | None = None
    video_bytes: str | None = None


@router.post(
    "/videos/generations",
    response_model=Generation,
    response_model_exclude_none=True,
    responses=errors(400, 403, 409, 413, 415, 422, 500),
    **json_or_form(_BODY),
)
async def generate_video(request: Request, gateway: TheGateway, caller: TheCaller, idempotency_key: IdempotencyKey):
    """Submit a video and wait for it; leaving the call cancels the job. Start latents (`latent_path`) are refused."""
    values = await body.read(request)
    wish = values.pop("response_format", "video_bytes")
    if wish not in FORMATS:
        raise InvalidRequest("response_format", wish, " or ".join(FORMATS))
    if values.get("output_format") == "auto":
        del values["output_format"]
    values = without(values, {"latent_path": ()})
    wanted = requests.parse(plain(values))
    done = await sync.finished(request, gateway, caller, wanted, idempotency_key)
    job = await run_in_threadpool(gateway.store.get, done.id, caller.name)
    key, size = job.video
    if wish == "video_path":
        return Generation(video_id=job.id, video_path=gateway.files.location(key))
    pieces = await run_in_threadpool(lambda: b"".join(gateway.files.read(key, 0, size)))
    return Generation(video_id=job.id, video_bytes=base64.b64encode(pieces).decode())
