"""The BentoML service: `bentoml serve service.service:WanService`.

BentoML brings `/livez`, `/readyz`, `/metrics` and the API `generate`; `/v1/videos` and the page are mounted into it.
The guard stands before all of them.
"""

from pathlib import Path
from typing import Annotated

import bentoml
from _bentoml_sdk.io_models import IODescriptor
from bentoml.validators import ContentType

from service import bento_timeout
from service.api import problems, sync, videos
from service.api.app import create_app
from service.api.guard import Guard
from service.api.requests import VideoRequest
from service.errors import ServiceError
from service.settings import load_settings

settings = load_settings()
app = create_app(settings)
bento_timeout.remove()


class GenerateBody(VideoRequest, IODescriptor):
    """Describes the body of `generate` in BentoML's schema; it is read and checked by the code of `/v1/videos`."""

    @classmethod
    async def from_http_request(cls, request, serde):
        return cls.model_construct(prompt="")


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

    @bentoml.api(input_spec=GenerateBody)
    async def generate(self, ctx: bentoml.Context, **fields) -> Annotated[Path, ContentType("video/mp4")]:
        """Generate a video and return the MP4. The job goes through the same queue as those of `/v1/videos`."""
        request = ctx.request
        try:
            key = await videos.idempotency_key_of(request.headers.get("idempotency-key"))
            answer = await sync.video_of(request, app.state.gateway, request.state.caller, key)
        except ServiceError as error:
            answer = problems.answer(error, request.url.path)
        ctx.response.status_code = answer.status_code  # BentoML writes it into the answer
        return answer  # type: ignore[return-value]  # BentoML reads a file in the signature and passes a response on

    async def __is_ready__(self) -> bool:
        return await app.state.gateway.ready()

    async def __is_alive__(self) -> bool:
        return True  # the event loop answers; a database that is away is a matter of readiness


WanService.add_asgi_middleware(Guard, gateway=app.state.gateway)  # type: ignore[attr-defined]  # a decorated class is a Service
