"""Pictures and clips of a request: found, decoded within bounds, known by their hashes.

What arrives is whatever a caller sent: only a few formats are opened, their size is looked at before a pixel is decoded, and
what cannot be read is an error that names the input.
"""

import hashlib
import io
import re
import subprocess
import tempfile
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageOps

from contract.card import ModelCard
from contract.errors import InvalidRequest
from contract.media import MEDIA
from contract.parameters import BY_NAME
from stages.inputs import array, find
from wan import known_frames

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 50_000_000  # of a picture or a frame
LONGEST_TO_SHORTEST = 100
MAX_FRAMES = 3600  # of a clip that is read to its end
CLIP_SECONDS = 120  # of ffmpeg's work on one clip
CONTAINERS = {
    "mov,mp4,m4a,3gp,3g2,mj2": re.compile(rb".{4}ftyp", re.DOTALL),
    "matroska,webm": re.compile(rb"\x1aE\xdf\xa3"),
}
FRAMES = "VIDEO_FRAMES"  # the frames of a clip as they are, for callers of Triton
HASH = re.compile(r"[0-9a-f]{64}")
Size = tuple[int, int, int]  # width, height, frames


def picture(name: str, data: bytes) -> Image.Image:
    """An encoded picture as RGB, turned as its EXIF says, over white where it is transparent; InvalidRequest otherwise."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_picture(name, image)
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except InvalidRequest:
        raise
    except Exception as error:  # Pillow's decoders raise whatever comes
        words = str(error).partition("<_io")[0].strip()
        allowed = f"a whole {', '.join(FORMATS)} file ({type(error).__name__}: {words})"
        raise InvalidRequest(name, f"{len(data)} bytes", allowed) from None


def _check_picture(name: str, image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > LONGEST_TO_SHORTEST * min(width, height):
        allowed = f"at most {MAX_PIXELS} pixels, the longer side at most {LONGEST_TO_SHORTEST} times the shorter"
        raise InvalidRequest(name, f"{width}x{height}", allowed)
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise InvalidRequest(name, f"{frames} frames", "a still picture")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def clip_container(name: str, data: bytes) -> str:
    """ffmpeg's name of the container; InvalidRequest for any other file."""
    for container, begins in CONTAINERS.items():
        if begins.match(data):
            return container
    raise InvalidRequest(name, f"{len(data)} bytes", "an MP4 or WebM file")


def clip_frames(name: str, data: bytes, size: Size, last: int | None = None) -> np.ndarray:
    """The first frames of a clip, as many as `size` has, or its `last` ones: uint8 [n, H, W, 3], covering the frame.

    Raises InvalidRequest for a file that cannot be read in bounded time and memory.
    """
    width, height, count = size
    limit = count if last is None else MAX_FRAMES + 1
    covering = (
        f"scale={width}:{height}:force_original_aspect_ratio=increase:flags=lanczos,crop={width}:{height},setsar=1"
    )
    with tempfile.NamedTemporaryFile(prefix="wan-clip-") as file:
        file.write(data)
        file.flush()
        source = ["-protocol_whitelist", "file", "-max_pixels", str(MAX_PIXELS), "-f", clip_container(name, data)]
        made = ["-an", "-sn", "-dn", "-vf", covering, "-frames:v", str(limit), "-fps_mode", "passthrough"]
        command = [
            imageio_ffmpeg.get_ffmpeg_exe(),
            "-nostdin",
            "-v",
            "error",
            "-xerror",
            *source,
            "-i",
            file.name,
            *made,
        ]
        frames, seen = _read([*command, "-pix_fmt", "rgb24", "-f", "rawvideo", "-"], (height, width, 3), last)
    if not frames:
        raise InvalidRequest(
            name, f"{len(data)} bytes", "an MP4 or WebM file with at least one frame that can be decoded"
        )
    if last is not None and seen > MAX_FRAMES:
        raise InvalidRequest(name, f"more than {MAX_FRAMES} frames", f"at most {MAX_FRAMES}")
    return np.stack(frames)


