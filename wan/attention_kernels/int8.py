"""Self-attention with INT8 queries and keys: flash attention (Dao et al. 2022) over quantised tiles.

Scores are products of INT8 tiles, scaled to units of log 2; the softmax runs in float32 with a running maximum.
Probabilities and values are multiplied in the dtype of v, or in FP8 with scales per channel. See
`wan.int8_attention` for the quantisation and a reference of the same arithmetic.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from wan.int8_attention import BLOCK_K, BLOCK_Q, FP8_MAX, quantize_pair, quantize_values


@triton.jit
def _kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, q_scale_ptr, k_scale_ptr, v_scale_ptr,
    queries, keys, heads, padded_queries, padded_keys, q_blocks, k_blocks, v_batch_stride, out_batch_stride,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    FP8_VALUES: tl.constexpr, FP8_MAX: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head against all keys.

    q, k: INT8 [B, H, padded, D]; v, out: [B, L or S, H, D]. WIDTH is D rounded up to a power of two.
    """
    block = tl.program_id(0)
    head_index = tl.program_id(1).to(tl.int64)  # b * heads + h
    batch, head = head_index // heads, head_index % heads
    rows, columns, channels = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_K), tl.arange(0, WIDTH)
    in_width = channels < HEAD_DIM
    tokens = block * BLOCK_Q + rows

    q_base = q_ptr + head_index * padded_queries * HEAD_DIM
    q = tl.load(q_base + tokens[:, None] * HEAD_DIM + channels[None, :], mask=in_width[None, :], other=0)
    q_scale = tl.load(q_scale_ptr + head_index * q_blocks + block)
    k_base = k_ptr + head_index * padded_keys * HEAD_DIM
    v_base = v_ptr + batch * v_batch_stride + head * HEAD_DIM

    highest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    accumulated = tl.zeros([BLOCK_Q, WIDTH], tl.float32)
    for start in range(0, keys, BLOCK_K):
        position = start + columns
        k = tl.load(k_base + position[None, :] * HEAD_DIM + channels[:, None], mask=in_width[:, None], other=0)
        scale = q_scale * tl.load(k_scale_ptr + head_index * k_blocks + start // BLOCK_K)
        scores = tl.dot(q, k).to(tl.float32) * scale
        scores = tl.where(position[None, :] < keys, scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - new_highest[:, None])
        shrink = tl.exp2(highest - new_highest)
        total = total * shrink + tl.sum(weights, 1)
        v_mask = (position[:, None] < keys) & in_width[None, :]
        v = tl.load(v_base + position[:, None] * heads * HEAD_DIM + channels[None, :], mask=v_mask, other=0.0)
        if FP8_VALUES:  # noqa: SIM108 (decided at compile time, which a conditional expression is not)
            product = tl.dot((weights * FP8_MAX).to(v.dtype), v)
        else:
            product = tl.dot(weights.to(v.dtype), v)
        accumulated = accumulated * shrink[:, None] + product
        highest = new_highest

    out = accumulated / total[:, None]
    if FP8_VALUES:
        v_scale = tl.load(v_scale_ptr + head_index * HEAD_DIM + channels, mask=in_width, other=0.0)
        out = out * v_scale[None, :] / FP8_MAX
    out_base = out_ptr + batch * out_batch_stride + head * HEAD_DIM
    out_mask = (tokens[:, None] < queries) & in_width[None, :]
    tl.store(
        out_base + tokens[:, None] * heads * HEAD_DIM + channels[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=out_mask,
    )


@torch.library.custom_op("wan::int8_attention", mutates_args=())  # opaque to torch.compile, which fuses around it
def launch(
    q8: Tensor,
    q_scale: Tensor,
    k8: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor,
    queries: int,
    dtype: torch.dtype,
) -> Tensor:
    """Run the kernel on quantised q and k; `v_scale` [B, 1, H, D] is used if v is FP8. Returns [B, queries, H, D]."""
    batch, keys, heads, dim = v.shape
    out = torch.empty(batch, queries, heads, dim, dtype=dtype, device=v.device)
    grid = (triton.cdiv(queries, BLOCK_Q), batch * heads)
    _kernel[grid](
        q8, k8, v, out, q_scale, k_scale, v_scale,
        queries, keys, heads, q8.shape[2], k8.shape[2], q_scale.shape[2], k_scale.shape[2], v.stride(0), out.stride(0),
        HEAD_DIM=dim, WIDTH=triton.next_power_of_2(dim), BLOCK_Q=BLOCK_Q, BLOCK_K=BLOCK_K,
        FP8_VALUES=v.dtype == torch.float8_e4m3fn, FP8_MAX=FP8_MAX, num_warps=8, num_stages=3,
    )  # fmt: skip
    return out


@launch.register_fake
def _(q8, q_scale, k8, k_scale, v, v_scale, queries, dtype):
    return v.new_empty(v.shape[0], queries, *v.shape[2:], dtype=dtype)


def forward(q: Tensor, k: Tensor, v: Tensor, fp8_values: bool = False) -> Tensor:
    """Attention of [B, S, H, D] over [B, L, H, D], [B, S, H * D] in the dtype of q."""
    quantized = quantize_pair(q, k)
    if fp8_values:
        values, v_scale = quantize_values(v)
    else:
        values, v_scale = v.contiguous(), v.new_empty(0)
    return launch(*quantized, values.contiguous(), v_scale, q.shape[1], q.dtype).flatten(2)
