"""A small animated preview of latents, without the VAE: each latent channel adds its share to red, green and blue.

The shares are fitted by the export (least squares against the checkpoint's own VAE) and lie in the manifest.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from stages.artifacts import Artifacts

SIDE = 128  # pixels of the longer side
QUALITY = 60


@dataclass(frozen=True)
class PreviewProjection:
    """`factors` float32 [z, 3] and `bias` [3]: latents to colours in [-1, 1]."""

    factors: np.ndarray
    bias: np.ndarray
    frame_milliseconds: int

    @classmethod
    def of(cls, artifacts: Artifacts) -> "PreviewProjection":
        """One latent frame stands for `temporal_stride` frames of the video."""
        preview, card = artifacts.manifest["preview"], artifacts.card
        milliseconds = round(1000 * card.geometry.temporal_stride / card.defaults.fps)
        return cls(np.asarray(preview["factors"], np.float32), np.asarray(preview["bias"], np.float32), milliseconds)

    def images(self, latents: np.ndarray) -> list[Image.Image]:
        """Latents [z, T, h, w] to T images."""
        colours = np.einsum("zthw,zc->thwc", latents.astype(np.float32), self.factors) + self.bias
        pixels = ((colours + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
        height, width = pixels.shape[1:3]
        scale = SIDE / max(height, width)
        size = max(round(width * scale), 1), max(round(height * scale), 1)
        return [Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC) for frame in pixels]

    def write(self, latents: np.ndarray, path: Path) -> None:
        first, *rest = self.images(latents)
        first.save(
            path,
            format="WEBP",
            save_all=True,
            append_images=rest,
            duration=self.frame_milliseconds,
            loop=0,
            quality=QUALITY,
        )
