"""Every parameter of a request, once.

A field of the classes below is a parameter: its type, its default (that of Wan 2.1 where a checkpoint says nothing), its
rule, the names other servers give it, what the page says of it, and whether it enters the price and the fingerprint of a
resumable run. To add one, add a field here and read it where it acts; everything else is derived.
"""

import hashlib
import json
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from typing import Any, Literal

from contract.adapters import Adapter
from contract.errors import InvalidCard, InvalidRequest
from contract.geometry import Geometry
from contract.rules import Adapters, Choice, Frames, Integer, Number, Rule, Side, Text

MAX_SEED = 2**63 - 1
MAX_PROMPT = 8000
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
SAMPLERS = ("unipc", "euler", "dpm++", "renoise")
CACHES = ("teacache", "magcache")


@dataclass(frozen=True)
class Parameter:
    """What is known of one parameter. Whose default is None not every variant has; `Variant.unused` says which.

    `group`: where the page's form shows it. `lossless`: the value that costs no quality, of a parameter that trades it for
    time. `tensor`: whether Triton takes it.
    """

    name: str
    rule: Rule
    default: Any  # MISSING: required (the prompt) or drawn (the seed)
    label: str
    help: str
    aliases: tuple[str, ...]
    group: Literal["prompt", "main", "more"]
    priced: bool
    fingerprint: bool
    tensor: bool
    lossless: Any

    @property
    def kind(self) -> str:
        """The Triton type."""
        if self.rule.python is int:
            return "INT64" if isinstance(self.rule, Number) and self.rule.high >= 2**31 else "INT32"
        return "FP32" if self.rule.python is float else "STRING"

    @property
    def number(self) -> Number:
        """The rule of a parameter that is a number."""
        if not isinstance(self.rule, Number):
            raise TypeError(f"{self.name} is no number")
        return self.rule

    @property
    def tensor_name(self) -> str:
        return self.name.upper()


def _parameter(
    rule: Rule, default: Any = MISSING, *, label: str, help: str = "", aliases: tuple[str, ...] = (),
    group: str = "more", priced: bool = False, fingerprint: bool = True, tensor: bool = True, lossless: Any = None,
) -> Any:  # fmt: skip
    said = {
        "rule": rule, "default": default, "label": label, "help": help, "aliases": aliases, "group": group,
        "priced": priced, "fingerprint": fingerprint, "tensor": tensor, "lossless": lossless,
    }  # fmt: skip
    return field(default=default, metadata=said)


