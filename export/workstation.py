"""What of a checkpoint fits the GPU of a workstation, where every stage is a PyTorch process on the same card."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from export import memory
from export.memory import CONTEXT, DitBytes
from export.placement import GIB, USABLE, PlacementError
from export.tensorrt.vae_cache import decoder_slots, encoder_slots
from wan.config import DiTConfig, TextConfig, VAEConfig
from wan.fp8 import NATIVE_CAPABILITY
from wan.text import TEXT_LENGTH

STAGES = 3  # processes with a CUDA context of their own


@dataclass(frozen=True)
class Networks:
    """The networks of a checkpoint with their parameters' numbers; `encoders` is how many stages take pictures and clips."""

    dit: DiTConfig
    text: TextConfig
    text_parameters: int
    vae: VAEConfig
    vae_parameters: int
    clip_parameters: int
    encoders: int


@dataclass(frozen=True)
class Needs:
    """Bytes: the DiT's weights by precision, lossless ones first, text encoder whole or by layers, and everything else.

    Stages take turns (`stages.turns`): beside weights it is what the one that needs most computes with.
    """

    dit: Mapping[str, DitBytes]
    text_encoder: int
    text_streamed: int
    rest: int

    @classmethod
    def of(cls, networks: Networks, dit: Mapping[str, DitBytes], video: memory.Video) -> "Needs":
        """What `networks` take for `video`; those beside the DiT are in its number type, the VAE in float32."""
        size = memory.FP32 if "float32" in dit else memory.BF16
        table = networks.text.vocab_size * networks.text.d_model
        layer = (networks.text_parameters - table) // networks.text.num_layers
        slots = decoder_slots(networks.vae), *([encoder_slots(networks.vae)] if networks.encoders else [])
        vaes = [memory.vae(networks.vae, networks.vae_parameters, each, video) for each in slots]
        text = memory.text_encoder(networks.text, networks.text_parameters, TEXT_LENGTH, batch=1)
        denoise = memory.denoise(networks.dit, 0, video, networks.vae)
        # decoder and encoder compute in float32, twice what a plan in bfloat16 takes
        computing = [2 * (vae.caches + vae.activations) for vae in vaes]
        computing += [denoise.caches + denoise.activations, 2 * text.activations]
        beside = memory.FP32 * (len(vaes) * networks.vae_parameters + networks.clip_parameters)
        rest = beside + max(computing) + networks.encoders * CONTEXT
        return cls(dit, size * networks.text_parameters, size * (table + 2 * layer), rest)


@dataclass(frozen=True)
class Fit:
    """How the stages of one machine compute; `precision` is that of the DiT's weights, `blocks_on_device` as of `DitBytes`."""

    device: str
    precision: str
    stream_text_encoder: bool = False
    blocks_on_device: int | None = None


def fit(needs: Needs, vram: int, capability: tuple[int, int], device: str = "cuda:0", host: int | None = None) -> Fit:
    """The first of these that fits `vram` bytes, lossless ones first; raises PlacementError with the numbers.

    `host` bytes of the machine's memory may hold weights, by default most of what this one has.
    """
    usable = int(vram * USABLE) - STAGES * CONTEXT - needs.rest
    host, tried = memory.of_host() if host is None else host, []
    for precision, dit in needs.dit.items():
        if precision == "fp8" and capability < NATIVE_CAPABILITY:
            continue
        for streamed, text in ((False, needs.text_encoder), (True, needs.text_streamed)):
            if dit.total + text <= usable:
                return Fit(device, precision, streamed)
            tried.append(f"{precision}{', text encoder streamed' * streamed}: {(dit.total + text) / GIB:.1f}")
        counts = dit.counts[1:]
        if not counts:
            continue
        from_host = dit.on_host(counts[0]) + needs.text_encoder
        fitting = (count for count in counts if dit.on_device(count) + needs.text_streamed <= usable)
        if from_host <= host and (count := next(fitting, None)):
            return Fit(device, precision, True, count)
        least = (dit.on_device(counts[-1]) + needs.text_streamed) / GIB
        tried.append(f"with the DiT's blocks streamed: {least:.1f}, and {from_host / GIB:.1f} of the host's memory")
    raise PlacementError(
        f"{device} has {max(usable, 0) / GIB:.1f} GiB for weights beside {needs.rest / GIB:.1f} GiB that stages compute with, the host"
        f" {host / GIB:.1f}; needed: " + "; ".join(tried)
    )


def find(needs: Needs, device: str | None, vram: int | None = None) -> Fit:
    """For `device`, by default the first GPU of this machine, as if it had `vram` bytes.

    Raises PlacementError if there is none, or if it has less.
    """
    if device == "cpu":
        return Fit("cpu", "float32") if vram is None else fit(needs, vram, (0, 0), "cpu")
    if not torch.cuda.is_available():
        raise PlacementError("PyTorch sees no CUDA GPU here; allowed: --target cpu, or --device cpu to try this target")
    name = "cuda:0" if device in (None, "cuda") else device
    total = torch.cuda.get_device_properties(name).total_memory
    if vram is not None and vram > total:
        raise PlacementError(f"vram is {vram / GIB:g} GiB; allowed: up to the {total / GIB:.1f} that {name} has")
    return fit(needs, vram or total, torch.cuda.get_device_capability(name), name)
