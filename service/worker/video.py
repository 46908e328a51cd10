"""Video files from frames, in one of `service.formats`, with a note of what made them."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from contract.parameters import PARAMETERS
from service import ffmpeg
from service.formats import H264, Format

PROMPTS = ("prompt", "negative_prompt")


def encode(
    frames: np.ndarray, fps: int, target: Path, made: Format = H264, crf: int | None = None, note: str = ""
) -> None:
    """Write uint8 frames [T, H, W, 3] (even height and width) as a video that browsers play while it loads.

    `note` becomes the comment among the metadata, where the container has any. The file appears under its name only when
    complete. OSError with ffmpeg's own words when that fails.
    """
    _, height, width, channels = frames.shape
    if frames.dtype != np.uint8 or channels != 3 or height % 2 or width % 2:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; allowed: uint8 [T, even, even, 3]")
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp.{made.suffix}")
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    quality = crf if crf is not None else made.crf
    options = [*made.codec, *(["-crf", str(quality)] if quality is not None else []), *made.container]
    said = ["-metadata", f"comment={note}"] if note else []
    try:
        ffmpeg.run([*source, "-an", *options, *said, str(temporary)], np.ascontiguousarray(frames).data)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def note(request: dict, model: str) -> str:
    """JSON of what makes the same video again; of the prompts only a digest, unless the request wants them told."""
    told = {p.name: request[p.name] for p in PARAMETERS if p.name in request and p.name not in PROMPTS}
    prompts = {name: request[name] for name in PROMPTS if name in request}
    if request.get("embed_prompt"):
        told |= prompts
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in prompts.items()}
    file = {name: request[name] for name in ("output_format", "crf", "embed_prompt") if name in request}
    note = {"wan": 1, "model": model, "request": told, "sha256": digests, "file": file}
    if media := request.get("media"):
        note["media"] = list(media)
    return json.dumps(note, ensure_ascii=False)
