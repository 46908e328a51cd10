"""Makes the files of a job out of what a request carries."""

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from starlette.concurrency import run_in_threadpool

from contract import InvalidRequest as OutOfBounds
from contract import ModelCard
from contract.media import BY_NAME, MEDIA
from service.api import addresses
from service.api.catalogue import Catalogue
from service.api.requests import RequestBody
from service.errors import BodyTooLarge, InvalidRequest
from service.media import files
from service.media.files import Kept
from service.media.sent import Remote, Source, Upload
from service.settings import Settings


class Intake:
    """Reads a few pictures and clips at a time, whoever sends how many."""

    def __init__(self, settings: Settings, catalogue: Catalogue):
        self.settings, self.catalogue = settings, catalogue
        self._places = asyncio.Semaphore(settings.media_at_once)

    @property
    def most_bytes(self) -> int:
        """Of all files of a request to any of the models; 0 where none takes files."""
        models = self.catalogue.models.values()
        return max(sum(self._most_bytes(BY_NAME[name].kind) for name in served.card.takes) for served in models)

    def check(self, request: RequestBody, card: ModelCard) -> None:
        """Refuse what the model does not take, and the lack of what it needs, in the words of the caller."""
        try:
            card.check_media(request.media())
        except OutOfBounds as error:
            raise InvalidRequest(request.said_as(error.field), error.value, error.allowed) from None

    @asynccontextmanager
    async def kept(self, request: RequestBody):
        """Name -> Kept for every file of the request, on disk until the block ends."""
        if not request.media():
            yield {}
            return
        with TemporaryDirectory(prefix="wan-media-") as folder:
            yield {
                name: await self._keep(name, request.said_as(name), source, Path(folder))
                for name, source in request.media().items()
            }

    async def _keep(self, name: str, field: str, source: Source, folder: Path) -> Kept:
        if isinstance(source, Remote):
            fetched = await self._fetch(field, source.url, self._most_bytes(BY_NAME[name].kind))
            try:
                return await self._keep(name, field, fetched, folder)
            finally:
                fetched.close()
        limits, image = self.settings, BY_NAME[name].kind == "image"
        if source.size > (most := self._most_bytes(BY_NAME[name].kind)):
            raise BodyTooLarge(f"{field} is a file of {source.size} bytes; allowed: {most}", field)
        async with self._places:
            if image:
                return await run_in_threadpool(
                    files.picture, field, source, folder / f"{name}.png", limits.max_image_pixels
                )
            bounds = (limits.max_clip_pixels, limits.max_clip_seconds, limits.max_clip_frames)
            return await run_in_threadpool(files.clip, field, source, folder / f"{name}.mp4", *bounds)

    def _most_bytes(self, kind: str) -> int:
        return self.settings.max_image_bytes if kind == "image" else self.settings.max_clip_bytes

    async def _fetch(self, field: str, url: str, most: int) -> Upload:
        """The file at a public address; InvalidRequest when it cannot be had within the limits."""
        if not self.settings.fetch_urls:
            raise InvalidRequest(field, url, "a file or a data URL; this server calls no addresses")
        private = self.settings.fetch_allow_private
        addresses.check_url(url, private, field, self.settings.ports)
        upload = Upload.new()
        try:
            async with asyncio.timeout(self.settings.fetch_seconds):
                await _download(url, private, upload, most)
            return upload
        except BaseException as error:
            upload.close()
            if isinstance(error, TimeoutError):
                allowed = f"the address of a file that arrives within {self.settings.fetch_seconds:g} s"
                raise InvalidRequest(field, url, allowed) from None
            if isinstance(error, addresses.RefusedAddress | httpx.HTTPError | OSError | ValueError):
                reason = str(error)[:100] or type(error).__name__
                raise InvalidRequest(field, url, f"the public address of a file ({reason})") from None
            raise


async def _download(url: str, private: bool, upload: Upload, most: int) -> None:
    async with httpx.AsyncClient(trust_env=False, follow_redirects=False) as client:
        headers = {"User-Agent": "wan-fetch/1", "Accept-Encoding": "identity"}
        asked = await addresses.request(client, "GET", url, private, headers=headers)
        answer = await client.send(asked, stream=True)
        if answer.status_code != 200:
            raise ValueError(f"it answered with status {answer.status_code}")
        async for piece in answer.aiter_raw():
            upload.write(piece)
            if upload.size > most:
                raise ValueError(f"it has more than {most} bytes")
        await answer.aclose()


def offered(card: ModelCard) -> dict[str, dict]:
    """The media of a model for clients that draw forms."""
    return {
        medium.name: {
            "kind": medium.kind,
            "label": medium.label,
            "help": medium.help,
            "required": medium.name in card.needs,
        }
        for medium in MEDIA
        if medium.name in card.takes
    }
