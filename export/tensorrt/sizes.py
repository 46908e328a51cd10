"""Video sizes and the optimization profiles that plans get for them."""

import contextlib
import re
from dataclasses import dataclass

from contract.card import ModelCard
from contract.errors import InvalidRequest
from contract.geometry import Geometry
from contract.parameters import BY_NAME
from export.tensorrt.builder import Profile, ShapeRange
from export.tensorrt.vae_cache import CacheSlot
from stages.vae_runtime import cache_input
from wan.config import ClipConfig, VAEConfig
from wan.errors import WanError
from wan.text import TEXT_LENGTH

# 480p and 720p in both orientations, the sizes that Wan 2.1 was trained at.
OFFICIAL = ((832, 480), (480, 832), (1280, 720), (720, 1280))
MAX_PROMPTS = 2  # a prompt and its negative prompt may come in one batch


class SizeError(WanError):
    """A video size or range cannot be built."""


@dataclass(frozen=True)
class Sizes:
    """Video sizes (width, height) in pixels that plans are tuned for, and an optional range around them."""

    fixed: tuple[tuple[int, int], ...]
    range: tuple[tuple[int, int], tuple[int, int]] | None = None

    @property
    def largest(self) -> tuple[int, int]:
        """The size with the most pixels."""
        every = [*self.fixed, *((self.range[1],) if self.range else ())]
        return max(every, key=lambda size: size[0] * size[1])

    def described(self) -> dict:
        """What the manifest says, and what requests are checked against before anything runs."""
        return {
            "fixed": [list(size) for size in self.fixed],
            "range": [list(s) for s in self.range] if self.range else None,
        }


def parse_size(text: str, geometry: Geometry) -> tuple[int, int]:
    """`832x480` -> (832, 480); raises SizeError."""
    rule = BY_NAME["width"].rule
    if match := re.fullmatch(r"(\d+)x(\d+)", text.strip()):
        with contextlib.suppress(InvalidRequest):
            size = int(match[1]), int(match[2])
            for side in size:
                rule.check("size", side, geometry)
            return size
    raise SizeError(f"size is {text!r}; allowed: WIDTHxHEIGHT, each {rule.words(geometry)}")


def parse_sizes(sizes: str | None, size_range: str | None, card: ModelCard) -> Sizes:
    """The sizes of the command line; without any, the checkpoint's default and, for a model of that class, the official ones."""
    own = (card.defaults.width, card.defaults.height)
    if sizes is None:
        both = (own, own[::-1])
        fixed = list(dict.fromkeys(OFFICIAL if own in OFFICIAL else both))
    else:
        fixed = list(dict.fromkeys(parse_size(text, card.geometry) for text in sizes.split(",")))
    if size_range is None:
        return Sizes(tuple(fixed))
    low, separator, high = size_range.partition(":")
    if not separator:
        raise SizeError(f"size range is {size_range!r}; allowed: SMALLEST:LARGEST, as in 256x256:1280x1280")
    limits = parse_size(low, card.geometry), parse_size(high, card.geometry)
    if limits[0][0] > limits[1][0] or limits[0][1] > limits[1][1]:
        raise SizeError(f"size range is {size_range!r}: {low} is not smaller than {high}")
    return Sizes(tuple(fixed), limits)


def text_profiles() -> list[Profile]:
    shape = ShapeRange((1, TEXT_LENGTH), (1, TEXT_LENGTH), (MAX_PROMPTS, TEXT_LENGTH))
    return [Profile("text", {"IDS": shape, "MASK": shape})]


def clip_profiles(config: ClipConfig) -> list[Profile]:
    shape = (1, 3, config.image_size, config.image_size)
    return [Profile("picture", {"PIXELS": ShapeRange(shape, shape, shape)})]


def _profile(name: str, sizes: list[tuple[int, int]], shapes_of) -> Profile:
    """A profile from the shapes at the smallest, the usual and the largest size."""
    smallest, usual, largest = (shapes_of(*size) for size in sizes)
    return Profile(name, {key: ShapeRange(smallest[key], usual[key], largest[key]) for key in usual})


def vae_profiles(
    sizes: Sizes, config: VAEConfig, slots: list[CacheSlot], first: bool, encoder: bool = False
) -> list[Profile]:
    """One exact profile for each size, then the range. `slots` is the cache that the next step takes."""
    stride = config.spatial_stride

    def shapes_of(width: int, height: int) -> dict[str, tuple[int, ...]]:
        h, w = height // stride, width // stride
        shapes: dict[str, tuple[int, ...]]
        if encoder:
            shapes = {"FRAMES": (1, 3, 1 if first else config.temporal_stride, height, width)}
        else:
            shapes = {"LATENTS": (1, config.z_dim, 1, h, w)}
        return shapes if first else shapes | {cache_input(i): slot.shape(h, w) for i, slot in enumerate(slots)}

    profiles = [_profile(f"{w}x{h}", [(w, h)] * 3, shapes_of) for w, h in sizes.fixed]
    if sizes.range:
        low, high = sizes.range
        profiles.append(_profile("range", [low, high, high], shapes_of))
    return profiles
