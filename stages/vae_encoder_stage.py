"""The VAE encoder stage: pictures, or the frames of a clip, to what the denoise stage is given of them."""

import time

import numpy as np
import torch

from stages.artifacts import Artifacts
from stages.device import NotFinite
from stages.limits import Limits
from stages.media import GivenMedia, Size, video_size
from stages.metrics import StageMetrics
from stages.runtimes import open_vae_encoder
from stages.settings import StageSettings
from stages.vae_runtime import encode
from wan import known_frames


class VaeEncoderStage:
    """Memory beyond the media and the output does not depend on the length of the video."""

    def __init__(self, artifacts: Artifacts, settings: StageSettings, metrics: StageMetrics):
        self._card, self._settings, self._metrics = artifacts.card, settings, metrics
        self._limits = Limits.of(artifacts, settings)
        self._runtime = open_vae_encoder(artifacts, settings)
        defaults, geometry = self._card.defaults, self._card.geometry
        grey = known_frames.chunks({}, (defaults.width, defaults.height, geometry.num_frames(2)), geometry)
        list(encode(self._runtime, grey))

    def handle(self, request) -> dict[str, np.ndarray]:
        size = video_size(request, self._card)
        self._limits.check_video(*size)
        given = GivenMedia.of(request, self._card, self._settings.max_media_bytes)
        began = time.monotonic()
        condition = self._condition(given, size)
        if not torch.isfinite(condition).all():
            raise NotFinite("the latents are NaN or infinite")
        self._metrics.finished(time.monotonic() - began)
        return {"CONDITION": condition.numpy()}

    def _condition(self, given: GivenMedia, size: Size) -> torch.Tensor:
        """Mask and latents of the known frames; of another model the latents of the clip that is changed or of the picture
        that it begins with, next to nothing without them."""
        geometry = self._card.geometry

        def run(chunks):
            return encode(self._runtime, chunks)

        if self._card.continues:
            return known_frames.channels(given.known(size), size, geometry, run)
        if "image" in given.names:
            return known_frames.first_latents(given.picture("image"), size, run)
        if "video" not in given.names:
            return torch.zeros(1, 1, 1, 1)
        return known_frames.clip_latents(given.clip(size), size, geometry, run)
