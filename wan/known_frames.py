"""Frames of a video that are known before it is made, and what a model that takes such frames is given of them.

The first frame (image to video), first and last, the end of another clip (continuation): each is a set of positions with
pictures. Unknown frames are grey.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from contract.geometry import Geometry
from wan.errors import InvalidRequest
from wan.pictures import Clip, Picture, fit, to_signed

Known = Mapping[int, np.ndarray]  # position -> uint8 [H, W, 3]
Encode = Callable[[Iterable[Tensor]], Iterator[Tensor]]  # chunks of frames -> their latents [1, z, 1, h, w]


def continued(geometry: Geometry) -> int:
    """How many frames at the end of a clip its continuation begins with: two latent frames' worth."""
    return geometry.num_frames(2)


def arrange(
    image: Picture | None,
    last_image: Picture | None,
    video: Clip | None,
    size: tuple[int, int, int],
    geometry: Geometry,
) -> dict[int, np.ndarray]:
    """Known frames of a video of `size` (width, height, frames); of `video` its last frames come first.

    Raises InvalidRequest where two would have the same place.
    """
    width, height, num_frames = size
    if image is not None and video is not None:
        raise InvalidRequest("image", "given beside video", "one of the two: a video continues its own last frames")
    if last_image is not None and num_frames == 1:
        raise InvalidRequest("last_image", "given", "none for a video of one frame")
    start = [image] if image is not None else []
    if video is not None:
        if not len(video):
            raise InvalidRequest("video frames", 0, "at least 1")
        count = min(continued(geometry), geometry.longest(len(video) - 1), num_frames - (last_image is not None))
        start = list(video[-geometry.longest(count - 1) :])
    known = {i: fit(picture, width, height) for i, picture in enumerate(start)}
    if last_image is not None:
        known[num_frames - 1] = fit(last_image, width, height)
    return known


def seen_by_clip(known: Known, pictures: int) -> list[np.ndarray]:
    """The frames whose tokens the model looks at: the first known one, and for two pictures also the last."""
    ordered = [known[i] for i in sorted(known)]
    return ordered[:1] if pictures == 1 else [*ordered[:1], *ordered[-1:]]


def mask(known: Iterable[int], num_frames: int, geometry: Geometry) -> Tensor:
    """1 for each known frame, [stride, T']: the frames of a latent frame below each other, the first one repeated."""
    flags = torch.zeros(num_frames)
    flags[list(known)] = 1
    stride = geometry.temporal_stride
    return torch.cat([flags[:1].expand(stride), flags[1:]]).view(-1, stride).T


def chunks(known: Known, size: tuple[int, int, int], geometry: Geometry) -> Iterator[Tensor]:
    """The video with grey for what is unknown, in the encoder's steps: float32 [1, 3, 1 or stride, H, W] in [-1, 1]."""
    width, height, num_frames = size
    start = 0
    for stop in range(1, num_frames + 1, geometry.temporal_stride):
        chunk = torch.zeros(1, 3, stop - start, height, width)
        for i in set(range(start, stop)) & known.keys():
            chunk[:, :, i - start] = to_signed(known[i][None])[:, :, 0]
        yield chunk
        start = stop


def channels(known: Known, size: tuple[int, int, int], geometry: Geometry, encode: Encode) -> Tensor:
    """Mask and latents of the known frames, float32 [stride + z, T', h, w]; all zeros where none is known.

    The whole video is encoded: the encoder sees further back than any video reaches, so no grey frame is like another.
    """
    width, height, num_frames = size
    z, *space = geometry.latent_shape(width, height, num_frames)
    if not known:
        return torch.zeros(geometry.temporal_stride + z, *space)
    latents = torch.cat([part.float().cpu() for part in encode(chunks(known, size, geometry))], dim=2)[0]
    flags = mask(known, num_frames, geometry)[:, :, None, None]
    return torch.cat([flags.expand(-1, *space), latents])


def first_latents(image: Picture, size: tuple[int, int, int], encode: Encode) -> Tensor:
    """Latents [z, 1, h, w] of a picture, fitted to `size`: those of the first frame of any video that begins with it."""
    width, height, _ = size
    return next(iter(encode([to_signed(fit(image, width, height)[None])])))[0].float().cpu()


def clip_latents(video: Clip, size: tuple[int, int, int], geometry: Geometry, encode: Encode) -> Tensor:
    """Latents [z, T', h, w] of the first frames of a clip, fitted to `size`; InvalidRequest if it has too few."""
    width, height, num_frames = size
    if len(video) < num_frames:
        raise InvalidRequest("video frames", len(video), f"at least num_frames, {num_frames}")
    fitted = _Fitted(video, width, height)
    return torch.cat([part.float().cpu() for part in encode(chunks(fitted, size, geometry))], dim=2)[0]


class _Fitted(Mapping):
    """Frames of a clip that are brought to size when they are read, so that one copy of it is enough."""

    def __init__(self, video: Clip, width: int, height: int):
        self._video, self._size = video, (width, height)

    def __getitem__(self, i: int) -> np.ndarray:
        return fit(self._video[i], *self._size)

    def __iter__(self):
        return iter(range(len(self._video)))

    def __len__(self) -> int:
        return len(self._video)
