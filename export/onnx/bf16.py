"""The networks as strongly typed BF16 graphs for TensorRT, from the same modules as the float32 graphs.

A strongly typed network runs every layer in the type that the graph says, so the precision is decided here, by swapping
parts of the PyTorch module before it is traced:

- Resize runs in float32 between casts: TensorRT has no BF16 Resize.
- RMS norms and softmax run in float32. BF16 has the range of float32, so nothing overflows, but a sum of hundreds of
  squares or exponentials in 8 bits of mantissa loses the small ones. The norms of umT5 already do this in transformers.
- The `wo` of umT5 stays in BF16: its outputs exceed 65504, which overflows float16 but not BF16; that is the reason
  why there is no float16 variant.
- Graph inputs and outputs that other stages see are float32; the caches between two steps are BF16.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from wan import clip
from wan.text import TextEncoder
from wan.vae import AttentionBlock, RMSNorm, WanVAE

BF16 = torch.bfloat16
FLOAT32_SOFTMAX = "wan_float32_softmax"  # a name in transformers' register of attention functions


class _InFloat32(nn.Module):
    """Runs a layer in float32 and returns the type that came in."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.float()).to(x.dtype)


class _Cast(nn.Module):
    """Casts the first argument of a module, its result, or both."""

    def __init__(self, module: nn.Module, into: torch.dtype | None = None, out_of: torch.dtype | None = None):
        super().__init__()
        self.module, self.into, self.out_of = module, into, out_of

    def forward(self, x: Tensor, *rest) -> Tensor:
        y = self.module(x if self.into is None else x.to(self.into), *rest)
        return y if self.out_of is None else y.to(self.out_of)


class _Float32Softmax(AttentionBlock):
    """The attention of the VAE with products in the type of its weights and the softmax in float32."""

    def _attend(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)  # [N, H*W, C]
        scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(1, 2))
        weights = torch.softmax(scores.float(), dim=-1).to(x.dtype)
        return self.proj(torch.matmul(weights, v).transpose(1, 2).unflatten(2, x.shape[2:]))

    @classmethod
    def of(cls, block: AttentionBlock) -> "_Float32Softmax":
        with torch.device("meta"):
            new = cls(block.to_qkv.in_channels)
        new.norm, new.to_qkv, new.proj = block.norm, block.to_qkv, block.proj
        return new


class _Float32ClipSoftmax(clip.Attention):
    """The attention of CLIP in the same way."""

    def forward(self, x: Tensor) -> Tensor:  # [B, L, C]
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(2, 3))
        weights = torch.softmax(scores.float(), dim=-1).to(x.dtype)
        return self.out_proj(torch.matmul(weights, v).transpose(1, 2).flatten(2))


def _swap(module: nn.Module) -> None:
    """Replace, in all of `module`, what must not run in BF16."""
    for name, child in list(module.named_children()):
        if isinstance(child, AttentionBlock):
            child = _Float32Softmax.of(child)
            setattr(module, name, child)
        if isinstance(child, clip.Attention):
            child.__class__ = _Float32ClipSoftmax
        elif isinstance(child, nn.LayerNorm):
            setattr(module, name, _InFloat32(child.float()))
        elif isinstance(child, nn.Upsample | RMSNorm):
            setattr(module, name, _InFloat32(child))
        else:
            _swap(child)


class Bf16Vae(nn.Module):
    """A WanVAE whose steps take and give float32 and compute and remember in BF16; the original is left as it is."""

    def __init__(self, vae: WanVAE):
        super().__init__()
        self.config = vae.config
        self.vae = copy.deepcopy(vae).to(BF16)
        _swap(self.vae)
        # The statistics of the latents apply in float32, outside of these casts.
        casts = {
            "conv2": _Cast(self.vae.conv2, into=BF16),
            "encoder": _Cast(self.vae.encoder, into=BF16),
            "conv1": _Cast(self.vae.conv1, out_of=torch.float32),
        }
        for name, cast in casts.items():
            setattr(self.vae, name, cast)

    def decode_step(self, latents: Tensor, cache: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        frames, cache = self.vae.decode_step(latents, cache)
        return frames.float(), cache

    def encode_step(self, frames: Tensor, cache: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        return self.vae.encode_step(frames, cache)


class Bf16Clip(nn.Module):
    """CLIP's tower that takes and gives float32 and computes in BF16; the original is left as it is."""

    def __init__(self, tower: clip.ClipVision):
        super().__init__()
        self.config = tower.config
        self.clip = copy.deepcopy(tower).to(BF16)
        _swap(self.clip)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.clip(pixels.to(BF16)).float()


def _float32_softmax(
    module, query, key, value, attention_mask, scaling=1.0, position_bias=None, **_
) -> tuple[Tensor, None]:
    """Attention of transformers' umT5, [B, H, L, D] each: products in the type of the weights, scores in float32."""
    scores = torch.matmul(query, key.transpose(2, 3)).float() * scaling
    for bias in (position_bias, attention_mask):
        scores = scores if bias is None else scores + bias.float()
    weights = torch.softmax(scores, dim=-1).to(value.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


def use_float32_softmax(encoder: TextEncoder) -> TextEncoder:
    """Let the attention of a text encoder run with `_float32_softmax`."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(FLOAT32_SOFTMAX, _float32_softmax)
    ALL_MASK_ATTENTION_FUNCTIONS.register(FLOAT32_SOFTMAX, eager_mask)
    network: Any = encoder.encoder
    network.set_attn_implementation(FLOAT32_SOFTMAX)
    return encoder


class Float32Context(nn.Module):
    """A text encoder whose embeddings leave in float32, whatever it computes in."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.encoder(ids, mask).float()
