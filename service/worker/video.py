"""MP4 files from frames: H.264, yuv420p, index at the front, through the ffmpeg that imageio-ffmpeg brings."""

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np

QUALITY = "18"  # x264 constant rate factor; visually lossless


def encode(frames: np.ndarray, fps: int, target: Path) -> None:
    """Write uint8 frames [T, H, W, 3] (even height and width) as a video that browsers play while it loads.

    The file appears under its name only when complete. OSError with ffmpeg's own words when that fails.
    """
    _, height, width, channels = frames.shape
    if frames.dtype != np.uint8 or channels != 3 or height % 2 or width % 2:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; allowed: uint8 [T, even, even, 3]")
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp.mp4")
    try:
        _run(_command(width, height, fps, temporary), frames)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _command(width: int, height: int, fps: int, target: Path) -> list[str]:
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    codec = ["-an", "-vcodec", "libx264", "-pix_fmt", "yuv420p", "-crf", QUALITY, "-preset", "medium"]
    executable = imageio_ffmpeg.get_ffmpeg_exe()
    return [executable, "-v", "error", "-y", *source, *codec, "-movflags", "+faststart", str(target)]


def _run(command: list[str], frames: np.ndarray) -> None:
    # Not imageio-ffmpeg's own writer: it does not look at ffmpeg's status, so a full disk would leave half a video.
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said)
        assert process.stdin is not None  # a pipe was asked for
        with contextlib.suppress(BrokenPipeError), process, process.stdin:  # a broken pipe: ffmpeg says why
            process.stdin.write(np.ascontiguousarray(frames).data)
        if process.returncode != 0:
            said.seek(0)
            words = said.read().decode(errors="replace").strip().splitlines()
            raise OSError(f"ffmpeg ended with status {process.returncode}: {'; '.join(words[-3:])[:300]}")
