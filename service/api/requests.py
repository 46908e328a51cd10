"""What a caller may ask for: names, bounds and defaults of every parameter.

Names follow vLLM-Omni's `/v1/videos`; the names that OpenAI (`size`, `seconds`), DiffSynth (`cfg_scale`, `sigma_shift`,
`tea_cache_l1_thresh`) and LightX2V (`infer_steps`, `target_shape`, `target_video_length`, `target_fps`) use for the same thing
are accepted too. One rule for sizes: width and height must be multiples of 16 and num_frames must be 4n + 1; anything else is
refused with the nearest allowed values. Only `seconds` is rounded, to the longest allowed clip that is not longer.
"""

import hashlib
import re
import secrets
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from service.errors import InvalidRequest
from service.settings import ModelCard

MAX_SIDE, MAX_FRAMES, MAX_STEPS, MAX_PROMPT = 2048, 257, 1000, 8000  # as in wan/request.py
MAX_SEED = 2**63 - 1
SIZE = re.compile(r"(\d{2,5})[xX×*](\d{2,5})")

# Stored as they are, with the model's default where the caller says nothing.
FROM_CARD = (
    "negative_prompt", "steps", "guidance_scale", "guidance_end", "flow_shift", "sampler", "cache", "cache_threshold",
)  # fmt: skip

Side = Annotated[int, Field(ge=16, le=MAX_SIDE)]


def _also(*names: str) -> AliasChoices:
    return AliasChoices(*names)


