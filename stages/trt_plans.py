"""Whether a TensorRT plan fits this machine: refuse before TensorRT does, saying what to run.

A plan holds compiled kernels: it needs the TensorRT that built it and a GPU of the compute capability that it was
built on, unless it was built to be compatible (TensorRT documentation, Engine Compatibility).
"""

import hashlib
from pathlib import Path

from contract.errors import InvalidRequest
from stages.artifacts import ArtifactError

AMPERE = (8, 0)


def _numbers(text: str) -> tuple[int, ...]:
    """`10.14.1.48.post1` -> (10, 14, 1, 48)."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _version_fits(plan: dict, version: str) -> bool:
    built, here = _numbers(plan["tensorrt"]), _numbers(version)
    if plan["options"]["version_compatible"]:
        return here[:1] == built[:1] and here >= built
    return here[:3] == built[:3]


def _capability_fits(plan: dict, capability: tuple[int, int]) -> bool:
    built = _numbers(plan["compute_capability"])
    if plan["options"]["hardware_compatibility"] == "ampere_plus":
        return capability >= AMPERE
    return capability == built


def check_plan(name: str, plan: dict, version: str, capability: tuple[int, int], command: str) -> None:
    """Compare the manifest's entry of a plan with this machine's TensorRT and GPU; raises ArtifactError."""
    if not _version_fits(plan, version):
        raise ArtifactError(f"{name} was built with TensorRT {plan['tensorrt']}, this machine has {version}; {command}")
    if not _capability_fits(plan, capability):
        here = ".".join(map(str, capability))
        raise ArtifactError(
            f"{name} was built for compute capability {plan['compute_capability']} ({plan['gpu']}), this GPU has {here}; {command}"
        )


def check_content(path: Path, plan: dict, command: str) -> None:
    """Compare a plan file with its manifest entry by size and hash; raises ArtifactError."""
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; {command}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != plan["sha256"]:
        raise ArtifactError(f"{path} is not the plan that the manifest describes (sha256 {digest[:12]}…); {command}")


def check_size(width: int, height: int, sizes: dict | None) -> None:
    """Refuse a video size that the plans were not built for; `sizes` is the manifest's, None where every size will do."""
    if sizes is None or [width, height] in sizes["fixed"]:
        return
    allowed = [f"{w}x{h}" for w, h in sizes["fixed"]]
    if sizes["range"]:
        low, high = sizes["range"]
        if low[0] <= width <= high[0] and low[1] <= height <= high[1]:
            return
        allowed.append(f"{low[0]}x{low[1]} to {high[0]}x{high[1]}")
    raise InvalidRequest("width x height", f"{width}x{height}", ", ".join(allowed))


def profile_index(plan: dict, shapes: dict[str, tuple[int, ...]]) -> int:
    """The first optimization profile that allows these input shapes; raises InvalidRequest listing what is allowed."""
    for i, profile in enumerate(plan["profiles"]):
        limits = profile["shapes"]
        if all(_within(shape, limits[name]) for name, shape in shapes.items() if name in limits):
            return i
    name, shape = next(iter(shapes.items()))
    allowed = ", ".join(_shown(profile, name) for profile in plan["profiles"])
    raise InvalidRequest(
        name, list(shape), f"{allowed}; export again with other --sizes or a --size-range to change that"
    )


def _within(shape: tuple[int, ...], limits: dict) -> bool:
    return len(shape) == len(limits["min"]) and all(
        low <= size <= high for low, size, high in zip(limits["min"], shape, limits["max"], strict=True)
    )


def _shown(profile: dict, name: str) -> str:
    limits = profile["shapes"][name]
    return (
        str(list(limits["opt"]))
        if limits["min"] == limits["max"]
        else f"{list(limits['min'])} to {list(limits['max'])}"
    )
