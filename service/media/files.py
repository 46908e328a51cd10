"""Pictures and clips as they are kept: a PNG, or H.264 in MP4; whatever was sent, made so by a process with limits."""

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg

from service.errors import InvalidRequest
from service.media.process import TookTooMuch, run
from service.media.read_picture import SHORTEST_SIDE, STEEPEST
from service.media.sent import Upload

READER = Path(__file__).with_name("read_picture.py")
LONGEST_SIDE = 4096  # pixels; twice what a video may have
CLIP_SIDE = 2048
PICTURE_SECONDS, CLIP_SECONDS = 30.0, 180.0
CLIP_MEGABYTES = 3072  # address space, of which threads take most
DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
DECODERS = "h264,hevc,vp8,vp9,libvpx,libvpx-vp9,av1,libdav1d,mpeg4,mjpeg,prores"
CLIP = "an MP4, MOV or WebM clip"
CUT = "File ended prematurely"  # ffmpeg's words for a WebM that lacks its end, of which it reads what is there
SIZE = re.compile(r"Output #0.*?Video: .*?\b(\d{1,5})x(\d{1,5})\b", re.DOTALL)


@dataclass(frozen=True)
class Kept:
    """A file as it is stored. `type`: its media type; sizes in pixels."""

    path: Path
    type: str
    width: int
    height: int

    @property
    def sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def picture(field: str, upload: Upload, target: Path, most_pixels: int) -> Kept:
    """The picture as PNG; InvalidRequest names `field` and what is wrong with the file."""
    command = [sys.executable, "-I", str(READER), str(target), str(most_pixels), str(LONGEST_SIDE)]
    megabytes = 640 + most_pixels * 12 // 2**20  # 4 bytes a pixel, and copies of it while modes are converted
    done = _within_limits(field, command, upload, megabytes, PICTURE_SECONDS)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise InvalidRequest(field, "a file that could not be read", "a PNG, JPEG or WebP picture") from None
    if "value" in answer:
        raise InvalidRequest(field, _Words(answer["value"]), answer["allowed"])
    return Kept(target, "image/png", answer["width"], answer["height"])


def clip(field: str, upload: Upload, target: Path, most_pixels: int, most_seconds: float, most_frames: int) -> Kept:
    """The clip's pictures as H.264, upright, without sound; InvalidRequest names `field` and what is wrong."""
    command = _ffmpeg(target, most_pixels, most_seconds, most_frames)
    done = _within_limits(field, command, upload, CLIP_MEGABYTES, CLIP_SECONDS)
    said = done.stderr.decode(errors="replace")
    frames, seconds = _progress(done.stdout.decode(errors="replace"))
    seconds = max(seconds, _declared_seconds(said))
    if frames > most_frames:
        raise InvalidRequest(
            field, _Words(f"a clip of more than {most_frames} frames"), f"at most {most_frames} frames"
        )
    if seconds > most_seconds:
        raise InvalidRequest(field, _Words(f"a clip of more than {most_seconds:g} s"), f"at most {most_seconds:g} s")
    size = SIZE.search(said)
    if done.returncode != 0 or frames == 0 or size is None or CUT in said:
        reason = (
            "a clip without frames"
            if frames == 0 and done.returncode == 0
            else "a file of another kind, or a broken one"
        )
        if "max_pixels" in said or "Picture size" in said:
            reason = "a clip of too many pixels"
        raise InvalidRequest(field, _Words(reason), f"{CLIP}, complete, of at most {most_pixels} pixels a frame")
    width, height = int(size[1]), int(size[2])
    if min(width, height) < SHORTEST_SIDE or max(width, height) > STEEPEST * min(width, height):
        allowed = f"sides of at least {SHORTEST_SIDE} pixels, the long one at most {STEEPEST} times the short one"
        raise InvalidRequest(field, _Words(f"a clip of {width}x{height} pixels"), allowed)
    return Kept(target, "video/mp4", width, height)


def _ffmpeg(target: Path, most_pixels: int, most_seconds: float, most_frames: int) -> list[str]:
    whole = f"scale=w='max(2,trunc(iw*sar*min(1,{CLIP_SIDE}/max(iw*sar,ih))/2)*2)':"
    scale = whole + f"h='max(2,trunc(ih*min(1,{CLIP_SIDE}/max(iw*sar,ih))/2)*2)',setsar=1"
    # Only the file itself may be read: containers such as playlists name further files and addresses.
    guards = ["-protocol_whitelist", "file,fd,pipe", "-format_whitelist", DEMUXERS, "-codec_whitelist", DECODERS,
              "-max_pixels", str(most_pixels), "-max_streams", "32", "-threads", "2"]  # fmt: skip
    wanted = ["-map", "0:v:0", "-an", "-sn", "-dn", "-map_metadata", "-1", "-t", f"{most_seconds + 1:g}",
              "-frames:v", str(most_frames + 1), "-fps_mode", "passthrough", "-vf", scale]  # fmt: skip
    codec = ["-c:v", "libx264", "-crf", "10", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-threads", "2"]
    return [
        imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-xerror", "-y", *guards, "-i", "/dev/stdin", *wanted, *codec,
        "-movflags", "+faststart", "-progress", "pipe:1", "-nostats", str(target),
    ]  # fmt: skip


def _progress(text: str) -> tuple[int, float]:
    """(frames, seconds) of the last report."""
    frames = re.findall(r"^frame=\s*(\d+)", text, re.MULTILINE) or ["0"]
    micros = re.findall(r"^out_time_us=\s*(\d+)", text, re.MULTILINE) or ["0"]
    return int(frames[-1]), int(micros[-1]) / 1e6


def _declared_seconds(said: str) -> float:
    """What the container says of its length; 0 where it says nothing."""
    found = re.search(r"Duration: (\d+):(\d+):(\d+\.?\d*)", said)
    return sum(float(part) * unit for part, unit in zip(found.groups(), (3600, 60, 1))) if found else 0.0


def _within_limits(
    field: str, command: list[str], upload: Upload, megabytes: int, seconds: float
) -> subprocess.CompletedProcess:
    try:
        return run(command, upload.file, megabytes, seconds)
    except TookTooMuch as error:
        raise InvalidRequest(field, _Words(f"a file that takes too much ({error})"), "a smaller one") from None


class _Words(str):
    """Text that an error shows as it is, without quotes."""

    def __repr__(self) -> str:
        return str(self)
