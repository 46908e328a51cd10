"""8-bit self-attention: INT8 queries and keys, values as they come or FP8. The kernel runs on a GPU, the reference anywhere.

After SageAttention (Zhang et al., arXiv:2410.02367): the mean key is taken off first, which shifts all scores of a
query alike and so changes no probability, but removes the outliers that would waste the eight bits. Scales are per
block of tokens and head. With `fp8_values` probabilities (in 0..1) and values (scaled per channel) are rounded to
e4m3, as in SageAttention2 (arXiv:2411.10958).
"""

import math

import torch
from torch import Tensor

BLOCK_Q, BLOCK_K = 128, 64  # tokens that share a scale; the tile of the kernel
FP8_MAX = 448.0
LOG2_E = 1.0 / math.log(2.0)


def _blocks(x: Tensor, size: int) -> Tensor:
    """[B, S, H, D] to [B, H, N, size, D] in float32, zero-padded to whole blocks."""
    padded = torch.nn.functional.pad(x.float(), (0, 0, 0, 0, 0, -x.shape[1] % size))
    return padded.unflatten(1, (-1, size)).permute(0, 3, 1, 2, 4)


def quantize(x: Tensor, block: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Tokens times `scale`, [B, S, H, D], to INT8 [B, H, N * block, D] and float32 scales [B, H, N]."""
    blocks = _blocks(x, block) * scale
    scales = blocks.abs().amax(dim=(-2, -1)).clamp(min=1e-8) / 127
    quantized = torch.round(blocks / scales[..., None, None]).to(torch.int8)
    return quantized.flatten(2, 3).contiguous(), scales.contiguous()


def quantize_pair(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Quantised queries and smoothed keys with their scales; scores come out in units of log 2, for exp2."""
    smooth = k - k.mean(dim=1, keepdim=True)
    return *quantize(q, BLOCK_Q, LOG2_E * q.shape[-1] ** -0.5), *quantize(smooth, BLOCK_K)


def quantize_values(v: Tensor) -> tuple[Tensor, Tensor]:
    """Values [B, L, H, D] to FP8 [B, L, H, D] and float32 scales per head and channel, [B, 1, H, D]."""
    scale = v.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / FP8_MAX
    return (v.float() / scale).to(torch.float8_e4m3fn), scale


def reference(q: Tensor, k: Tensor, v: Tensor, fp8_values: bool = False) -> Tensor:
    """What the kernel computes, in PyTorch: [B, S, H, D] x [B, L, H, D] to [B, S, H * D] in the dtype of q."""
    q8, q_scale, k8, k_scale = quantize_pair(q, k)
    queries = (q8.unflatten(2, (-1, BLOCK_Q)).float() * q_scale[..., None, None]).flatten(2, 3)[:, :, : q.shape[1]]
    keys = (k8.unflatten(2, (-1, BLOCK_K)).float() * k_scale[..., None, None]).flatten(2, 3)[:, :, : k.shape[1]]
    scores = queries @ keys.transpose(-1, -2)
    weights = torch.exp2(scores - scores.amax(dim=-1, keepdim=True))
    total = weights.sum(dim=-1, keepdim=True)
    if fp8_values:
        v8, v_scale = quantize_values(v)
        weights = (weights * FP8_MAX).to(torch.float8_e4m3fn).float() / FP8_MAX
        values = v8.float() * v_scale
    else:
        weights, values = weights.to(v.dtype).float(), v.float()
    out = weights @ values.transpose(1, 2) / total  # [B, H, S, D]
    return out.transpose(1, 2).flatten(2).to(q.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, fp8_values: bool = False) -> Tensor:
    """8-bit attention, [B, S, H, D] x [B, L, H, D] to [B, S, H * D], by the kernel on a GPU."""
    if not q.is_cuda:
        return reference(q, k, v, fp8_values)
    from wan.attention_kernels.int8 import forward

    return forward(q, k, v, fp8_values)
