"""Load profiles: YAML files that say what to send where, how fast, and what counts as good enough; and the requests that
one sends, each drawn from its seed before the first is sent.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, create_model, field_validator, model_validator

from contract import PARAMETERS, Geometry, InvalidRequest, body
from contract.parameters import BY_NAME
from loadtest.base.inputs import ProfileError, Strict, parse, read_yaml

PerMinute = Annotated[float, Field(gt=0, le=600_000)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Target(Strict):
    """Where the load goes. `videos` is the public HTTP API; the others call Triton's ensemble directly."""

    kind: Literal["videos", "triton-grpc", "triton-http"] = "videos"
    url: str = "http://127.0.0.1:3000"
    follow: Literal["events", "polling"] = "events"
    poll_seconds: Seconds = 1.0
    fetch_content: bool = True
    delete: bool = False  # remove each video after it was fetched, outside the measured time
    api_key: str | None = Field(default=None, exclude=True, repr=False)
    model: str = "wan"

    @field_validator("url")
    @classmethod
    def _absolute(cls, url: str) -> str:
        if not url.startswith(("http://", "https://", "grpc://")):
            raise ValueError("needs a scheme: http://HOST:PORT, https://HOST:PORT or grpc://HOST:PORT")
        return url.rstrip("/")


class Poisson(Strict):
    """Open loop: independent arrivals, exponential gaps."""

    kind: Literal["poisson"]
    per_minute: PerMinute


class Constant(Strict):
    """Open loop: evenly spaced arrivals."""

    kind: Literal["constant"]
    per_minute: PerMinute


class Ramp(Strict):
    """Open loop: Poisson arrivals whose rate goes linearly from one value to another over `limits.seconds`."""

    kind: Literal["ramp"]
    from_per_minute: PerMinute
    to_per_minute: PerMinute


class Burst(Strict):
    """Open loop: `size` simultaneous arrivals every `every_seconds`, on top of a Poisson background."""

    kind: Literal["burst"]
    size: Annotated[int, Field(ge=1, le=10_000)]
    every_seconds: Seconds
    per_minute: Annotated[float, Field(ge=0, le=600_000)] = 0


class Closed(Strict):
    """Closed loop: each of `users` waits for its video (and thinks) before it asks for the next one."""

    kind: Literal["closed"]
    users: Annotated[int, Field(ge=1, le=1_000)]
    think_seconds: Annotated[float, Field(ge=0, le=3_600)] = 0


Load = Annotated[Poisson | Constant | Ramp | Burst | Closed, Field(discriminator="kind")]


# Prompts are drawn from the profile's list and seeds from its own, so that a run can be repeated.
SHAPED = tuple(p for p in PARAMETERS if p.tensor and p.name not in ("prompt", "negative_prompt", "seed"))


class OneShape(Strict):
    """One kind of video in the mix; a field left out takes the service's default."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,40}$")]
    weight: Annotated[float, Field(gt=0)] = 1
    priority: int | str | None = None

    @property
    def parameters(self) -> dict:
        """The parameters of a request that the shape says."""
        given = {p.name: getattr(self, p.name) for p in SHAPED}
        return {name: value for name, value in given.items() if value is not None}

    @model_validator(mode="after")
    def _consistent(self):
        """As far as can be known without the model: the grid of Wan 2.1, which that of every variant lies on."""
        given = self.parameters
        if ("width" in given) != ("height" in given):
            raise ValueError("width and height go together: give both or neither")
        for name, value in given.items():
            try:
                BY_NAME[name].rule.check(name, value, Geometry())
            except InvalidRequest as error:
                raise ValueError(str(error)) from None
        return self


_FIELDS: dict[str, Any] = {p.name: body.field(p) for p in SHAPED}
Shape = create_model("Shape", __base__=OneShape, **_FIELDS)


class Limits(Strict):
    """The hard bounds of a run; whichever is reached first ends the arrivals."""

    requests: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    seconds: Seconds = 60
    drain_seconds: Seconds = 60
    request_seconds: Seconds = 3_600
    in_flight: Annotated[int, Field(ge=1, le=20_000)] = 2_000
    warmup_requests: Annotated[int, Field(ge=0, le=1_000)] = 0


Percentiles = dict[Literal["p50", "p90", "p95", "p99", "max", "mean"], Seconds]


class Goodput(Strict):
    """The share of all requests whose video must be there within a time."""

    within_seconds: Seconds
    share: Annotated[float, Field(gt=0, le=1)]


class SLO(Strict):
    """What must hold for exit code 0; an empty section checks nothing but is still reported."""

    wait: Percentiles = Field(default_factory=dict)
    total: Percentiles = Field(default_factory=dict)
    error_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    goodput: Goodput | None = None
    throughput_per_minute: PerMinute | None = None


class Metrics(Strict):
    """Where the metric series of the run's window come from: a Prometheus server, or /metrics read directly."""

    prometheus_url: str | None = None
    scrape: tuple[str, ...] = ()
    every_seconds: Annotated[float, Field(ge=0.2, le=300)] = 2
    names: tuple[str, ...] = (
        "wan_",
        "nv_inference_pending_request_count",
        "nv_inference_request_success",
        "process_resident_memory_bytes",
        "nv_gpu_utilization",
        "nv_gpu_memory_used_bytes",
    )


