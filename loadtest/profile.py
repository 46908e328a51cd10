"""Load profiles: YAML files that say what to send where, how fast, and what counts as good enough."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from loadtest.errors import ProfileError

PerMinute = Annotated[float, Field(gt=0, le=600_000)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Strict(BaseModel):
    """A section of a profile: frozen, and an unknown key is an error that lists the known ones."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            unknown = sorted(str(key) for key in data if key not in cls.model_fields)
            if unknown:
                raise ValueError(f"unknown field {unknown[0]!r}; allowed: {', '.join(cls.model_fields)}")
        return data


class Target(Strict):
    """Where the load goes. `videos` is the public HTTP API; the others call Triton's ensemble directly."""

    kind: Literal["videos", "triton-grpc", "triton-http"] = "videos"
    url: str = "http://127.0.0.1:3000"
    follow: Literal["events", "polling"] = "events"
    poll_seconds: Seconds = 1.0
    fetch_content: bool = True
    delete: bool = False  # remove each video after it was fetched, outside the measured time
    api_key: str | None = Field(default=None, exclude=True, repr=False)
    model: str = "wan_t2v"

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


class Shape(Strict):
    """One kind of video in the mix; a field left out takes the service's default."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,40}$")]
    weight: Annotated[float, Field(gt=0)] = 1
    width: Annotated[int, Field(ge=16, multiple_of=16)] | None = None
    height: Annotated[int, Field(ge=16, multiple_of=16)] | None = None
    num_frames: Annotated[int, Field(ge=1)] | None = None
    steps: Annotated[int, Field(ge=1, le=1_000)] | None = None
    guidance_scale: Annotated[float, Field(ge=0)] | None = None
    guidance_end: Annotated[float, Field(ge=0, le=1)] | None = None
    cache: Literal["teacache", "magcache"] | None = None
    cache_threshold: Annotated[float, Field(ge=0)] | None = None
    priority: int | str | None = None

    @model_validator(mode="after")
    def _consistent(self):
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height go together: give both or neither")
        if self.num_frames is not None and self.num_frames % 4 != 1:
            raise ValueError(f"num_frames is {self.num_frames}; allowed: 4n + 1 (1, 5, 9, …)")
        return self


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

    wait: Percentiles = {}
    total: Percentiles = {}
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


def read_yaml(path: str | Path) -> dict:
    """A YAML (or JSON) file whose top level is a mapping."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ProfileError(f"{path}: the top level is {type(data).__name__}; allowed: a mapping of fields")
    return data


def parse(model: type[Strict], data: dict, source: str):
    """Validate `data` as `model`; every problem becomes one line that names its field and value."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = error.errors()
        specific = [problem for problem in problems if problem["type"] != "too_short"]  # an empty list of wrong items
        lines = [f"{source}: {_sentence(problem)}" for problem in specific or problems]
        raise ProfileError("\n".join(lines)) from error


def _sentence(problem: dict) -> str:
    tags = {"poisson", "constant", "ramp", "burst", "closed"}  # the union's tag appears in the location; it is no field
    field = ".".join(str(part) for part in problem["loc"] if part not in tags and part != "[key]") or "profile"
    value = problem["input"]
    shown = "" if isinstance(value, (dict, list)) or problem["type"] == "missing" else f" is {value!r}"
    return f"{field}{shown}: {problem['msg'].removeprefix('Value error, ')}"


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
