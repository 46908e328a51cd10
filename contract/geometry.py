"""How pixels become latents and tokens: strides and patch of the loaded variant, and the sizes that follow from them."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """Strides of the VAE, spatial patch of the DiT and channels of the latents; the defaults are those of Wan 2.1.

    The first frame is a latent frame of its own; every further one stands for `temporal_stride` frames.
    """

    latent_channels: int = 16
    temporal_stride: int = 4
    spatial_stride: int = 8
    patch: int = 2

    @property
    def multiple(self) -> int:
        """Of which width and height are multiples, in pixels."""
        return self.spatial_stride * self.patch

    def latent_frames(self, num_frames: int) -> int:
        return 1 + (num_frames - 1) // self.temporal_stride

    def num_frames(self, latent_frames: int) -> int:
        """Frames of a video of so many latent frames."""
        return 1 + (latent_frames - 1) * self.temporal_stride

    def longest(self, frames: float) -> int:
        """The longest allowed clip that is not longer than `frames`, at least one frame."""
        return self.num_frames(1 + max(0, int(frames / self.temporal_stride)))

    def latent_shape(self, width: int, height: int, num_frames: int) -> tuple[int, int, int, int]:
        """Shape [C, T', h, w] of the latents of a video in pixels."""
        frames = self.latent_frames(num_frames)
        return self.latent_channels, frames, height // self.spatial_stride, width // self.spatial_stride

    def tokens(self, width: int, height: int, num_frames: int) -> int:
        """Length of the DiT's sequence."""
        return self.latent_frames(num_frames) * (height // self.multiple) * (width // self.multiple)

    def nearest_side(self, pixels: float) -> int:
        """The allowed width or height next to `pixels`."""
        return max(1, round(pixels / self.multiple)) * self.multiple

    def size_like(self, width: int, height: int, area: int, longest: int) -> tuple[int, int]:
        """Width and height of about `area` pixels with the aspect ratio of a picture, none above `longest`.

        The root is rounded before it is cut to a multiple: that of 480 * 832 * 480 / 832 is a little less than 480.
        """
        sides = (round(math.sqrt(area * width / height)), round(math.sqrt(area * height / width)))
        most = longest // self.multiple
        wide, high = (max(1, min(side // self.multiple, most)) * self.multiple for side in sides)
        return wide, high

    def nearest_frames(self, frames: float) -> int:
        """The allowed number of frames next to `frames`."""
        return self.num_frames(1 + max(0, round((frames - 1) / self.temporal_stride)))
