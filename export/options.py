"""What the command line says about an export."""

from dataclasses import dataclass, field
from pathlib import Path

from export.dit.precision import Precision
from export.tensorrt.builder import PlanOptions


@dataclass(frozen=True)
class Options:
    """Every option of every target; the command line refuses those that its target does not take."""

    denoise_instances: int = 1
    dit: tuple[Path, ...] = ()  # one for each expert
    loras: tuple[tuple[Path, float], ...] = ()
    precision: Precision = field(default_factory=Precision)
    quality: bool = True
    device: str | None = None
    vram: float | None = None  # GiB
    placement: str = "auto"
    gpus: str | None = None
    sizes: str | None = None
    size_range: str | None = None
    max_frames: int | None = None
    plan: PlanOptions = field(default_factory=PlanOptions)
