"""The BentoML service: `bentoml serve service.service:WanService`.

BentoML brings `/livez`, `/readyz`, `/metrics` and the API `generate`; `/v1/videos` and the page are mounted into it.
"""

import tempfile
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

import bentoml
from bentoml.validators import ContentType
from starlette.concurrency import run_in_threadpool

from service import bento_timeout
from service.api import events, requests
from service.api.app import create_app
from service.errors import GenerationFailed, ServiceError
from service.settings import load_settings

settings = load_settings()
app = create_app(settings)
bento_timeout.remove()


@bentoml.service(
    name="wan",
    workers=1,
    traffic={"timeout": int(settings.sync_timeout_seconds)},
    logging={"access": {"enabled": False}},  # the service logs jobs, not polls
    metrics={"enabled": False},  # /metrics is the mounted application's; the reason is in service/api/http_metrics.py
)
@bentoml.asgi_app(app, path="/")
class WanService:
    """Text to video with Wan behind NVIDIA Triton."""

    @bentoml.api
    async def generate(
        self,
        ctx: bentoml.Context,
        prompt: str,
        negative_prompt: str | None = None,
        width: int | None = None,
        height: int | None = None,
        num_frames: int | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        flow_shift: float | None = None,
        seed: int | None = None,
        sampler: str | None = None,
        cache: str | None = None,
        cache_threshold: float | None = None,
        guidance_end: float | None = None,
    ) -> Annotated[Path, ContentType("video/mp4")]:
        """Generate a video and return the MP4. The job goes through the same queue as those of `/v1/videos`."""
        given = {name: value for name, value in locals().items() if name not in ("self", "ctx") and value is not None}
        try:
            return await _generate(ctx, given)
        except ServiceError as error:
            raise _for_bentoml(error) from error

    async def __is_ready__(self) -> bool:
        return await app.state.gateway.ready()

    async def __is_alive__(self) -> bool:
        return True  # the event loop answers; a database that is away is a matter of readiness


async def _generate(ctx: bentoml.Context, given: dict) -> Path:
    gateway = app.state.gateway
    caller = gateway.keys.caller(ctx.request.headers.get("authorization"))
    job, _ = await gateway.submit(requests.parse(given), caller, None)
    done = None
    try:
        done = await events.until_done(gateway, ctx.request, job.id, caller, settings.sync_timeout_seconds)
    finally:
        if done is None and not gateway.stopping:
            await run_in_threadpool(gateway.store.cancel, job.id)
    if done is None or done.status != "completed":
        reason = done.error.message if done is not None and done.error else "the job was cancelled"
        raise GenerationFailed(reason)
    stored = await run_in_threadpool(gateway.store.get, job.id)
    folder = Path(getattr(ctx, "temp_dir", None) or tempfile.mkdtemp(prefix="wan-"))
    target = folder / f"{job.id}.mp4"
    await run_in_threadpool(gateway.files.get, stored.video_key, target)
    return target


def _for_bentoml(error: ServiceError) -> bentoml.exceptions.BentoMLException:
    """BentoML answers with the status its exception carries."""
    wrapped = bentoml.exceptions.BentoMLException(error.message)
    wrapped.error_code = HTTPStatus(error.status)
    return wrapped