@dataclass(frozen=True, kw_only=True)
class _Sampling:
    """What a checkpoint has a default for and the model uses."""

    negative_prompt: str = _parameter(
        Text(MAX_PROMPT), NEGATIVE_PROMPT, label="Negative prompt", help="What the video must not show.", group="prompt"
    )
    width: int = _parameter(Side(), 832, label="Width", help="In pixels.", group="main", priced=True)
    height: int = _parameter(Side(), 480, label="Height", help="In pixels.", group="main", priced=True)
    num_frames: int = _parameter(
        Frames(), 81, label="Frames", help="Length of the video.", aliases=("target_video_length",), group="main",
        priced=True,
    )  # fmt: skip
    steps: int = _parameter(
        Integer(1, 1000), 50, label="Steps", help="Sampler steps.", aliases=("num_inference_steps", "infer_steps"),
        group="main", priced=True,
    )  # fmt: skip
    guidance_scale: float = _parameter(
        Number(1, 30), 5.0, label="Guidance", help="1: no guidance, half the work.", aliases=("cfg_scale",), priced=True
    )
    guidance_scale_2: float | None = _parameter(
        Number(1, 30), None, label="Guidance, low noise", priced=True,
        help="That of the second expert, where a model has two; guidance_scale is that of the first.",
    )  # fmt: skip
    guidance_end: float = _parameter(
        Number(0, 1), 1.0, label="Guidance until", lossless=1.0, priced=True,
        help="Share of the steps after which guidance is off and a step costs half; 1 keeps it to the end.",
    )  # fmt: skip
    flow_shift: float = _parameter(
        Number(0.1, 30), 5.0, label="Flow shift", help="Sigma shift.", aliases=("sigma_shift", "sample_shift")
    )
    sampler: str = _parameter(
        Choice(SAMPLERS), "unipc", label="Sampler", priced=True,
        help="Sampler; renoise, which draws fresh noise at each step, is for models distilled to few steps.",
    )  # fmt: skip
    strength: float = _parameter(
        Number(0, 1), 0.8, label="Strength", aliases=("denoising_strength",), priced=True,
        help="How much of a given clip is made anew; only with a clip that is changed. Euler runs all steps from that level "
        "of noise, the others the last share of their steps.",
    )  # fmt: skip
    cache: str = _parameter(
        Choice(CACHES), "teacache", label="Step cache", priced=True,
        help="The rule by which steps are skipped, if cache_threshold is above 0.",
    )  # fmt: skip
    cache_threshold: float = _parameter(
        Number(0, 10), 0.0, label="Cache threshold", aliases=("tea_cache_l1_thresh",), lossless=0.0, priced=True,
        help="0 computes every step; the larger, the more steps are skipped and the less exact is the video.",
    )  # fmt: skip
    cache_start: float = _parameter(
        Number(0, 1), 0.0, label="Cache from", priced=True,
        help="Share of the steps before which every step is computed, whatever the cache says.",
    )  # fmt: skip
    cache_end: float = _parameter(
        Number(0, 1), 1.0, label="Cache until", priced=True,
        help="Share of the steps after which every step is computed, whatever the cache says.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Defaults(_Sampling):
    """What a request gets where it says nothing: those of the checkpoint. Sizes in pixels."""

    fps: int = _parameter(
        Integer(1, 60), 16, label="Frames a second", help="Of the file; the frames stay the same.",
        aliases=("target_fps",), fingerprint=False, tensor=False,
    )  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict, source: str, base: "Defaults | None" = None) -> "Defaults":
        """`base` with what JSON says; InvalidCard names `source` and an unknown key or a value out of bounds."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise InvalidCard(f"{source}: unknown keys {unknown}; known: {sorted(f.name for f in fields(cls))}")
        try:
            for name, value in values.items():
                if value is not None or BY_NAME[name].default is not None:
                    BY_NAME[name].rule.check(name, value)
        except InvalidRequest as error:
            raise InvalidCard(f"{source}: {error}") from None
        return cls(**(asdict(base or cls()) | values))


@dataclass(frozen=True, kw_only=True)
class GenerationRequest(_Sampling):
    """Validated parameters of one video; build it with `create`, which fills in defaults."""

    prompt: str = _parameter(
        Text(MAX_PROMPT, filled=True), label="Prompt", help="What the video shows.", group="prompt"
    )
    seed: int = _parameter(
        Integer(0, MAX_SEED), label="Seed", help="Same seed, same video; drawn and reported if left out.", group="main"
    )
    lora: tuple[Adapter, ...] = _parameter(
        Adapters(), (), label="Adapters", aliases=("loras", "lora_path"),
        help="LoRAs from the server's directory and how strongly each acts.",
    )  # fmt: skip

    @classmethod
    def create(
        cls, defaults: Defaults, geometry: Geometry, unused: frozenset[str] = frozenset(), **given
    ) -> "GenerationRequest":
        """Take `given`, the defaults where it is absent or None, and draw a seed if there is none.

        Raises InvalidRequest, also for a name that is not a parameter or that the model does not use.
        """
        names = [f.name for f in fields(cls)]
        for name in given:
            if name not in names:
                raise InvalidRequest(name, given[name], f"one of the parameters {', '.join(names)}")
        values = {name: getattr(defaults, name) for name in names if hasattr(defaults, name)}
        values |= {name: value for name, value in given.items() if value is not None}
        for name in sorted(unused):
            if values.get(name) is not None:
                raise InvalidRequest(name, values[name], "nothing, as the served model does not use it")
        values.setdefault("seed", secrets.randbelow(2**31))
        values.setdefault("lora", ())
        if "prompt" not in values:
            raise InvalidRequest("prompt", None, f"{BY_NAME['prompt'].rule.words()}; it is required")
        for name in (name for name in names if name not in unused):
            rule = BY_NAME[name].rule
            rule.check(name, values[name], geometry)
            values[name] = rule.convert(values[name])
        return cls(**values)

    @property
    def guided(self) -> bool:
        """Whether any step uses guidance, and so the negative prompt."""
        scales = {self.guidance_scale, self.guidance_scale_2 or self.guidance_scale}
        return any(guided_steps(self.steps, scale, self.guidance_end) for scale in scales)

    def unguided(self) -> "GenerationRequest":
        """The same without guidance."""
        return replace(self, guidance_scale=1.0, guidance_scale_2=self.guidance_scale_2 and 1.0)

    def fingerprint(
        self, model: str, media: Mapping[str, str] | None = None, adapters: Mapping[str, str] | None = None
    ) -> str:
        """What a checkpoint of a run belongs to: every parameter that changes latents, the identity of the model, and the
        hashes of the given `media` and `adapters` by name."""
        said = asdict(self)
        # what is empty says nothing, as in a release that did not know it
        values: dict[str, Any] = {p.name: said[p.name] for p in PARAMETERS if p.fingerprint and said[p.name] != ()}
        values |= {"media": dict(media)} if media else {}
        values |= {"adapters": dict(adapters)} if adapters else {}
        text = json.dumps(values | {"model": model}, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def guided_steps(steps: int, guidance_scale: float, guidance_end: float) -> int:
    """How many of `steps` use guidance: ceil of the share, 0.55 of 20 being 11 and not a little more."""
    return 0 if guidance_scale == 1 else math.ceil(round(guidance_end * steps, 6))


def steps_of_clip(steps: int, strength: float, sampler: str) -> int:
    """How many of `steps` are run on a clip that is changed: Diffusers drops the first ones, DiffSynth-Studio (Euler) none.

    Raises InvalidRequest if none is left.
    """
    kept = int(steps * strength) if sampler != "euler" else steps * (strength > 0)
    if not kept:
        raise InvalidRequest("strength", strength, f"above 0, and at least 1/{steps} = {1 / steps:g} of so many steps")
    return kept


def may_skip(step: int, steps: int, cache_start: float, cache_end: float) -> bool:
    """Whether a cache may skip `step`, counted from 0: all of it lies in the range of the run."""
    return round(cache_start * steps, 6) <= step and step + 1 <= round(cache_end * steps, 6)


def _collect(*owners: type, pick: Callable[[Field], bool] = lambda f: True) -> dict[str, Parameter]:
    return {f.name: Parameter(f.name, **f.metadata) for owner in owners for f in fields(owner) if pick(f)}


BY_NAME: dict[str, Parameter] = _collect(Defaults, GenerationRequest)
# prompts first, then in the order of their declaration
PARAMETERS: tuple[Parameter, ...] = tuple(
    sorted(BY_NAME.values(), key=lambda p: (p.group != "prompt", p.name != "prompt" and p.group == "prompt"))
)
LOSSLESS = {p.name: p.lossless for p in PARAMETERS if p.lossless is not None}
TENSORS: tuple[Parameter, ...] = tuple(p for p in PARAMETERS if p.tensor)
