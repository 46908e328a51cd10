"""OpenRouter's asynchronous `/api/v1/videos`, with the capabilities of the model and a signed callback."""

import math
from typing import Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from contract import ModelCard
from contract.parameters import BY_NAME
from service.api import body, content
from service.api.shapes import notices
from service.api.shapes.routing import JobId, TheCaller, TheGateway, errors, json_or_form
from service.api.shapes.translation import submit, without
from service.errors import InvalidRequest, NotFound
from service.store import Job

router = APIRouter(prefix="/api/v1", tags=["OpenRouter"])
RATIOS = ("16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3", "21:9", "9:21")
RESOLUTIONS = ("480p", "720p", "1080p")
NAMES = {"duration": "seconds", "callback_url": "webhook_url"}
FOREIGN = {"generate_audio": (), "provider": (), "input_references": ()}
FRAMES = {"first_frame": "image", "last_frame": "last_image"}
NEARLY = 0.05  # the checkpoint's own size stands for a ratio that it misses by less
_BODY = {
    "type": "object",
    "required": ["model", "prompt"],
    "properties": {
        "model": {"type": "string"},
        "prompt": {"type": "string", "minLength": 1},
        "resolution": {"enum": list(RESOLUTIONS), "description": "Or that of the model, see /videos/models."},
        "aspect_ratio": {"enum": list(RATIOS)},
        "size": {"type": "string", "description": "WIDTHxHEIGHT, instead of resolution and aspect_ratio."},
        "duration": {"type": "number", "description": "In seconds."},
        "seed": {"type": "integer", "minimum": 0},
        "callback_url": {"type": "string", "description": "Called when the job ends, signed."},
    },
}


class Generation(BaseModel):
    id: str
    generation_id: str
    polling_url: str
    status: Literal["pending", "in_progress", "completed", "failed", "cancelled", "expired"]
    unsigned_urls: list[str] | None = None
    error: str | None = None


class VideoModel(BaseModel):
    id: str
    canonical_slug: str
    name: str
    created: int = 0
    description: str
    supported_resolutions: list[str]
    supported_aspect_ratios: list[str]
    supported_sizes: list[str]
    supported_durations: list[int]
    supported_frame_images: list[str]
    generate_audio: bool = False
    seed: bool = True
    creativity: list[int] | None = None  # of models that enlarge, as the next
    upscale_factor: dict | None = None
    pricing_skus: dict[str, str]
    allowed_passthrough_parameters: list[str]


class VideoModels(BaseModel):
    data: list[VideoModel]


def size_of(card: ModelCard, resolution: str | None, ratio: str | None) -> tuple[int, int]:
    """Width and height on the model's grid; `resolution` says the shorter side."""
    own = card.defaults
    short = min(own.width, own.height)
    offered = (f"{short}p", *RESOLUTIONS)
    if resolution is not None and resolution not in offered:
        raise InvalidRequest("resolution", resolution, ", ".join(dict.fromkeys(offered)))
    if ratio is not None and ratio not in RATIOS:
        raise InvalidRequest("aspect_ratio", ratio, ", ".join(RATIOS))
    wide, high = (int(part) for part in ratio.split(":")) if ratio else (own.width, own.height)
    side = int(resolution[:-1]) if resolution else short
    for width, height in ((own.width, own.height), (own.height, own.width)):
        if side == short and abs(math.log((width / height) / (wide / high))) < NEARLY:
            return width, height
    scale = side / min(wide, high)
    return card.geometry.nearest_side(wide * scale), card.geometry.nearest_side(high * scale)


def _values(said: dict, card: ModelCard) -> dict:
    """The body in the words of `/v1/videos`, but for NAMES."""
    values = dict(said)
    for frame in values.pop("frame_images", None) or ():
        kind = frame.get("frame_type", "first_frame") if isinstance(frame, dict) else frame
        if kind not in FRAMES:
            raise InvalidRequest("frame_images", kind, f"objects with frame_type {' or '.join(FRAMES)}")
        image = frame.get("image_url")
        values[FRAMES[kind]] = image.get("url") if isinstance(image, dict) else image
    values = without(values, FOREIGN)
    resolution, ratio = values.pop("resolution", None), values.pop("aspect_ratio", None)
    if resolution or ratio:
        if values.get("size"):
            raise InvalidRequest("size", values["size"], "nothing beside resolution or aspect_ratio")
        width, height = size_of(card, resolution, ratio)
        values["size"] = f"{width}x{height}"
    return values


def _answer(job: Job) -> Generation:
    status = notices.openrouter_status(job)
    return Generation(
        id=job.id,
        generation_id=job.id,
        polling_url=f"/api/v1/videos/{job.id}",
        status=status,
        unsigned_urls=[notices.content_path(job.id)] if status == "completed" else None,
        error=job.error_message,
    )


@router.post(
    "/videos", response_model=Generation, response_model_exclude_none=True, status_code=202,
    responses=errors(400, 403, 409, 413, 415, 422), **json_or_form(_BODY),
)  # fmt: skip
async def submit_generation(request: Request, gateway: TheGateway, caller: TheCaller):
    """Submit a video in OpenRouter's words."""
    said = await body.read(request)
    values = _values(said, (await gateway.served(said.get("model"))).card)
    job, _ = await submit(gateway, caller, values, NAMES, {"shape": notices.OPENROUTER})
    return _answer(job)


@router.get("/videos/models", response_model=VideoModels, responses=errors())
async def list_video_models(gateway: TheGateway, caller: TheCaller):
    """What the served models can do."""
    return VideoModels(data=[_model(served.name, served.card) for served in gateway.catalogue.models.values()])


def _model(name: str, card: ModelCard) -> VideoModel:
    sizes = {size_of(card, resolution, ratio) for resolution in (None, "480p", "720p") for ratio in RATIOS}
    longest = int(BY_NAME["num_frames"].number.high / card.defaults.fps)
    return VideoModel(
        id=name,
        canonical_slug=name,
        name=name,
        description=f"Wan, variant {card.variant}",
        supported_resolutions=list(dict.fromkeys((f"{min(card.defaults.width, card.defaults.height)}p", *RESOLUTIONS))),
        supported_aspect_ratios=list(RATIOS),
        supported_sizes=[f"{width}x{height}" for width, height in sorted(sizes)],
        supported_durations=list(range(1, longest + 1)),
        supported_frame_images=[theirs for theirs, ours in FRAMES.items() if ours in card.takes],
        pricing_skus={},
        allowed_passthrough_parameters=[],
    )


@router.get(
    "/videos/{id}", response_model=Generation, response_model_exclude_none=True, responses=errors(400, 404)
)  # fmt: skip
async def poll_generation(gateway: TheGateway, caller: TheCaller, job_id: JobId):
    """The state of a generation; `expired`: its deadline passed before it could begin."""
    return _answer(await run_in_threadpool(gateway.store.get, job_id, caller.name))


@router.get("/videos/{id}/content", response_class=Response, responses=errors(400, 404, 416) | content.DOCUMENTED)
async def generation_content(
    request: Request, gateway: TheGateway, caller: TheCaller, job_id: JobId, index: int = Query(0, ge=0, le=0)
):
    """The MP4 of a completed generation."""
    job = await run_in_threadpool(gateway.store.get, job_id, caller.name)
    if job.video_key is None:
        raise NotFound(f"the video is {notices.openrouter_status(job)}; only a completed one has content", "id")
    return await run_in_threadpool(content.video_response, request, gateway.files, job)
