"""Kinds of parameters: what a value may be, in Python, in JSON schema and in words.

A rule that depends on the geometry of the loaded variant says its general bounds where none is given.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from contract import adapters
from contract.errors import InvalidRequest
from contract.geometry import Geometry


class _Kind:
    """What all kinds share. `python`: the type of a value that a command line or a tensor holds; `json`: that of JSON."""

    python: ClassVar[type]

    @property
    def json(self) -> type:
        return self.python

    def convert(self, value: Any) -> Any:
        """A checked value as a request holds it."""
        return self.python(value)


@dataclass(frozen=True)
class Text(_Kind):
    """Text of at most `longest` characters; `filled`: more than white space."""

    python: ClassVar[type] = str
    longest: int
    filled: bool = False

    def check(self, name: str, value, geometry: Geometry | None = None) -> None:
        if not isinstance(value, str) or len(value) > self.longest:
            raise InvalidRequest(name, value, self.words())
        if self.filled and not value.strip():
            raise InvalidRequest(name, value, "text that is not empty")

    def schema(self, geometry: Geometry | None = None) -> dict:
        return {"maxLength": self.longest} | ({"minLength": 1} if self.filled else {})

    def words(self, geometry: Geometry | None = None) -> str:
        return f"text of at most {self.longest} characters"


@dataclass(frozen=True)
class Choice(_Kind):
    """One of a few names."""

    python: ClassVar[type] = str
    names: tuple[str, ...]

    def check(self, name: str, value, geometry: Geometry | None = None) -> None:
        if value not in self.names:
            raise InvalidRequest(name, value, self.words())

    def schema(self, geometry: Geometry | None = None) -> dict:
        return {"enum": list(self.names)}

    def words(self, geometry: Geometry | None = None) -> str:
        return ", ".join(self.names)


@dataclass(frozen=True)
class Number(_Kind):
    """A finite number from `low` to `high`."""

    python: ClassVar[type] = float
    low: float
    high: float

    def check(self, name: str, value, geometry: Geometry | None = None) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        integer = self.python is int
        if not number or (integer and not isinstance(value, int)):
            kind = "an integer" if integer else "a finite number"
            raise InvalidRequest(name, value, f"{kind}, {self.words(geometry)}")
        if not self._fits(value, geometry):
            raise InvalidRequest(name, value, self.words(geometry))

    def _fits(self, value, geometry: Geometry | None) -> bool:
        return self.low <= value <= self.high

    def schema(self, geometry: Geometry | None = None) -> dict:
        return {"minimum": self.low, "maximum": self.high}

    def words(self, geometry: Geometry | None = None) -> str:
        return f"{self.low:g} to {self.high:g}" if self.high < 2**53 else f"{self.low:g} to {int(self.high)}"


@dataclass(frozen=True)
class Integer(Number):
    """A whole number from `low` to `high`."""

    python: ClassVar[type] = int


@dataclass(frozen=True)
class Side(Integer):
    """A width or height in pixels: a multiple of what one token covers."""

    low: int = 1
    high: int = 2048

    def _fits(self, value, geometry: Geometry | None) -> bool:
        step = geometry.multiple if geometry else 1
        return step <= value <= self.high and value % step == 0

    def schema(self, geometry: Geometry | None = None) -> dict:
        step = geometry.multiple if geometry else 1
        return {"minimum": step, "maximum": self.high // step * step, "multipleOf": step}

    def words(self, geometry: Geometry | None = None) -> str:
        if geometry is None:
            return f"a multiple of the model's step in pixels, at most {self.high}"
        bounds = self.schema(geometry)
        return f"a multiple of {geometry.multiple}, {geometry.multiple} to {bounds['maximum']}"

    def nearest(self, value: float, geometry: Geometry) -> int:
        return min(geometry.nearest_side(value), self.schema(geometry)["maximum"])


@dataclass(frozen=True)
class Frames(Integer):
    """A number of frames: one, and as many more as whole latent frames stand for."""

    low: int = 1
    high: int = 257

    def _fits(self, value, geometry: Geometry | None) -> bool:
        stride = geometry.temporal_stride if geometry else 1
        return self.low <= value <= self.high and (value - 1) % stride == 0

    def schema(self, geometry: Geometry | None = None) -> dict:
        return {"minimum": self.low, "maximum": self.high} | ({"step": geometry.temporal_stride} if geometry else {})

    def words(self, geometry: Geometry | None = None) -> str:
        stride = geometry.temporal_stride if geometry else "k"
        return f"{stride}n + 1, {self.low} to {self.high}"

    def nearest(self, value: float, geometry: Geometry) -> int:
        return min(geometry.nearest_frames(value), self.high)


@dataclass(frozen=True)
class Adapters(_Kind):
    """Adapters by name and strength; see `contract.adapters`."""

    python: ClassVar[type] = str

    @property
    def json(self) -> type:
        return list

    def check(self, name: str, value, geometry: Geometry | None = None) -> None:
        adapters.parse(value, name)

    def convert(self, value: Any) -> Any:
        return adapters.parse(value)

    def schema(self, geometry: Geometry | None = None) -> dict:
        strength = {"type": "number", "minimum": -adapters.STRONGEST, "maximum": adapters.STRONGEST, "default": 1.0}
        name = {"type": "string", "pattern": f"^{adapters.NAME.pattern}$"}
        one = {"type": "object", "required": ["name"], "properties": {"name": name, "strength": strength}}
        return {"items": one, "maxItems": adapters.MOST}

    def words(self, geometry: Geometry | None = None) -> str:
        return adapters.WORDS


Rule = Text | Choice | Number | Adapters