class VideoRequest(BaseModel):
    """Body of `POST /v1/videos`; what is left out takes the model's default (see `GET /v1/models`)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, str_strip_whitespace=False)

    prompt: str = Field(min_length=1, max_length=MAX_PROMPT, description="What the video shows.")
    model: str | None = Field(None, max_length=64, description="Must be the served model if given.")
    negative_prompt: str | None = Field(None, max_length=MAX_PROMPT)
    size: str | None = Field(None, max_length=11, description="WIDTHxHEIGHT; instead of width and height.")
    width: Side | None = Field(None, description="Pixels; a multiple of 16.")
    height: Side | None = Field(None, description="Pixels; a multiple of 16.")
    target_shape: list[Side] | None = Field(
        None, min_length=2, max_length=2, description="[height, width]; instead of width and height."
    )
    seconds: float | None = Field(None, gt=0, le=300, description="Length; instead of num_frames.")
    num_frames: int | None = Field(
        None, ge=1, le=MAX_FRAMES, validation_alias=_also("num_frames", "target_video_length"), description="4n + 1."
    )
    fps: int | None = Field(
        None, ge=1, le=60, validation_alias=_also("fps", "target_fps"), description="Frames a second of the file."
    )
    steps: int | None = Field(
        None,
        ge=1,
        le=MAX_STEPS,
        validation_alias=_also("steps", "num_inference_steps", "infer_steps"),
        description="Sampler steps; also num_inference_steps.",
    )
    guidance_scale: float | None = Field(
        None,
        ge=1,
        le=30,
        validation_alias=_also("guidance_scale", "cfg_scale"),
        description="1: no guidance, half the work.",
    )
    flow_shift: float | None = Field(
        None,
        ge=0.1,
        le=30,
        validation_alias=_also("flow_shift", "sigma_shift", "sample_shift"),
        description="Sigma shift.",
    )
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Drawn and reported if left out.")
    sampler: Literal["unipc", "euler", "dpm++"] | None = None
    cache: Literal["teacache", "magcache"] | None = Field(
        None, description="The rule by which steps are skipped, if cache_threshold is above 0."
    )
    cache_threshold: float | None = Field(
        None,
        ge=0,
        le=10,
        validation_alias=_also("cache_threshold", "tea_cache_l1_thresh"),
        description="0 computes every step; the larger, the more steps are skipped and the less exact is the video.",
    )
    guidance_end: float | None = Field(
        None, ge=0, le=1, description="Share of the steps after which guidance is off; 1 keeps it to the end."
    )
    priority: Literal["high", "normal", "low"] = Field(
        "normal", description="If left out: normal, or the highest that the key may use."
    )
    deadline_seconds: float | None = Field(
        None, gt=0, le=7 * 86400, description="Refuse the job at once if the video cannot be there in this time."
    )
    webhook_url: str | None = Field(None, max_length=2048, description="Called when the job ends.")
    preview: bool = Field(False, description="Make small previews while the video is denoised.")
    user: str | None = Field(None, max_length=128, description="Your own note; returned, not interpreted.")

    @model_validator(mode="before")
    @classmethod
    def _no_truth_as_number(cls, values):
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool) and name != "preview":
                raise InvalidRequest(name, value, "a number or a text, not true or false")
        return values

    @field_validator("prompt")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("text that is not only white space")
        return _printable(value)

    @field_validator("negative_prompt", "user")
    @classmethod
    def _no_nul(cls, value: str | None) -> str | None:
        return value if value is None else _printable(value)

    @field_validator("size")
    @classmethod
    def _size(cls, value: str | None) -> str | None:
        if value is not None and not SIZE.fullmatch(value):
            raise ValueError("WIDTHxHEIGHT, for example 832x480")
        return value

    @model_validator(mode="after")
    def _said_once(self) -> "VideoRequest":
        sizes = [name for name in ("size", "target_shape") if getattr(self, name) is not None]
        if self.width is not None or self.height is not None:
            sizes.append("width/height")
        if len(sizes) > 1:
            raise ValueError(f"one of size, width and height, target_shape; not {' and '.join(sizes)} together")
        if self.seconds is not None and self.num_frames is not None:
            raise ValueError("one of seconds and num_frames, not both")
        return self

    def resolve(self, card: ModelCard, model_name: str) -> dict:
        """The complete generation request as it is stored and sent to Triton; InvalidRequest names the field."""
        if self.model is not None and self.model != model_name:
            raise InvalidRequest("model", self.model, f"{model_name!r}, the served model")
        width, height = self._shape(card)
        fps = self.fps if self.fps is not None else card.fps
        frames = self._frames(card, fps)
        values = {"prompt": self.prompt, "width": width, "height": height, "num_frames": frames, "fps": fps}
        for name in FROM_CARD:
            value = getattr(self, name)
            values[name] = getattr(card, name) if value is None else value
        # Drawn here and not in the model, so that every attempt at the job makes the same video.
        values["seed"] = secrets.randbelow(2**31) if self.seed is None else self.seed
        if self.preview:
            values["preview"] = True
        if self.user is not None:
            values["user"] = self.user
        return values

    def _shape(self, card: ModelCard) -> tuple[int, int]:
        if self.size is not None:
            width, height = (int(side) for side in SIZE.fullmatch(self.size).groups())
            names = ("size", "size")
        elif self.target_shape is not None:
            height, width = self.target_shape
            names = ("target_shape", "target_shape")
        else:
            width, height = self.width or card.width, self.height or card.height
            names = ("width", "height")
        for name, side in zip(names, (width, height), strict=True):
            if side % 16 or not 16 <= side <= MAX_SIDE:
                near = min(max(16, round(side / 16) * 16), MAX_SIDE)
                raise InvalidRequest(name, side, f"multiples of 16 from 16 to {MAX_SIDE}; nearest {near}")
        return width, height

    def _frames(self, card: ModelCard, fps: int) -> int:
        if self.seconds is not None:
            frames = 4 * int(self.seconds * fps / 4) + 1
            if frames > MAX_FRAMES:
                raise InvalidRequest("seconds", self.seconds, f"at most {MAX_FRAMES} frames, {MAX_FRAMES / fps:.1f} s")
            return frames
        if self.num_frames is None:
            return card.num_frames
        if (self.num_frames - 1) % 4:
            near = min(max(1, 4 * round((self.num_frames - 1) / 4) + 1), MAX_FRAMES)
            raise InvalidRequest("num_frames", self.num_frames, f"4n + 1 from 1 to {MAX_FRAMES}; nearest {near}")
        return self.num_frames


def stable_seed(owner: str, idempotency_key: str) -> int:
    """A seed that a repeated submission draws again; secret enough, since it decides nothing but the noise."""
    return int.from_bytes(hashlib.sha256(f"{owner}\n{idempotency_key}".encode()).digest()[:4], "big") >> 1


def _printable(value: str) -> str:
    if "\x00" in value:
        raise ValueError("text without NUL characters")
    return value


def parse(values: dict) -> VideoRequest:
    """Validate a decoded body; InvalidRequest names the field, its value and what is allowed."""
    if values.get("input_reference") is not None:
        raise InvalidRequest("input_reference", "a file", "nothing: this model makes videos from text only")
    try:
        return VideoRequest.model_validate(values)
    except ValidationError as error:
        raise from_validation(error) from None


def from_validation(error: ValidationError) -> InvalidRequest:
    """The first problem as the API reports it."""
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"]) or "body"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if first["type"] == "extra_forbidden":
        message = "the parameters in the OpenAPI document at /openapi.json"
    if first["type"] == "missing":
        return InvalidRequest(param, None, "a value; the field is required")
    value = first.get("input")
    return InvalidRequest(param, "…" if isinstance(value, dict) else value, message)


def limits() -> dict:
    """Bounds of the parameters for clients that draw forms."""
    properties = VideoRequest.model_json_schema(by_alias=False)["properties"]
    bounds = {}
    for name, schema in properties.items():
        rules = schema if "anyOf" not in schema else schema["anyOf"][0]
        keys = {"minimum", "maximum", "exclusiveMinimum", "maxLength", "minLength", "enum"}
        if found := {key: value for key, value in rules.items() if key in keys}:
            bounds[name] = found
    bounds["width"]["multipleOf"] = bounds["height"]["multipleOf"] = 16
    return bounds
