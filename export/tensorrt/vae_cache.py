"""The feature caches of the VAE's steps as shapes, found by running the network without storage."""

from dataclasses import dataclass

import torch

from wan.config import VAEConfig
from wan.vae import WanVAE
from wan.vae22 import build_vae

PROBE = 8  # latent height and width; every slot has a whole multiple of it


@dataclass(frozen=True)
class CacheSlot:
    """One cache tensor [1, channels, frames, h * scale, w * scale] for latents of h x w."""

    channels: int
    frames: int
    scale: int

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        return 1, self.channels, self.frames, height * self.scale, width * self.scale


def _slots(cache: list[torch.Tensor]) -> list[CacheSlot]:
    return [CacheSlot(slot.shape[1], slot.shape[2], slot.shape[3] // PROBE) for slot in cache]


def _on_meta(config: VAEConfig) -> WanVAE:
    with torch.device("meta"):
        return build_vae(config)


def decoder_slots(config: VAEConfig) -> list[CacheSlot]:
    """The decoder's cache in execution order."""
    latents = torch.empty(1, config.z_dim, 1, PROBE, PROBE, device="meta")
    return _slots(_on_meta(config).decode_step(latents, None)[1])


def encoder_slots(config: VAEConfig) -> list[CacheSlot]:
    """The encoder's cache in execution order."""
    side = PROBE * config.spatial_stride
    frames = torch.empty(1, 3, 1, side, side, device="meta")
    return _slots(_on_meta(config).encode_step(frames, None)[1])
