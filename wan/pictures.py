"""Given pictures in the size of a video, and in the form that CLIP takes.

One way for every caller: a picture covers the frame and what overhangs is cut off on both sides, so nothing is distorted; the
references stretch it. CLIP sees the same frame, stretched to its square as in the official code, with antialiasing.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wan import clip
from wan.errors import InvalidRequest

Picture = Image.Image | np.ndarray  # or uint8 [H, W, 3]
Clip = Sequence[Picture] | np.ndarray  # or uint8 [T, H, W, 3]


def _image(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise InvalidRequest("picture", f"{picture.dtype} {list(picture.shape)}", "uint8 [H, W, 3]")
    return Image.fromarray(picture)


def fit(picture: Picture, width: int, height: int) -> np.ndarray:
    """The picture covering a frame of this size, uint8 [H, W, 3]; as it is if it has the size."""
    image = _image(picture)
    if image.size == (width, height):
        return np.asarray(image)
    scale = max(width / image.width, height / image.height)
    w, h = width / scale, height / scale  # of the part that is seen
    left, top = (image.width - w) / 2, (image.height - h) / 2
    box = max(left, 0.0), max(top, 0.0), min(left + w, image.width), min(top + h, image.height)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box))


def clip_pixels(frame: np.ndarray, side: int) -> Tensor:
    """A frame uint8 [H, W, 3] as CLIP takes it, float32 [3, side, side]."""
    square = np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC))
    pixels = torch.from_numpy(square.astype(np.float32)) / 255
    return ((pixels - torch.tensor(clip.MEAN)) / torch.tensor(clip.STD)).permute(2, 0, 1)


def to_signed(frames: np.ndarray) -> Tensor:
    """Frames uint8 [T, H, W, 3] to float32 [1, 3, T, H, W] in [-1, 1]."""
    return torch.from_numpy(frames.astype(np.float32)).div(127.5).sub(1).permute(3, 0, 1, 2)[None]
