"""The VAE of Wan 2.2 (TI2V-5B): stride 16 in space, and a parameter-free shortcut around every stage.

Layers, cache and chunks are those of `wan.vae`. What differs: pixels come in squares of two by two as channels, and each
stage adds its input, averaged down (encoder) or duplicated up (decoder), to its output. The shortcuts need no cache:
past the first frame, which stands alone, chunks hold whole groups of frames.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from wan.config import VAEConfig
from wan.vae import Coder, Decoder, Downsample, Encoder, FeatureCache, ResidualBlock, Upsample, WanVAE


def patchify(x: Tensor, patch: int) -> Tensor:
    """Pixels [B, C, T, H, W] to [B, C * patch^2, T, H / patch, W / patch]; the column is the slower index."""
    x = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))  # [B, C, T, h, row, w, column]
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def unpatchify(x: Tensor, patch: int) -> Tensor:
    """The inverse of `patchify`."""
    x = x.unflatten(1, (-1, patch, patch))  # [B, C, column, row, T, h, w]
    return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


def average_down(x: Tensor, out_dim: int, frames: int, space: int) -> Tensor:
    """[B, C, T, H, W] to [B, out_dim, ceil(T / frames), H / space, W / space]: means over neighbouring values.

    A first frame without company is paired with zeros before it.
    """
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % frames, 0))
    x = x.unflatten(4, (-1, space)).unflatten(3, (-1, space)).unflatten(2, (-1, frames))  # [B, C, t, ft, h, fh, w, fw]
    x = x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
    return x.unflatten(1, (out_dim, -1)).mean(dim=2)


def duplicate_up(x: Tensor, out_dim: int, frames: int, space: int, first: bool) -> Tensor:
    """[B, C, T, H, W] to [B, out_dim, T * frames, H * space, W * space]; the video's first frame stays a single one."""
    x = x.repeat_interleave(out_dim * frames * space**2 // x.shape[1], dim=1)
    x = x.unflatten(1, (out_dim, frames, space, space)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    x = x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
    return x[:, :, frames - 1 :] if first else x


class DownStage(Coder):
    def __init__(self, in_dim: int, out_dim: int, blocks: int, down: bool, temporal: bool):
        super().__init__()
        self.out_dim, self.frames, self.space = out_dim, 2 if temporal else 1, 2 if down else 1
        layers: list[nn.Module] = [ResidualBlock(in_dim if i == 0 else out_dim, out_dim) for i in range(blocks)]
        self.downsamples = nn.ModuleList([*layers, *([Downsample(out_dim, temporal)] if down else [])])

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:  # [B, C, T, H, W]
        return self._run(self.downsamples, x, cache) + average_down(x, self.out_dim, self.frames, self.space)


class UpStage(Coder):
    def __init__(self, in_dim: int, out_dim: int, blocks: int, up: bool, temporal: bool):
        super().__init__()
        self.out_dim, self.frames, self.up = out_dim, 2 if temporal else 1, up
        layers: list[nn.Module] = [ResidualBlock(in_dim if i == 0 else out_dim, out_dim) for i in range(blocks)]
        self.upsamples = nn.ModuleList([*layers, *([Upsample(out_dim, temporal, out_dim)] if up else [])])

    def forward(self, x: Tensor, cache: FeatureCache) -> Tensor:  # [B, C, T, H, W]
        y = self._run(self.upsamples, x, cache)
        return y + duplicate_up(x, self.out_dim, self.frames, 2, cache.first) if self.up else y


class StagedEncoder(Encoder):
    @staticmethod
    def _levels(dims: list[int], config: VAEConfig) -> list[nn.Module]:
        down = [*config.temporal_downsample, None]
        return [
            DownStage(in_dim, out_dim, config.num_res_blocks, temporal is not None, bool(temporal))
            for in_dim, out_dim, temporal in zip(dims[:-1], dims[1:], down, strict=True)
        ]


class StagedDecoder(Decoder):
    @staticmethod
    def _levels(dims: list[int], config: VAEConfig) -> list[nn.Module]:
        up = [*config.temporal_downsample[::-1], None]
        return [
            UpStage(in_dim, out_dim, config.num_res_blocks + 1, temporal is not None, bool(temporal))
            for in_dim, out_dim, temporal in zip(dims[:-1], dims[1:], up, strict=True)
        ]


class Wan22VAE(WanVAE):
    encoder_type, decoder_type = StagedEncoder, StagedDecoder

    def encode_moments(self, frames: Tensor, cache: FeatureCache) -> tuple[Tensor, Tensor]:
        return super().encode_moments(patchify(frames, self.config.patch), cache)

    def _decoded(self, latents: Tensor, cache: FeatureCache) -> Tensor:
        return unpatchify(super()._decoded(latents, cache), self.config.patch)


def build_vae(config: VAEConfig) -> WanVAE:
    """The VAE of either generation, with weights that mean nothing yet."""
    return (Wan22VAE if config.patch > 1 else WanVAE)(config)
