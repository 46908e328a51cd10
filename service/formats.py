"""Containers and codecs that a video can be had in, once: what the worker encodes and the gateway serves."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """`codec`: arguments of ffmpeg; `crf`: quality where the caller says none; `worst`: the largest number allowed."""

    name: str
    suffix: str
    media_type: str
    codec: tuple[str, ...]
    crf: int | None = None
    worst: int = 0
    container: tuple[str, ...] = ()


H264 = Format(
    "mp4", "mp4", "video/mp4", ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "medium"), 18, 51,
    ("-movflags", "+faststart+use_metadata_tags"),
)  # fmt: skip
VP9 = Format(
    "webm", "webm", "video/webm",
    ("-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p", "-b:v", "0", "-row-mt", "1", "-deadline", "good", "-cpu-used", "2"),
    24, 63,
)  # fmt: skip
GIF = Format(
    "gif", "gif", "image/gif",
    ("-vf", "split[a][b];[a]palettegen[p];[b][p]paletteuse=dither=bayer:bayer_scale=4", "-loop", "0"),
)  # fmt: skip
WEBP = Format("webp", "webp", "image/webp", ("-c:v", "libwebp_anim", "-quality", "85", "-loop", "0", "-f", "webp"))
FORMATS = (H264, VP9, GIF, WEBP)
BY_NAME = {made.name: made for made in FORMATS}
BY_SUFFIX = {made.suffix: made for made in FORMATS}
