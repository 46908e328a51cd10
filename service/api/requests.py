"""What a caller may ask for: the parameters of `contract.parameters`, and what concerns the job rather than the video.

Names follow vLLM-Omni's `/v1/videos`; the names that OpenAI (`size`, `seconds`) and LightX2V (`target_shape`) use for the same
thing are accepted too, as are the aliases in the declaration. Pictures and clips are those of `contract.media`. One rule for
sizes: anything off the model's grid is refused with the nearest allowed value. Only `seconds` is rounded, to the longest
allowed clip that is not longer.
"""

import hashlib
import re
import secrets
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    create_model,
    field_validator,
    model_validator,
)

from contract import PARAMETERS, ModelCard, body
from contract import InvalidRequest as OutOfBounds
from contract.media import MEDIA, Medium
from contract.parameters import BY_NAME
from contract.rules import Frames, Side
from service.api.output import BOOLEANS, OutputFields
from service.errors import InvalidRequest
from service.media.sent import Source, source_of

AUTO = "auto"
SIZE = re.compile(r"(\d{2,5})[xX×*](\d{2,5})")


class JobFields(OutputFields):
    """What a body says beside the parameters."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, str_strip_whitespace=False)

    model: str | None = Field(None, max_length=64, description="Must be the served model if given.")
    size: str | None = Field(
        None, max_length=11, description="WIDTHxHEIGHT, or auto: that of the picture; instead of width and height."
    )
    target_shape: list[Annotated[int, Field(ge=1)]] | None = Field(
        None, min_length=2, max_length=2, description="[height, width]; instead of width and height."
    )
    seconds: float | None = Field(None, gt=0, le=300, description="Length; instead of num_frames.")
    priority: Literal["high", "normal", "low"] = Field(
        "normal", description="If left out: normal, or the highest that the key may use."
    )
    deadline_seconds: float | None = Field(
        None, gt=0, le=7 * 86400, description="Refuse the job at once if the video cannot be there in this time."
    )
    webhook_url: str | None = Field(None, max_length=2048, description="Called when the job ends.")
    preview: bool = Field(False, description="Make small previews while the video is denoised.")
    stream: bool = Field(
        False, description="Serve the frames at /content, as a fragmented MP4, while later ones are still decoded."
    )
    user: str | None = Field(None, max_length=128, description="Your own note; returned, not interpreted.")

    @model_validator(mode="before")
    @classmethod
    def _no_truth_as_number(cls, values):
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool) and name not in BOOLEANS:
                raise InvalidRequest(name, value, "a number or a text, not true or false")
        return values

    @field_validator("prompt", check_fields=False)
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("text that is not only white space")
        return _printable(value)

    @field_validator("negative_prompt", "user", check_fields=False)
    @classmethod
    def _no_nul(cls, value: str | None) -> str | None:
        return value if value is None else _printable(value)

    @field_validator("size")
    @classmethod
    def _size(cls, value: str | None) -> str | None:
        if value is not None and value != AUTO and not SIZE.fullmatch(value):
            raise ValueError("WIDTHxHEIGHT, for example 832x480, or auto")
        return value


class RequestBody(JobFields):
    _names: dict[str, str] = PrivateAttr(default_factory=dict)  # medium -> how the caller named it

    def media(self) -> dict[str, Source]:
        """The pictures and clips of the request, by the names of `contract.media`."""
        return {medium.name: source for medium in MEDIA if (source := self.given(medium.name)) is not None}

    def said_as(self, medium: str) -> str:
        return self._names.get(medium, medium)

    @model_validator(mode="after")
    def _said_once(self) -> "RequestBody":
        sizes = [name for name in ("size", "target_shape") if getattr(self, name) is not None]
        if self.given("width") is not None or self.given("height") is not None:
            sizes.append("width/height")
        if len(sizes) > 1:
            raise ValueError(f"one of size, width and height, target_shape; not {' and '.join(sizes)} together")
        if self.seconds is not None and self.given("num_frames") is not None:
            raise ValueError("one of seconds and num_frames, not both")
        return self

    def given(self, name: str) -> Any:
        return getattr(self, name)

    def resolve(self, card: ModelCard, shown: tuple[int, int] | None = None) -> dict:
        """The complete generation request as it is stored and sent to Triton; InvalidRequest names the field.

        `shown`: width and height of the picture, for the size `auto`.
        """
        given = {p.name: self.given(p.name) for p in PARAMETERS}
        fps = given.pop("fps")
        fps = card.defaults.fps if fps is None else fps
        said_as = {}  # how the caller named what is refused
        if (shape := self._shape(card, shown)) is not None:
            name, given["width"], given["height"] = shape
            said_as = {"width": name, "height": name}
        if self.seconds is not None:
            given["num_frames"] = self._frames(self.seconds, fps, card)
        if given["seed"] is None:  # drawn here and not in the model, so that every attempt makes the same video
            given["seed"] = secrets.randbelow(2**31)
        try:
            request = card.request(**given)
        except OutOfBounds as error:
            allowed = error.allowed + _nearest(error, card)
            raise InvalidRequest(said_as.get(error.field, error.field), error.value, allowed) from None
        values = asdict(request) | {"fps": fps} | self.output()
        said = {"preview": self.preview, "stream": self.stream, "user": self.user}
        return values | {name: value for name, value in said.items() if value}

    def _shape(self, card: ModelCard, shown: tuple[int, int] | None) -> tuple[str, int, int] | None:
        """(field, width, height) where one field says both."""
        if self.size == AUTO:
            if shown is None:
                raise InvalidRequest("size", AUTO, "WIDTHxHEIGHT; auto is the size of a picture, and there is none")
            area, longest = card.defaults.width * card.defaults.height, int(BY_NAME["width"].number.high)
            return "size", *card.geometry.size_like(*shown, area, longest)
        if self.size is not None and (sides := SIZE.fullmatch(self.size)):
            return "size", int(sides[1]), int(sides[2])
        if self.target_shape is not None:
            height, width = self.target_shape
            return "target_shape", width, height
        return None

    @staticmethod
    def _frames(seconds: float, fps: int, card: ModelCard) -> int:
        frames, most = card.geometry.longest(seconds * fps), int(BY_NAME["num_frames"].number.high)
        if frames > most:
            raise InvalidRequest("seconds", seconds, f"at most {most} frames, {most / fps:.1f} s")
        return frames


def _medium_field(medium: Medium) -> tuple[Any, Any]:
    """In JSON; in a form it is a file."""
    schema = {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"image_url": {"type": "string"}}}]}
    about = f"{medium.help} A data URL, an address, or either as image_url; in a form, a file."
    kind = Annotated[Any, BeforeValidator(source_of), WithJsonSchema(schema)]
    return kind, Field(None, validation_alias=AliasChoices(medium.name, *medium.aliases), description=about)


_FIELDS: dict[str, Any] = {p.name: body.field(p, required=p.name == "prompt") for p in PARAMETERS}
_FIELDS |= {medium.name: _medium_field(medium) for medium in MEDIA}
VideoRequest = create_model("VideoRequest", __base__=RequestBody, **_FIELDS)
VideoRequest.__doc__ = "Body of `POST /v1/videos`; what is left out takes the model's default (see `GET /v1/models`)."


def _nearest(error: OutOfBounds, card: ModelCard) -> str:
    rule = BY_NAME[error.field].rule
    if isinstance(rule, Side | Frames):
        return f"; nearest {rule.nearest(error.value, card.geometry)}"
    return ""


def stable_seed(owner: str, idempotency_key: str) -> int:
    """A seed that a repeated submission draws again; secret enough, since it decides nothing but the noise."""
    return int.from_bytes(hashlib.sha256(f"{owner}\n{idempotency_key}".encode()).digest()[:4], "big") >> 1


def _printable(value: str) -> str:
    if "\x00" in value:
        raise ValueError("text without NUL characters")
    return value


def parse(values: dict) -> RequestBody:
    """Validate a decoded body; InvalidRequest names the field, its value and what is allowed."""
    try:
        request = VideoRequest.model_validate(values)
    except ValidationError as error:
        raise from_validation(error) from None
    for medium in MEDIA:
        for name in reversed((medium.name, *medium.aliases)):
            if name in values:
                request._names[medium.name] = name
    return request


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


def form_schema() -> dict:
    """The body's JSON schema, with files where a multipart form has them."""
    schema = VideoRequest.model_json_schema(by_alias=False)
    for medium in MEDIA:
        schema["properties"][medium.name] = {"type": "string", "format": "binary", "description": medium.help}
    return schema


def limits(card: ModelCard) -> dict:
    """Bounds and words of the parameters, and bounds of the other fields, for clients that draw forms."""
    bounds = {}
    for name, schema in JobFields.model_json_schema(by_alias=False)["properties"].items():
        rules = schema if "anyOf" not in schema else schema["anyOf"][0]
        keys = {"minimum", "maximum", "exclusiveMinimum", "maxLength", "minLength", "enum"}
        if found := {key: value for key, value in rules.items() if key in keys}:
            bounds[name] = found
    return card.limits() | bounds
