"""Sets of options as text: `teacache=0.1+linear=fp8`."""

from dataclasses import dataclass, field
from typing import Any

from contract.parameters import CACHES, LOSSLESS, PARAMETERS
from loadtest.base.inputs import LoadTestError
from wan.optimize import Options

REQUEST = {p.name: p.rule.python for p in PARAMETERS if p.tensor}
LOADING = ("linear", "attention")
COMPILED = "compile=yes"  # the control: nothing lossy, other kernels

DEFAULT = (
    COMPILED,
    "teacache=0.05", "teacache=0.1", "teacache=0.15", "teacache=0.2", "teacache=0.3",
    "magcache=0.02", "magcache=0.05", "magcache=0.1", "magcache=0.2", "magcache=0.4",
    "guidance_end=0.75", "guidance_end=0.5", "guidance_end=0.25",
    "linear=fp8", "attention=int8", "attention=int8-fp8",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """Options under one name: `request` are parameters of a request, `loading` those of `wan.optimize.Options`."""

    name: str
    request: dict = field(default_factory=dict)
    loading: Options = field(default_factory=Options)

    @property
    def method(self) -> str:
        """What the settings of one curve have in common."""
        return "+".join(part.partition("=")[0] for part in self.name.split("+"))


BASELINE = Setting("baseline", LOSSLESS)


def parse(text: str) -> Setting:
    """Options joined by `+`; raises LoadTestError for a name or value that is unknown."""
    request = dict(BASELINE.request)
    loading: dict[str, Any] = {}
    for part in text.split("+"):
        name, _, value = part.partition("=")
        try:
            if part == COMPILED:
                loading["compile"] = True
            elif name in CACHES:
                request |= {"cache": name, "cache_threshold": float(value)}
            elif name in REQUEST:
                request[name] = REQUEST[name](value)
            elif name in LOADING:
                loading[name] = value
            else:
                allowed = ", ".join((*CACHES, *REQUEST, *LOADING))
                raise LoadTestError(
                    f"option {part!r} is unknown; allowed: NAME=VALUE with a name of {allowed}, or {COMPILED}"
                )
        except ValueError as error:
            raise LoadTestError(f"option {part!r} has a bad value: {error}") from error
    return Setting(text, request, Options(**loading))
