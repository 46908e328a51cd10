"""The video of a job whose later frames are still in the decoder: the pieces that the worker stores (`service.worker.early`)."""

import asyncio
import time
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service.api.gateway import Gateway
from service.errors import NotFound, ServiceError
from service.storage import early_key
from service.store import Job

POLL_SECONDS = 0.1
LOOK_SECONDS = 1.0  # between two looks whether anything will still come
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
MEDIA_TYPE = "video/mp4"


def response(request: Request, gateway: Gateway, job: Job) -> Response:
    """An answer without a length that ends with the last frame, or early if the attempt does."""
    if request.method == "HEAD":
        return Response(None, 200, HEADERS, MEDIA_TYPE)
    return StreamingResponse(_pieces(gateway, job), 200, HEADERS, MEDIA_TYPE)


async def _pieces(gateway: Gateway, job: Job) -> AsyncIterator[bytes]:
    number, looked = 0, time.monotonic()
    ended = False
    while not gateway.stopping:
        piece = await run_in_threadpool(_piece, gateway, early_key(job.id, job.fence, number))
        if piece is not None:
            if not piece:
                return  # the end
            yield piece
            number += 1
        elif ended:
            return
        elif time.monotonic() - looked > LOOK_SECONDS:
            ended, looked = await run_in_threadpool(_is_over, gateway, job), time.monotonic()
        else:
            await asyncio.sleep(POLL_SECONDS)


def _piece(gateway: Gateway, key: str) -> bytes | None:
    """None: not there yet."""
    try:
        return b"".join(gateway.files.read(key, 0, gateway.files.size(key)))
    except NotFound:
        return None


def _is_over(gateway: Gateway, job: Job) -> bool:
    """Whether this attempt stores nothing more; a look that fails says nothing."""
    try:
        now = gateway.store.get(job.id)
    except NotFound:
        return True
    except ServiceError:
        return False
    return now.done or now.fence != job.fence
