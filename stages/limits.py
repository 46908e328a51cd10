"""What a request may ask for beyond its parameters' own bounds; every stage checks it, as each may be called alone."""

from collections.abc import Collection
from dataclasses import dataclass, field

from contract.errors import InvalidRequest
from contract.geometry import Geometry
from contract.parameters import BY_NAME, CACHES, GenerationRequest
from stages.artifacts import Artifacts
from stages.settings import StageSettings
from stages.trt_plans import check_size


@dataclass(frozen=True)
class Limits:
    """Sides, pixels and frames are bounded by the declaration; what one video may take in all is bounded here."""

    video_bytes: int  # of the frames, uint8; latents and activations grow with them
    sizes: dict | None = None  # that the plans were built for; None where every size will do
    caches: Collection[str] = CACHES  # that the checkpoint is calibrated for
    geometry: Geometry = field(default_factory=Geometry)

    @classmethod
    def of(cls, artifacts: Artifacts, settings: StageSettings) -> "Limits":
        manifest = artifacts.manifest
        return cls(
            settings.max_video_bytes, manifest.get("sizes"), manifest.get("caches", CACHES), artifacts.card.geometry
        )

    def check(self, request: GenerationRequest) -> None:
        """Refuse a request that one of the stages could not finish, though each of its parameters is allowed."""
        self.check_video(request.width, request.height, request.num_frames)
        if request.cache_threshold > 0 and request.cache not in self.caches:
            known = ", ".join(self.caches) or "none"
            allowed = f"with CACHE_THRESHOLD above 0: {known}, as calibrated by python -m wan.calibrate"
            raise InvalidRequest("CACHE", request.cache, allowed)

    def check_latents(self, shape: tuple[int, int, int, int]) -> None:
        """Refuse latents [z, T, h, w] of a video that no request may ask for."""
        _, count, height, width = shape
        stride = self.geometry.spatial_stride
        video = {"width": width * stride, "height": height * stride, "num_frames": self.geometry.num_frames(count)}
        try:
            for name, value in video.items():
                BY_NAME[name].rule.check(name, value, self.geometry)
            self.check_video(**video)
        except InvalidRequest as error:
            raise InvalidRequest(
                "LATENTS", list(shape), f"those of a video whose {error.field} is {error.allowed}"
            ) from None

    def check_video(self, width: int, height: int, num_frames: int) -> None:
        size = 3 * width * height * num_frames
        if size > self.video_bytes:
            shape = f"{width}x{height}x{num_frames} = {size / 1e6:.0f} MB of frames"
            allowed = f"at most {self.video_bytes / 1e6:.0f} MB (WAN_MAX_VIDEO_BYTES)"
            raise InvalidRequest("WIDTH x HEIGHT x NUM_FRAMES", shape, allowed)
        check_size(width, height, self.sizes)
