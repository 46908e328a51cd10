"""What of a checkpoint fits the GPU of a workstation, where every stage is a PyTorch process on the same card."""

from dataclasses import dataclass

import torch

from export.memory import CONTEXT
from export.placement import GIB, USABLE, PlacementError
from wan.fp8 import NATIVE_CAPABILITY

STAGES = 3  # processes with a CUDA context of their own


@dataclass(frozen=True)
class Needs:
    """Bytes on the GPU: the DiT's weights in either precision, text encoder whole or by layers, and everything else."""

    dit: int
    dit_fp8: int
    text_encoder: int
    text_streamed: int
    rest: int  # decoder, caches and activations


@dataclass(frozen=True)
class Fit:
    """How the stages of one machine compute; `precision` is that of the DiT's weights."""

    device: str
    precision: str
    stream_text_encoder: bool = False


def fit(needs: Needs, memory: int, capability: tuple[int, int], device: str = "cuda:0") -> Fit:
    """The first of these that fits `memory` bytes, lossless ones first; raises PlacementError with the numbers."""
    usable = int(memory * USABLE) - STAGES * CONTEXT - needs.rest
    precisions = {"bfloat16": needs.dit}
    if capability >= NATIVE_CAPABILITY:
        precisions["fp8"] = needs.dit_fp8
    tried = []
    for precision, weights in precisions.items():
        for streamed, text in ((False, needs.text_encoder), (True, needs.text_streamed)):
            if weights + text <= usable:
                return Fit(device, precision, streamed)
            tried.append(f"{precision}{', text encoder streamed' if streamed else ''}: {(weights + text) / GIB:.1f}")
    raise PlacementError(
        f"{device} has {max(usable, 0) / GIB:.1f} GiB for weights beside {needs.rest / GIB:.1f} GiB of activations; needed: "
        + "; ".join(tried)
    )


def find(needs: Needs, device: str | None) -> Fit:
    """For `device`, by default the first GPU of this machine. Raises PlacementError if there is none."""
    if device == "cpu":
        return Fit("cpu", "float32")
    if not torch.cuda.is_available():
        raise PlacementError("PyTorch sees no CUDA GPU here; allowed: --target cpu, or --device cpu to try this target")
    name = "cuda:0" if device in (None, "cuda") else device
    properties = torch.cuda.get_device_properties(name)
    return fit(needs, properties.total_memory, torch.cuda.get_device_capability(name), name)