def _read(command: list[str], shape: tuple[int, int, int], last: int | None) -> tuple[deque[np.ndarray], int]:
    """Frames from ffmpeg's output, of them the `last` ones, and how many there were."""
    frames: deque[np.ndarray] = deque(maxlen=last)
    seen, length = 0, int(np.prod(shape))
    timed = ["timeout", str(CLIP_SECONDS), *command]
    with subprocess.Popen(timed, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        output: Any = process.stdout  # there is one, as a pipe was asked for
        while len(frame := output.read(length)) == length:
            frames.append(np.frombuffer(frame, np.uint8).reshape(shape))
            seen += 1
    return frames, seen


@dataclass(frozen=True)
class GivenMedia:
    """The media of one request: encoded files by name, or the frames of a clip; `hashes` say which they are."""

    files: Mapping[str, bytes]
    frames: np.ndarray | None
    card: ModelCard

    @classmethod
    def of(cls, request, card: ModelCard, max_bytes: int) -> "GivenMedia":
        """Read the tensors that this checkpoint takes; raises InvalidRequest for what it lacks, or cannot have."""
        files = {m.name: _file(request, m.tensor_name, max_bytes) for m in MEDIA if _has(request, m.tensor_name)}
        frames = array(request, FRAMES, "UINT8", (-1, -1, -1, 3)) if _has(request, FRAMES) else None
        if frames is not None and ("video" in files or frames.nbytes > max_bytes):
            raise InvalidRequest(FRAMES, f"{frames.nbytes} bytes", f"at most {max_bytes}, and not beside VIDEO")
        given = cls(files, frames, card)
        try:
            card.check_media(given.names)
        except InvalidRequest as error:
            raise InvalidRequest(error.field.upper(), error.value, error.allowed) from None
        return given

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.files, *(("video",) if self.frames is not None else ()))

    @property
    def hashes(self) -> dict[str, str]:
        found = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        if self.frames is not None:
            digest = hashlib.sha256(repr(self.frames.shape).encode())
            digest.update(np.ascontiguousarray(self.frames).data)
            found["video"] = digest.hexdigest()
        return found

    def check(self) -> None:
        """What can be said of the files before anything runs: pictures are decoded, of a clip its kind is looked at."""
        for name, data in self.files.items():
            clip_container("VIDEO", data) if name == "video" else picture(name.upper(), data)

    def clip(self, size: Size) -> np.ndarray:
        """The frames of the clip that are used: the first ones, or those at the end from which it goes on."""
        if self.frames is not None:
            return self.frames
        last = known_frames.continued(self.card.geometry) if self.card.continues else None
        return clip_frames("VIDEO", self.files["video"], size, last)

    def picture(self, name: str) -> Image.Image:
        return picture(name.upper(), self.files[name])

    def known(self, size: Size) -> dict[int, np.ndarray]:
        """The known frames of a video of `size`; see `wan.known_frames`."""
        given = {name: self.picture(name) for name in ("image", "last_image") if name in self.files}
        video = self.clip(size) if "video" in self.names else None
        return known_frames.arrange(given.get("image"), given.get("last_image"), video, size, self.card.geometry)


def _has(request, name: str) -> bool:
    return any(tensor.name() == name for tensor in request.inputs())


def _file(request, name: str, max_bytes: int) -> bytes:
    value = find(request, name)
    if value is None or value.shape != (1,) or value.dtype != np.object_ or not isinstance(value[0], bytes):
        raise InvalidRequest(
            name, None if value is None else f"{value.dtype} {list(value.shape)}", "one file, shape [1]"
        )
    if not 0 < len(value[0]) <= max_bytes:
        raise InvalidRequest(name, f"{len(value[0])} bytes", f"1 to {max_bytes} bytes (WAN_MAX_MEDIA_BYTES)")
    return value[0]


def video_size(request, card: ModelCard) -> Size:
    """SIZE of a request: width, height and frames that the model can make."""
    width, height, frames = (int(v) for v in array(request, "SIZE", "INT32", (3,)))
    for name, value in {"width": width, "height": height, "num_frames": frames}.items():
        BY_NAME[name].rule.check(name, value, card.geometry)
    return width, height, frames


def checked_hashes(values, card: ModelCard) -> dict[str, str]:
    """The hashes in a REQUEST; raises ValueError for anything else."""
    if not isinstance(values, dict) or not set(values) <= set(card.takes):
        raise ValueError("media")
    if not all(isinstance(digest, str) and HASH.fullmatch(digest) for digest in values.values()):
        raise ValueError("media")
    return values
