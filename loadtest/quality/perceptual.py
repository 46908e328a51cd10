"""VMAF, MS-SSIM and XPSNR by the ffmpeg that imageio-ffmpeg brings. What that ffmpeg lacks is left out and named.

VMAF and MS-SSIM look at the luma alone and need at least 176 pixels a side, five scales of an 11-pixel window: smaller frames are
enlarged first, each pixel to a square. VMAF is 97 to 100 for equal videos (it lowers still ones), as the control row shows.
XPSNR weighs errors by what the eye sees of them, luma six times as much as each chroma plane.
"""

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import numpy as np

from service import ffmpeg

LEAST_SIDE = 176
IDENTICAL_DB = 99.0  # in place of infinity, which JSON does not have
FILTERS = {"vmaf": "libvmaf", "ms_ssim": "libvmaf", "xpsnr": "xpsnr"}  # figure -> the filter that it needs
XPSNR_LINE = re.compile(r"XPSNR y: (\S+)\s+XPSNR u: (\S+)\s+XPSNR v: (\S+)")
# Both videos become planar; what follows compares them.
BOTH = "[0:v]{format}[made];[1:v]{format}[reference];[made][reference]{filter}"


@functools.cache
def available() -> frozenset[str]:
    """Names of the filters of this ffmpeg."""
    lines = ffmpeg.run(["-hide_banner", "-filters"]).decode().splitlines()
    return frozenset(words[1] for line in lines if len(words := line.split()) > 2)


def lacking() -> dict[str, str]:
    """Figure -> the filter for want of which it is not measured."""
    return {figure: name for figure, name in FILTERS.items() if name not in available()}


@dataclass(frozen=True)
class Scores:
    """Means over the frames; None where this ffmpeg cannot tell. XPSNR in dB."""

    vmaf: float | None = None
    ms_ssim: float | None = None
    xpsnr: float | None = None


def compare(reference: np.ndarray, made: np.ndarray) -> Scores:
    """Scores of `made` against `reference`, both uint8 [T, H, W, 3]."""
    if reference.shape != made.shape:
        raise ValueError(
            f"made has the shape {list(made.shape)}; allowed: that of the reference, {list(reference.shape)}"
        )
    missing, found = lacking(), dict[str, float]()
    with TemporaryDirectory(prefix="wan-quality-") as folder:
        inputs: list[str] = []
        for name, frames in (("made", made), ("reference", reference)):
            path = Path(folder) / f"{name}.rgb"
            path.write_bytes(np.ascontiguousarray(frames).tobytes())
            size = f"{frames.shape[2]}x{frames.shape[1]}"
            inputs += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", "16", "-i", str(path)]

        def run(chain: str, filter_text: str) -> str:
            graph = BOTH.format(format=chain, filter=filter_text)
            return ffmpeg.run([*inputs, "-lavfi", graph, "-f", "null", "-"]).decode()

        if "vmaf" not in missing:
            found |= _vmaf(run, min(reference.shape[1:3]))
        if "xpsnr" not in missing:
            found["xpsnr"] = _xpsnr(run("format=yuv444p", "xpsnr=stats_file=-"))
    return Scores(**found)


def _vmaf(run: Callable[[str, str], str], side: int) -> dict[str, float]:
    times = -(-LEAST_SIDE // side)
    chain = f"scale=iw*{times}:ih*{times}:flags=neighbor,format=yuv444p"
    told = run(chain, "libvmaf=feature=name=float_ms_ssim:log_fmt=json:log_path=/dev/stdout")
    pooled = json.loads(told)["pooled_metrics"]
    return {"vmaf": pooled["vmaf"]["mean"], "ms_ssim": pooled["float_ms_ssim"]["mean"]}


def _xpsnr(told: str) -> float:
    """Mean over the frames' lines; a plane without any error counts as 99 dB."""
    frames = [[min(float(plane), IDENTICAL_DB) for plane in planes] for planes in XPSNR_LINE.findall(told)]
    return mean((6 * y + u + v) / 8 for y, u, v in frames)
