"""A generation request: every parameter with its bounds, checked once, in one place."""

import math
import secrets
from dataclasses import dataclass, fields

from wan.config import Defaults
from wan.errors import InvalidRequest
from wan.samplers import SAMPLERS

MAX_SEED = 2**63 - 1
CACHES = ("teacache", "magcache")


@dataclass(frozen=True)
class Limit:
    """Allowed numbers: `low` <= value <= `high` and value = `offset` mod `multiple`."""

    low: float
    high: float
    multiple: int = 1
    offset: int = 0
    integer: bool = True

    def __str__(self) -> str:
        text = f"{self.low:g} to {self.high:g}" if self.high < 2**53 else f"{self.low:g} to {int(self.high)}"
        if self.offset:
            return f"{self.multiple}n + {self.offset}, {text}"
        return f"a multiple of {self.multiple}, {text}" if self.multiple > 1 else text

    def check(self, name: str, value) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or (self.integer and value != int(value)):
            raise InvalidRequest(name, value, f"{'an integer' if self.integer else 'a finite number'}, {self}")
        if not self.low <= value <= self.high or (
            self.integer and value % self.multiple != self.offset % self.multiple
        ):
            raise InvalidRequest(name, value, str(self))


LIMITS = {
    "width": Limit(16, 2048, multiple=16),
    "height": Limit(16, 2048, multiple=16),
    "num_frames": Limit(1, 257, multiple=4, offset=1),
    "steps": Limit(1, 1000),
    "guidance_scale": Limit(1.0, 30.0, integer=False),
    "flow_shift": Limit(0.1, 30.0, integer=False),
    "seed": Limit(0, MAX_SEED),
    "cache_threshold": Limit(0.0, 10.0, integer=False),
    "guidance_end": Limit(0.0, 1.0, integer=False),
}
MAX_PROMPT_CHARACTERS = 8000


@dataclass(frozen=True)
class GenerationRequest:
    """Validated parameters of one video; sizes in pixels. Build with `create`, which fills in defaults."""

    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_frames: int
    steps: int
    guidance_scale: float
    flow_shift: float
    seed: int
    sampler: str
    cache_threshold: float  # 0 computes every step
    cache: str = "teacache"  # the rule by which steps are skipped
    guidance_end: float = 1.0  # share of the steps after which guidance is off

    def __post_init__(self):
        for name in ("prompt", "negative_prompt"):
            text = getattr(self, name)
            if not isinstance(text, str) or len(text) > MAX_PROMPT_CHARACTERS:
                raise InvalidRequest(name, text, f"text of at most {MAX_PROMPT_CHARACTERS} characters")
        if not self.prompt.strip():
            raise InvalidRequest("prompt", self.prompt, "text that is not empty")
        for name, limit in LIMITS.items():
            limit.check(name, getattr(self, name))
        if self.sampler not in SAMPLERS:
            raise InvalidRequest("sampler", self.sampler, ", ".join(SAMPLERS))
        if self.cache not in CACHES:
            raise InvalidRequest("cache", self.cache, ", ".join(CACHES))

    @classmethod
    def create(cls, defaults: Defaults, prompt: str, **given) -> "GenerationRequest":
        """Take `given`, the defaults where it is absent or None, and draw a seed if there is none.

        Raises InvalidRequest, also for a name that is not a parameter.
        """
        names = [f.name for f in fields(cls)]
        for name in given:
            if name not in names:
                raise InvalidRequest(name, given[name], f"one of the parameters {', '.join(names)}")
        values = {name: getattr(defaults, name) for name in names if hasattr(defaults, name)}
        values |= {name: value for name, value in given.items() if value is not None}
        values.setdefault("seed", secrets.randbelow(2**32))
        return cls(prompt=prompt, **values)

    def latent_shape(
        self, channels: int, temporal_stride: int = 4, spatial_stride: int = 8
    ) -> tuple[int, int, int, int]:
        """Shape [C, T', h, w] of the latents."""
        frames = 1 + (self.num_frames - 1) // temporal_stride
        return channels, frames, self.height // spatial_stride, self.width // spatial_stride
