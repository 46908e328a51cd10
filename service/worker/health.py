"""Whether this worker may take jobs: one that breaks several in a row stops, and proves itself with a video before the next.

A broken worker is always idle, so it would win every job of the queue. The video is one whose frames are known: the cheapest
that this fleet completed, on the same kind of device; where there is none, one of the model's defaults, whose frames must at
least not be all alike. While it fails, the pauses grow, and Triton is restarted.
"""

import asyncio
import hashlib
import io
import logging
import time
from dataclasses import asdict

import numpy as np
from PIL import Image

from contract.card import ModelCard
from contract.media import BY_NAME as MEDIA
from service.errors import GenerationFailed, InputLost
from service.metrics import worker_metrics
from service.storage import Storage
from service.store import Job, JobStore
from service.worker import run_directories
from service.worker.inputs import read_all
from service.worker.triton import Generator

logger = logging.getLogger(__name__)
CANARY_SECONDS = 600.0
CANARY_STEPS = 2
LONGEST_PAUSE = 300.0
PROMPT = "a red circle moves left on a black background"


def digest(frames: np.ndarray) -> str:
    return hashlib.sha256(frames.data).hexdigest()


def check_frames(frames: np.ndarray) -> None:
    """GenerationFailed when all values are the same, which no healthy device makes of noise."""
    first = frames.flat[0]
    if (frames[0] == first).all() and (frames == first).all():
        raise GenerationFailed(f"all values of the frames are {first}", "constant_frames")


class Health:
    """Of one worker; `sick_after` attempts in a row that break make it sick."""

    def __init__(self, store: JobStore, worker: str, sick_after: int):
        self._store, self._worker, self._sick_after = store, worker, sick_after
        self._suspected = False  # something broke here since this worker showed last that it is healthy
        self._failures = 0  # in a row, of attempts and canaries
        self._next_try = 0.0
        self.reason = ""

    @property
    def sick(self) -> bool:
        return self._failures >= self._sick_after

    @property
    def due(self) -> bool:
        """Whether it is time to prove that the worker is healthy again."""
        return self.sick and time.monotonic() >= self._next_try

    def broke(self, reason: str) -> None:
        self._failures, self._suspected, self.reason = self._failures + 1, True, reason
        if self.sick:
            pause = min(2.0 ** (self._failures - self._sick_after), LONGEST_PAUSE)
            self._next_try = time.monotonic() + pause
            logger.error("this worker is sick and takes no jobs", extra={"reason": reason, "next_try_in": pause})
        worker_metrics().sick.set(self.sick)

    def proved(self) -> None:
        """It made a video: what broke here before was the fault of the jobs."""
        self._failures, self.reason = 0, ""
        worker_metrics().sick.set(0)
        if self._suspected:
            self._store.acquit(self._worker)
            self._suspected = False


def shades(card: ModelCard) -> dict[str, bytes]:
    """A picture in shades of gray, as PNG, wherever the model needs one."""
    width, height = card.defaults.width, card.defaults.height
    picture = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(picture, "PNG")
    return {name: picture.getvalue() for name in card.needs if MEDIA[name].kind == "image"}


async def canary(
    triton: Generator, files: Storage, run: run_directories.Run, known: Job | None, card: ModelCard
) -> None:
    """Make the video of `known` again; GenerationFailed and its kin when it cannot be made or differs."""
    request, media = asdict(card.request(prompt=PROMPT, seed=0, steps=CANARY_STEPS)), shades(card)
    if known is not None:
        try:
            media = await asyncio.to_thread(read_all, files, known.request.get("media", {}))
            request = known.request
        except InputLost:
            known = None
    run.create()
    try:
        frames, info = await triton.generate(run.path.name, request, False, media)
    finally:
        run.remove()
    check_frames(frames)
    if (
        known is None
        or known.info is None
        or any(known.info.get(name) != info.get(name) for name in ("engine", "device"))
    ):
        return
    if digest(frames) != known.info["frames_sha256"]:
        raise GenerationFailed(f"the frames of {known.id} came out differently", "wrong_frames")
