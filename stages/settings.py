"""Settings of the Triton stages, from the environment with the prefix WAN_.

Threads: 0 lets a stage use every core it may run on; the stages of one request run one after another, so they share
the cores rather than divide them. The thread count is part of the numerics: the same seed gives the same bits only
under the same count.
"""

import os
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


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
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="where denoise runs")
    denoise_threads: int = Field(0, ge=0, le=1024, description="threads of the DiT on a CPU")
    encoder_threads: int = Field(0, ge=0, le=1024, description="threads of the text encoder on a CPU")
    decoder_threads: int = Field(0, ge=0, le=1024, description="threads of the VAE decoder on a CPU")
    decoder_weights_on_gpu: float = Field(
        1.0, ge=0, le=1, description="share of the decoder's weights on the GPU, for plans with weight streaming"
    )


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


def _allowed(problem: dict) -> str:
    message = problem["msg"].removeprefix("Input should be ").removeprefix("String should ")
    return message[0].lower() + message[1:]


def threads(setting: int) -> int:
    """The thread count a setting stands for on this machine."""
    return setting or len(os.sched_getaffinity(0))
