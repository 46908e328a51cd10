"""MP4 files from frames: H.264, yuv420p, index at the front, through the ffmpeg of imageio-ffmpeg."""

import os
from pathlib import Path

import imageio_ffmpeg
import numpy as np

QUALITY = "18"  # x264 constant rate factor; visually lossless


def encode(frames: np.ndarray, fps: int, target: Path) -> None:
    """Write uint8 frames [T, H, W, 3] (even height and width) as a video that browsers play while it loads.

    Frames go to ffmpeg one by one; the file appears under its name only when complete. OSError when ffmpeg fails.
    """
    _, height, width, channels = frames.shape
    if frames.dtype != np.uint8 or channels != 3 or height % 2 or width % 2:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; allowed: uint8 [T, even, even, 3]")
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp.mp4")
    writer = imageio_ffmpeg.write_frames(
        str(temporary),
        (width, height),
        pix_fmt_in="rgb24",
        pix_fmt_out="yuv420p",
        fps=fps,
        codec="libx264",
        quality=None,
        macro_block_size=2,
        output_params=["-crf", QUALITY, "-preset", "medium", "-movflags", "+faststart"],
    )
    try:
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
        if not temporary.exists() or temporary.stat().st_size == 0:
            raise OSError("ffmpeg wrote no video")
        os.replace(temporary, target)
    finally:
        writer.close()
        temporary.unlink(missing_ok=True)
