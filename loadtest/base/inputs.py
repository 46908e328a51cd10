"""What a user gives: the errors that say in one sentence what is wrong with it, and files that are read strictly.

LoadTestError
├── ProfileError        the profile, forecast or result file must be changed
├── TargetRefused       the address is not loopback and --allow-remote was not given
├── TargetUnavailable   the service does not answer: start it or correct the address
└── ToolError           an external program (perf_analyzer, the service itself) is missing or failed
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator


class LoadTestError(Exception):
    """Root of every error that this package raises on purpose."""


class ProfileError(LoadTestError):
    """An input file is unreadable or a field in it is wrong; the message names file, field and what is allowed."""


class TargetRefused(LoadTestError):
    """The target is not on this machine and the caller did not allow that explicitly."""


class TargetUnavailable(LoadTestError):
    """The target does not answer before the first request is sent."""


class ToolError(LoadTestError):
    """An external program could not be fetched, started or understood."""


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


def _sentence(problem: Mapping[str, Any]) -> str:
    tags = {"poisson", "constant", "ramp", "burst", "closed"}  # the union's tag appears in the location; it is no field
    field = ".".join(str(part) for part in problem["loc"] if part not in tags and part != "[key]") or "profile"
    value = problem["input"]
    shown = "" if isinstance(value, (dict, list)) or problem["type"] == "missing" else f" is {value!r}"
    return f"{field}{shown}: {problem['msg'].removeprefix('Value error, ')}"


def number(low: float, high: float, kind=float):
    """The type of an option of the command line that is a number within bounds."""

    def parse(text: str):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text}; allowed: {low:g} to {high:g}")
        return value

    parse.__name__ = kind.__name__
    return parse
