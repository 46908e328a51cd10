"""Settings of the Triton stages, from the environment with the prefix WAN_.

Threads: 0 lets a stage use every core it may run on; the stages of one request run one after another, so they share
the cores rather than divide them. The thread count is part of the numerics: the same seed gives the same bits only
under the same count.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from contract import traces
from wan.attention import BACKENDS, CHOICES
from wan.optimize import LINEAR

SIZE = re.compile(r"(\d+)x(\d+)x(\d+)")


class SettingsError(Exception):
    """A setting has a bad value; the message names the variable, its value and what is allowed."""


class StageSettings(BaseSettings):
    """Read once when a stage starts."""

    model_config = SettingsConfigDict(env_prefix="WAN_", extra="ignore")

    run_dir: Path | None = Field(
        None, description="run directories of requests; without it: no progress, cancel or resume"
    )
    checkpoint_seconds: float = Field(5.0, gt=0, description="least time between two checkpoints of a request")
    preview_seconds: float = Field(1.0, gt=0, description="least time between two previews of a request")
    max_video_bytes: int = Field(1 << 30, gt=0, description="largest video, width x height x frames x 3")
    max_media_bytes: int = Field(64 << 20, gt=0, description="largest picture or clip, as a file or as frames")
    lora_dir: str = Field("", description="directory or bucket (s3://…) of the adapters that requests may name")
    lora_cache_bytes: int = Field(
        4 << 30, ge=0, description="memory for adapters that were used, in each denoise instance"
    )
    storage_endpoint_url: str = Field("", description="S3-compatible servers other than AWS")
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="where denoise runs")
    # The names are listed where they act, which a checker of types cannot follow.
    linear: Literal[LINEAR] = Field(  # type: ignore[valid-type]
        "auto", description="linear layers of the DiT; fp8 loses quality, fp8-fast, with sums of 14 bits, a little more"
    )
    attention: Literal[(*CHOICES, *BACKENDS)] = Field(  # type: ignore[valid-type]
        "auto",
        description="attention of the DiT; auto is the fastest lossless one, measured at the start, auto-8bit may choose one that loses quality, as sage, flash3-fp8, int8 and int8-fp8 do; flash3 and sage need packages of others",
    )
    compile: bool | None = Field(None, description="fuse the elementwise work of the DiT; without it: on a GPU")
    fuse: bool | None = Field(
        None, description="kernels of our own between the DiT's products; without it: on a GPU where they are right"
    )
    compile_dir: Path | None = Field(
        None,
        description="keeps compiled code and the choice of attention, so that a restart finds them; without it: ~/.cache/wan/compiled",
    )
    warm_sizes: Annotated[tuple[tuple[int, int, int], ...], NoDecode] = Field(
        (),
        description="WIDTHxHEIGHTxFRAMES, comma-separated: run before the stage is ready; without it: the default size and those of the plans",
    )
    parallel: str = Field(
        "",
        pattern=r"^((cfg2)?(x?ulysses\d+)?)$",
        description="cfg2, ulyssesN or cfg2xulyssesN: ranks of one video on a CPU; on GPUs --placement of the export says it",
    )
    rank_seconds: float = Field(600.0, gt=0, description="longest step on several ranks; after it one is taken to hang")
    denoise_threads: int = Field(0, ge=0, le=1024, description="threads of the DiT on a CPU")
    encoder_threads: int = Field(0, ge=0, le=1024, description="threads of the text encoder on a CPU")
    decoder_threads: int = Field(0, ge=0, le=1024, description="threads of the VAE decoder on a CPU")
    decoder_weights_on_gpu: float = Field(
        1.0, ge=0, le=1, description="share of the decoder's weights on the GPU, for plans with weight streaming"
    )

    otlp_endpoint: str = Field("", description="an OTLP/HTTP receiver that traces are sent to; without it: off")

    @field_validator("otlp_endpoint")
    @classmethod
    def _traceable(cls, value: str) -> str:
        return traces.check(value)

    @field_validator("warm_sizes", mode="before")
    @classmethod
    def _sizes(cls, value):
        if not isinstance(value, str):
            return value
        sizes = [SIZE.fullmatch(part.strip()) for part in value.split(",") if part.strip()]
        if None in sizes:
            raise ValueError("sizes WIDTHxHEIGHTxFRAMES, comma-separated, for example 832x480x81,480x832x81")
        return tuple(tuple(map(int, size.groups())) for size in sizes)


def load_settings() -> StageSettings:
    """The settings of this process; raises SettingsError."""
    try:
        return StageSettings()
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            name = "WAN_" + "_".join(str(part) for part in problem["loc"]).upper()
            problems.append(f"{name} is {problem['input']!r}; allowed: {_allowed(problem)}")
        raise SettingsError("; ".join(problems)) from error


def _allowed(problem: Mapping[str, Any]) -> str:
    message = problem["msg"]
    for prefix in ("Value error, ", "Input should be ", "String should "):
        message = message.removeprefix(prefix)
    return message[0].lower() + message[1:]


def threads(setting: int) -> int:
    """The thread count a setting stands for on this machine."""
    return setting or len(os.sched_getaffinity(0))
