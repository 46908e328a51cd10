"""The image encoder stage: CLIP's tokens of the pictures that the model looks at."""

import time

import numpy as np

from stages.artifacts import Artifacts
from stages.device import NotFinite
from stages.limits import Limits
from stages.media import GivenMedia, video_size
from stages.metrics import StageMetrics
from stages.runtimes import open_clip
from stages.settings import StageSettings
from wan import known_frames
from wan.pictures import clip_pixels


class ImageEncoderStage:
    """Knows from the manifest how many pictures the model looks at, and in which size."""

    def __init__(self, artifacts: Artifacts, settings: StageSettings, metrics: StageMetrics):
        self._card, self._settings, self._metrics = artifacts.card, settings, metrics
        self._limits, self._clip = Limits.of(artifacts, settings), artifacts.manifest["clip"]
        self._runtime = open_clip(artifacts, settings)
        self._tokens(np.zeros((8, 8, 3), np.uint8))

    def handle(self, request) -> dict[str, np.ndarray]:
        size = video_size(request, self._card)
        self._limits.check_video(*size)
        known = GivenMedia.of(request, self._card, self._settings.max_media_bytes).known(size)
        began = time.monotonic()
        tokens = [self._tokens(frame) for frame in known_frames.seen_by_clip(known, self._clip["pictures"])]
        # as Fun-InP without a picture
        found = np.concatenate(tokens or [np.zeros((self._clip["tokens"], self._clip["dim"]), np.float32)])
        if not np.isfinite(found).all():
            raise NotFinite("the picture's tokens are NaN or infinite")
        self._metrics.finished(time.monotonic() - began)
        return {"IMAGE_TOKENS": found}

    def _tokens(self, frame: np.ndarray) -> np.ndarray:
        return self._runtime.tokens(clip_pixels(frame, self._clip["image_size"])[None].numpy())
