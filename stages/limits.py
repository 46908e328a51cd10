"""What a request may ask for, declared once; every stage checks it, as each may be called without the others."""

from collections.abc import Collection
from dataclasses import dataclass

from stages.plans import check_size
from stages.settings import StageSettings
from wan.errors import InvalidRequest
from wan.request import CACHES, LIMITS, GenerationRequest


@dataclass(frozen=True)
class Limits:
    """Sides, pixels and frames are bounded by `wan.request.LIMITS`; what one video may take in all is bounded here."""

    video_bytes: int  # of the frames, uint8; latents and activations grow with them
    sizes: dict | None = None  # that the plans were built for; None where every size will do
    caches: Collection[str] = CACHES  # that the checkpoint is calibrated for
    spatial_stride: int = 8
    temporal_stride: int = 4

    @classmethod
    def of(cls, manifest: dict, settings: StageSettings) -> "Limits":
        vae = manifest["vae"]
        return cls(
            settings.max_video_bytes,
            manifest.get("sizes"),
            manifest.get("caches", CACHES),
            vae["spatial_stride"],
            vae["temporal_stride"],
        )

    def check(self, request: GenerationRequest) -> None:
        """Refuse a request that one of the stages could not finish, though each of its parameters is allowed."""
        self._check_video(request.width, request.height, request.num_frames)
        if request.cache_threshold > 0 and request.cache not in self.caches:
            known = ", ".join(self.caches) or "none"
            allowed = f"with CACHE_THRESHOLD above 0: {known}, as calibrated by python -m wan.calibrate"
            raise InvalidRequest("CACHE", request.cache, allowed)

    def check_latents(self, shape: tuple[int, int, int, int]) -> None:
        """Refuse latents [z, T, h, w] of a video that no request may ask for."""
        _, count, height, width = shape
        sides = {"width": width * self.spatial_stride, "height": height * self.spatial_stride}
        video = {**sides, "num_frames": 1 + (count - 1) * self.temporal_stride}
        try:
            for name, value in video.items():
                LIMITS[name].check(name, value)
            self._check_video(**video)
        except InvalidRequest as error:
            raise InvalidRequest(
                "LATENTS", list(shape), f"those of a video whose {error.field} is {error.allowed}"
            ) from None

    def _check_video(self, width: int, height: int, num_frames: int) -> None:
        size = 3 * width * height * num_frames
        if size > self.video_bytes:
            shape = f"{width}x{height}x{num_frames} = {size / 1e6:.0f} MB of frames"
            allowed = f"at most {self.video_bytes / 1e6:.0f} MB (WAN_MAX_VIDEO_BYTES)"
            raise InvalidRequest("WIDTH x HEIGHT x NUM_FRAMES", shape, allowed)
        check_size(width, height, self.sizes)