class Profile(Strict):
    """One load test, whole."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,60}$")]
    seed: int = 1
    target: Target = Target()
    load: Load
    mix: Annotated[tuple[Shape, ...], Field(min_length=1)] = (Shape(name="default"),)
    prompts: Annotated[tuple[str, ...], Field(min_length=1)] = ("a red ball rolls over green grass",)
    limits: Limits = Limits()
    slo: SLO = SLO()
    metrics: Metrics = Metrics()
    workers: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _schemes_fit(self):
        if (self.target.kind == "triton-grpc") != self.target.url.startswith("grpc://"):
            raise ValueError(
                f"target.url is {self.target.url!r}, which does not fit target.kind {self.target.kind!r}: "
                "triton-grpc takes grpc://HOST:PORT, the others http:// or https://"
            )
        return self


def load_profile(path: str | Path, overrides: list[str] | None = None) -> Profile:
    """Read and validate a profile; `overrides` are KEY.PATH=VALUE strings, e.g. `load.per_minute=30`."""
    data = read_yaml(path)
    for text in overrides or []:
        apply_override(data, text)
    return parse(Profile, data, str(path))


def apply_override(data: dict, text: str) -> None:
    """Set one field of the raw profile from KEY.PATH=VALUE; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ProfileError(f"--set {text!r}: allowed: KEY.PATH=VALUE, for example load.per_minute=30")
    *parents, leaf = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ProfileError(f"--set {text!r}: {parent} is not a section of the profile")
    data[leaf] = yaml.safe_load(value)


@dataclass(frozen=True)
class Order:
    """One request that will be sent: `at` is its intended arrival in seconds after the start."""

    index: int
    at: float
    shape: OneShape
    prompt: str
    seed: int

    @property
    def request(self) -> dict:
        """The parameters, by their names."""
        return self.shape.parameters | {"prompt": self.prompt, "seed": self.seed}


def schedule(profile: Profile) -> list[Order]:
    """All requests of an open-loop run, in order of arrival, within the profile's limits."""
    rng = random.Random(profile.seed)
    times: list[float] = []
    for at in _times(profile, rng):
        if at > profile.limits.seconds or len(times) == profile.limits.requests:
            break
        times.append(at)
    return list(orders(profile, times))


def orders(profile: Profile, times: list[float]) -> Iterator[Order]:
    """Give each arrival time a shape, a prompt and a seed; the same times get the same requests."""
    rng = random.Random(profile.seed + 1)  # own stream: a change of the rate does not change what is asked for
    weights = [shape.weight for shape in profile.mix]
    for index, at in enumerate(times):
        shape = rng.choices(profile.mix, weights)[0]
        yield Order(index, at, shape, rng.choice(profile.prompts), rng.randrange(2**31))


def _times(profile: Profile, rng: random.Random) -> Iterator[float]:
    match profile.load:
        case Poisson(per_minute=rate):
            return _poisson(rng, rate / 60)
        case Constant(per_minute=rate):
            return (index * 60 / rate for index in range(profile.limits.requests))
        case Ramp(from_per_minute=low, to_per_minute=high):
            return _ramp(rng, low / 60, high / 60, profile.limits.seconds)
        case Burst() as load:
            return iter(sorted(_burst(rng, load, profile.limits.seconds)))
    raise ValueError("a closed loop has no schedule")


def _poisson(rng: random.Random, rate: float) -> Iterator[float]:
    at = 0.0
    while True:
        at += rng.expovariate(rate)
        yield at


def _ramp(rng: random.Random, low: float, high: float, seconds: float) -> Iterator[float]:
    """Thinning: draw at the highest rate, keep with probability rate(t) / highest (Lewis and Shedler 1979)."""
    peak = max(low, high)
    for at in _poisson(rng, peak):
        if at > seconds:
            return
        if rng.random() * peak <= low + (high - low) * at / seconds:
            yield at


def _burst(rng: random.Random, load: Burst, seconds: float) -> Iterator[float]:
    for number in range(int(seconds / load.every_seconds) + 1):
        yield from [number * load.every_seconds] * load.size
    if load.per_minute:
        for at in _poisson(rng, load.per_minute / 60):
            if at > seconds:
                return
            yield at
