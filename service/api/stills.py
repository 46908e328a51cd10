"""Pictures of a finished video: made when they are first asked for, stored beside it, removed with it."""

import asyncio
import logging
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from service import ffmpeg
from service.api.gateway import Gateway
from service.errors import NotFound, StorageError
from service.store import Job

logger = logging.getLogger(__name__)
AT_ONCE = 2  # ffmpeg beside the requests of others
COLUMNS, SPRITES, SPRITE_WIDTH, THUMBNAIL_WIDTH = 4, 16, 240, 480


@dataclass(frozen=True)
class Still:
    """One kind of picture; `filters`: of ffmpeg, from the number of frames."""

    variant: str
    suffix: str
    media_type: str
    filters: Callable[[int], str]


def _thumbnail(frames: int) -> str:
    return f"select='eq(n,{frames // 2})',scale='min({THUMBNAIL_WIDTH},iw)':-2"


def _spritesheet(frames: int) -> str:
    """At most SPRITES frames at equal distances, row by row."""
    every = math.ceil(frames / SPRITES)
    shown = math.ceil(frames / every)
    columns = min(COLUMNS, shown)
    chosen = f"select='not(mod(n,{every}))',scale='min({SPRITE_WIDTH},iw)':-2"
    return f"{chosen},tile={columns}x{math.ceil(shown / columns)}"


STILLS = {
    still.variant: still
    for still in (
        Still("thumbnail", "webp", "image/webp", _thumbnail),
        Still("spritesheet", "jpg", "image/jpeg", _spritesheet),
    )
}
_places = asyncio.Semaphore(AT_ONCE)


async def stored(gateway: Gateway, job: Job, still: Still) -> tuple[str, int]:
    """Key and size of the picture."""
    key = f"{job.id}/{still.variant}.{still.suffix}"
    try:
        return key, await run_in_threadpool(gateway.files.size, key)
    except NotFound:
        async with _places:
            size = await run_in_threadpool(_make, gateway, job, still, key)
    await run_in_threadpool(_unless_deleted, gateway, job.id)
    return key, size


def _make(gateway: Gateway, job: Job, still: Still, key: str) -> int:
    frames = int(job.request["num_frames"])
    with tempfile.TemporaryDirectory(prefix="wan-still-") as folder:
        stored, _ = job.video
        source, target = Path(folder) / Path(stored).name, Path(folder) / f"still.{still.suffix}"
        gateway.files.get(stored, source)
        try:
            quality = ["-frames:v", "1", "-update", "1", "-q:v", "80" if still.suffix == "webp" else "3"]
            ffmpeg.run(["-i", str(source), "-vf", still.filters(frames), *quality, str(target)])
            return gateway.files.put(target, key)
        except OSError as error:
            raise StorageError(f"cannot make the {still.variant}: {error}") from error


def _unless_deleted(gateway: Gateway, job_id: str) -> None:
    """A job that was deleted and swept meanwhile must not leave a picture behind."""
    try:
        gateway.store.get(job_id)
    except NotFound:
        gateway.files.delete_job(job_id)
        raise
