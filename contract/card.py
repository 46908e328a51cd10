"""What a served checkpoint is to its callers: its variant, its geometry and its defaults.

The export writes a card beside the model repository; `wan.json` beside a checkpoint may say parts of one:

    {"variant": "t2v-14b", "defaults": {"steps": 40}, "geometry": {"temporal_stride": 4, …}}

Entries that belong to the model alone (the calibrations of the step caches, the VAE's statistics) are left to `wan`.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from contract.errors import InvalidCard, InvalidRequest
from contract.geometry import Geometry
from contract.media import BY_NAME as MEDIA
from contract.parameters import PARAMETERS, Defaults, GenerationRequest, Parameter
from contract.variants import BY_NAME, Variant

KEYS = ("variant", "geometry", "defaults", "takes", "needs", "weights")
MODEL_KEYS = ("teacache", "magcache", "vae", "boundary", "base")  # of wan.json, for wan.checkpoint


@dataclass(frozen=True)
class ModelCard:
    variant: str = "t2v"
    geometry: Geometry = field(default_factory=Geometry)
    defaults: Defaults = field(default_factory=Defaults)
    takes: tuple[str, ...] = ()  # media that a request may carry
    needs: tuple[str, ...] = ()  # of these, what it must
    weights: Mapping[str, list[int]] = field(
        default_factory=dict
    )  # shapes of the DiT's, see `contract.lora_keys.folded`

    @classmethod
    def from_dict(cls, values: dict, source: str) -> "ModelCard":
        """A card from JSON; InvalidCard names `source`, the key and what is allowed. The row of the variant fills in."""
        if not isinstance(values, dict):
            raise InvalidCard(f"{source} holds {type(values).__name__}; allowed: an object with {', '.join(KEYS)}")
        if unknown := sorted(set(values) - {*KEYS, *MODEL_KEYS}):
            raise InvalidCard(f"{source}: unknown keys {unknown}; known: {sorted((*KEYS, *MODEL_KEYS))}")
        name = values.get("variant", "t2v")
        if name not in BY_NAME:
            raise InvalidCard(f"{source}: variant is {name!r}; allowed: {', '.join(BY_NAME)}")
        defaults = Defaults.from_dict(values.get("defaults", {}), f"{source}: defaults", BY_NAME[name].defaults)
        row = BY_NAME[name]
        if foreign := [n for n in sorted(row.unused) if getattr(defaults, n) is not None]:
            raise InvalidCard(f"{source}: defaults: {foreign[0]} means nothing to the variant {name}; leave it out")
        media = {key: _media(values.get(key, getattr(row, key)), f"{source}: {key}") for key in ("takes", "needs")}
        weights = _weights(values.get("weights", {}), source)
        return cls(name, _geometry(values.get("geometry", {}), source), defaults, **media, weights=weights)

    @classmethod
    def load(cls, path: Path) -> "ModelCard":
        """The card of a file; InvalidCard if it cannot be read."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidCard(f"{path}: {error}") from None
        return cls.from_dict(values, str(path))

    def to_dict(self) -> dict:
        return asdict(self)

    @property
    def row(self) -> Variant:
        return BY_NAME[self.variant]

    @property
    def continues(self) -> bool:
        """Whether known frames go in beside the latents, so that a clip is continued; else it is changed."""
        return bool(self.row.condition_channels)

    def check_media(self, given: Collection[str]) -> None:
        """Refuse media (by name) that this model does not take together, or the lack of one that it needs."""
        for name in given:
            if name not in self.takes:
                raise InvalidRequest(name, "given", f"with this model: {', '.join(self.takes) or 'no picture or clip'}")
        if {"image", "video"} <= set(given):
            raise InvalidRequest("image", "given beside video", "one of the two: a clip has a beginning of its own")
        if "video" not in given and (missing := [name for name in self.needs if name not in given]):
            stands_in = ", or a video to go on from" if "video" in self.takes else ""
            raise InvalidRequest(missing[0], None, f"a file; this model needs {' and '.join(self.needs)}{stands_in}")

    def request(self, **given) -> GenerationRequest:
        """The validated request of this model; see `GenerationRequest.create`."""
        return GenerationRequest.create(self.defaults, self.geometry, self.row.unused, **given)

    def warnings(self, request: GenerationRequest) -> list[str]:
        """What a request asks for that the model was not trained for."""
        trained = self.row.distilled_steps
        found: list[str] = []
        if trained is None:
            return found
        if request.guided:
            found.append("guidance: this model was distilled without it; a guidance scale other than 1 blurs the video")
        if request.steps != trained:
            found.append(f"steps is {request.steps}: this model was distilled to {trained}")
        return found

    def describe(self, parameter: Parameter) -> dict:
        """One parameter for clients that draw forms: bounds, default and words."""
        about = {"label": parameter.label, "help": parameter.help, "group": parameter.group}
        about["type"] = {int: "integer", float: "number", str: "string", list: "array"}[parameter.rule.json]
        about["allowed"] = parameter.rule.words(self.geometry)
        return parameter.rule.schema(self.geometry) | about

    def limits(self) -> dict[str, dict]:
        """`describe` of every parameter of the variant, by name, in the order of a form."""
        return {p.name: self.describe(p) for p in PARAMETERS if p.name not in self.row.unused}


def _media(names, source: str) -> tuple[str, ...]:
    if not isinstance(names, list | tuple) or not set(names) <= set(MEDIA):
        raise InvalidCard(f"{source} is {names!r}; allowed: a list of {', '.join(MEDIA)}")
    return tuple(names)


def _weights(values, source: str) -> dict[str, list[int]]:
    shapes = values.values() if isinstance(values, dict) else [None]
    if not all(isinstance(s, list) and s and all(isinstance(n, int) and n > 0 for n in s) for s in shapes):
        raise InvalidCard(f"{source}: weights is {str(values)[:60]}; allowed: an object of lists of sizes")
    return values


def _geometry(values: dict, source: str) -> Geometry:
    known = {f.name for f in fields(Geometry)}
    if unknown := sorted(set(values) - known):
        raise InvalidCard(f"{source}: geometry: unknown keys {unknown}; known: {sorted(known)}")
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidCard(f"{source}: geometry: {name} is {value!r}; allowed: an integer of at least 1")
    return Geometry(**values)
