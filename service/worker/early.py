"""Frames while later ones are still in the decoder: a fragmented MP4 that grows in the store, piece after piece.

The decoder appends raw frames to `frames.rgb` of the run directory where the request says `stream`. A piece is what ffmpeg made
of the frames since the last one; an empty piece is the end. The video itself is encoded once all frames are there, as ever.
"""

import asyncio
import contextlib
import logging
from pathlib import Path

import imageio_ffmpeg

from service import storage
from service.errors import ServiceError
from service.store import Lease
from service.worker.run_directories import Run

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.03
PIECE_SECONDS = 0.2  # between two pieces
END_SECONDS = 10.0  # for the last pieces, once the decoder is done
ENCODER = ["-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "veryfast", "-tune", "zerolatency", "-crf", "20"]
FRAGMENTS = ["-movflags", "empty_moov+default_base_moof+frag_every_frame", "-flush_packets", "1", "-f", "mp4", "-"]


class EarlyVideo:
    """That of one attempt; does nothing where the request does not say `stream`. What goes wrong costs it, not the video."""

    def __init__(self, files: storage.Storage, lease: Lease, run_dir: Run):
        self._files, self._lease, self._run_dir = files, lease, run_dir
        request = lease.job.request
        self._wanted = bool(request.get("stream"))
        self._size = f"{request.get('width')}x{request.get('height')}"
        self._fps = str(request.get("fps") or 16)
        self._decoded = asyncio.Event()
        self._task: asyncio.Task | None = None

    def begin(self) -> None:
        """The decoder works."""
        if self._wanted and self._task is None:
            self._task = asyncio.create_task(self._make())

    async def end(self) -> None:
        """The decoder is done: store what is left."""
        self._decoded.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=END_SECONDS)

    async def stop(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _make(self) -> None:
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", self._size, "-r", self._fps, "-i", "-"]
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, *ENCODER, *FRAGMENTS]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
        )
        assert process.stdin is not None
        assert process.stdout is not None
        feeding = asyncio.create_task(self._feed(process.stdin))
        try:
            await self._store(process.stdout)
        except (ServiceError, OSError) as error:
            logger.warning("frames are not shown early", extra={"reason": str(error)})
        finally:
            feeding.cancel()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _feed(self, encoder: asyncio.StreamWriter) -> None:
        """Give ffmpeg what the decoder appends, until it is done and all of it is read."""
        place, path = 0, self._run_dir.frames
        with contextlib.suppress(ConnectionError):
            while True:
                decoded = self._decoded.is_set()
                new = await asyncio.to_thread(_bytes_from, path, place)
                place += len(new)
                if new:
                    encoder.write(new)
                    await encoder.drain()
                elif decoded:
                    break
                else:
                    await asyncio.sleep(POLL_SECONDS)
        encoder.close()

    async def _store(self, made: asyncio.StreamReader) -> None:
        number, over = 0, False
        while not over:
            piece = await made.read(1 << 20)
            if piece:  # what comes at once goes into one piece
                deadline = asyncio.get_running_loop().time() + PIECE_SECONDS
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(deadline):
                        while more := await made.read(1 << 20):
                            piece += more
            over = not piece
            await asyncio.to_thread(self._put, number, piece)
            number += 1

    def _put(self, number: int, piece: bytes) -> None:
        path = self._run_dir.path / "early.mp4"
        path.write_bytes(piece)
        self._files.put(path, storage.early_key(self._lease.job.id, self._lease.fence, number))


def _bytes_from(path: Path, place: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(place)
            return file.read(8 << 20)
    except FileNotFoundError:
        return b""
