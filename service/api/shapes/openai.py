"""OpenAI's video API in its last shape, beside what `service.api.videos` serves of it: remix, edits, extensions, characters.

The service at OpenAI ended on 2026-09-24; its client (`openai` on PyPI) works with any base_url.
"""

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from contract import PARAMETERS
from service.api import answers, body, requests
from service.api.auth import Caller
from service.api.gateway import Gateway
from service.api.shapes.routing import JobId, TheCaller, TheGateway, errors, json_or_form
from service.errors import InvalidRequest
from service.media.sent import Upload
from service.storage import Storage

router = APIRouter(prefix="/v1", tags=["OpenAI"])
_REMIX = {
    "type": "object",
    "required": ["prompt"],
    "additionalProperties": False,
    "properties": {"prompt": {"type": "string", "minLength": 1, "description": "What the new video shows."}},
}
_CLIP = {
    "type": "object",
    "properties": {"prompt": {"type": "string"}, "video": {"description": 'A file, or {"id": …} of a finished video.'}},
}


@router.post(
    "/videos/{id}/remix",
    response_model=answers.Video,
    responses=errors(400, 403, 404, 413, 415),
    **json_or_form(_REMIX),
)
async def remix_video(request: Request, gateway: TheGateway, caller: TheCaller, job_id: JobId):
    """A new video with another prompt and everything else, the seed included, as in an earlier one."""
    said = await body.read(request)
    if unknown := sorted(said.keys() - {"prompt"}):
        raise InvalidRequest(unknown[0], said[unknown[0]], "prompt only; the rest is that of the earlier video")
    earlier = await run_in_threadpool(gateway.store.get, job_id, caller.name)
    settings = {p.name: earlier.request[p.name] for p in PARAMETERS if p.name in earlier.request and p.name != "prompt"}
    for name, file in earlier.request.get("media", {}).items():
        settings[name] = await _stored(request, gateway, file["key"])
    wanted = requests.parse(settings | {"model": earlier.model} | said)
    job, _ = await gateway.submit(wanted, caller, None, {"remixed_from": job_id})
    return await gateway.answer_for(job)


async def _stored(request: Request, gateway: Gateway, key: str) -> Upload:
    """A file of the store as if it had come with the request."""
    upload = Upload.new()
    request.scope["wan.files"].append(upload)
    await run_in_threadpool(_fetch, gateway.files, key, upload)
    return upload


def _fetch(files: Storage, key: str, upload: Upload) -> None:
    for piece in files.read(key, 0, files.size(key)):
        upload.write(piece)


async def _with_clip(request: Request, gateway: Gateway, caller: Caller, said: dict) -> dict:
    """The body with the file of a finished video in the place of its id: `{"id": …}`, in a form `video[id]`."""
    clip = said.get("video")
    job_id = said.get("video[id]") if clip is None else clip.get("id") if isinstance(clip, dict) else None
    if not isinstance(job_id, str):
        return said
    job = await run_in_threadpool(gateway.store.get, job_id, caller.name)
    key, _ = job.video
    rest = {name: value for name, value in said.items() if name != "video[id]"}
    return rest | {"video": await _stored(request, gateway, key)}


def _from_a_clip(continued: bool):
    """The endpoint that makes a video of a clip; InvalidRequest where the model does something else with clips, or nothing."""

    async def endpoint(request: Request, gateway: TheGateway, caller: TheCaller):
        said = await body.read(request)
        card = (await gateway.served(said.get("model"))).card
        if "video" not in card.takes or card.continues != continued:
            verb = "continues" if continued else "changes"
            raise InvalidRequest("video", "a clip", f"nothing: {card.variant}, the served checkpoint, {verb} no clips")
        wanted = requests.parse(await _with_clip(request, gateway, caller, said))
        job, _ = await gateway.submit(wanted, caller, None)
        return await gateway.answer_for(job)

    return endpoint


async def _no_characters(request: Request, gateway: TheGateway, caller: TheCaller):
    await body.read(request)
    raise InvalidRequest("video", "a clip", "nothing: Wan has no characters that videos share")


for path, about, endpoint in (
    ("/videos/edits", "Change a clip; refused where the served checkpoint cannot.", _from_a_clip(False)),
    ("/videos/extensions", "Continue a clip; refused where the served checkpoint cannot.", _from_a_clip(True)),
    ("/videos/characters", "Refused: there is nothing like it in Wan.", _no_characters),
):
    router.add_api_route(
        path, endpoint, methods=["POST"], description=about, response_model=answers.Video,
        responses=errors(400, 413, 415), name=path.rpartition("/")[2], **json_or_form(_CLIP),
    )  # fmt: skip
