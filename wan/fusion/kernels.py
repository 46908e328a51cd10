"""The fused operators by Triton: a program has one row, from its first load to its last store in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from wan.fp8 import E4M3, E4M3_MAX, SMALLEST_AMAX

COLUMNS_PER_WARP = 1024  # 32 of each thread
MOST_WARPS = 16


@triton.jit
def _store_quantized(row, x, columns, inside, out_ptr, scale_ptr, WIDTH: tl.constexpr, LARGEST: tl.constexpr,
                     SMALLEST: tl.constexpr):  # fmt: skip
    """One row to E4M3, its largest value to 448."""
    largest = tl.maximum(tl.max(tl.abs(x), 0), SMALLEST)
    tl.store(scale_ptr + row, largest / LARGEST)
    tl.store(out_ptr + row * WIDTH + columns, (x * (LARGEST / largest)).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _add_norm(
    x_ptr, y_ptr, gate_ptr, z_ptr, weight_ptr, bias_ptr, stream_ptr, out_ptr, scale_ptr, length, still, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADDED: tl.constexpr, STORE: tl.constexpr, NORM: tl.constexpr,
    QUANTIZE: tl.constexpr, LARGEST: tl.constexpr, SMALLEST: tl.constexpr,
):  # fmt: skip
    """x + y * gate (if ADDED) + z (if 2); stored, normalised, quantised as told."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    at = row * WIDTH + columns
    factors = tl.where((still > 0) & (row % length >= still), WIDTH, 0) + columns
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    if ADDED:
        y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
        x += y * tl.load(gate_ptr + factors, mask=inside, other=0.0)
    if ADDED == 2:
        x += tl.load(z_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if STORE:
        tl.store(stream_ptr + at, x, mask=inside)
    if NORM:
        centred = tl.where(inside, x - tl.sum(x, 0) / WIDTH, 0.0)
        normed = centred * tl.rsqrt(tl.sum(centred * centred, 0) / WIDTH + eps)
        normed = normed * tl.load(weight_ptr + factors, mask=inside, other=0.0)
        normed += tl.load(bias_ptr + factors, mask=inside, other=0.0)
        if QUANTIZE:
            _store_quantized(row, normed, columns, inside, out_ptr, scale_ptr, WIDTH, LARGEST, SMALLEST)
        else:
            tl.store(out_ptr + at, normed.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rms_rotate(
    x_ptr, weight_ptr, rotary_ptr, out_ptr, row_stride, length, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, ROTATE: tl.constexpr,
):  # fmt: skip
    """Rounded where plain PyTorch rounds: after the norm, after its weight and at the end."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    kind = out_ptr.dtype.element_ty
    x = tl.load(x_ptr + row * row_stride + columns, mask=inside, other=0.0).to(tl.float32)
    normed = (x * tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)).to(kind).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(kind).to(tl.float32)
    normed = (normed * weight).to(kind)
    if ROTATE:
        first, second = tl.split(tl.reshape(normed.to(tl.float32), (BLOCK // 2, 2)))
        pair = tl.arange(0, BLOCK // 2)
        angle = rotary_ptr + (row % length) * HEAD_DIM + 2 * (pair % (HEAD_DIM // 2))
        cos = tl.load(angle, mask=pair < WIDTH // 2, other=0.0)
        sin = tl.load(angle + 1, mask=pair < WIDTH // 2, other=0.0)
        rotated = tl.join(first * cos - second * sin, second * cos + first * sin)
        normed = tl.reshape(rotated, (BLOCK,)).to(kind)
    tl.store(out_ptr + row * WIDTH + columns, normed, mask=inside)


@triton.jit
def _quantize(
    x_ptr, out_ptr, scale_ptr, row_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, GELU: tl.constexpr, LARGEST: tl.constexpr, SMALLEST: tl.constexpr,
):  # fmt: skip
    """A row, through the tanh form of GELU if asked, to E4M3."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    x = tl.load(x_ptr + row * row_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if GELU:  # (1 + tanh(z)) / 2 = sigmoid(2 z); 1.5957... is 2 sqrt(2 / pi)
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    _store_quantized(row, x, columns, inside, out_ptr, scale_ptr, WIDTH, LARGEST, SMALLEST)


def shape(width: int) -> dict[str, int]:
    """How a row of `width` is laid over threads."""
    block = triton.next_power_of_2(width)
    return {"WIDTH": width, "BLOCK": block, "num_warps": min(max(block // COLUMNS_PER_WARP, 1), MOST_WARPS)}


FP8 = {"LARGEST": E4M3_MAX, "SMALLEST": SMALLEST_AMAX}


def add_gated(x: Tensor, y: Tensor, gate: Tensor, still: int) -> Tensor:
    """See `wan.fusion.operators`, as for the next ones."""
    x, y, out = x.contiguous(), y.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    _add_norm[(x.shape[0] * x.shape[1],)](
        x, y, gate.contiguous(), None, None, None, out, None, None, x.shape[1], still, 0.0,
        ADDED=1, STORE=True, NORM=False, QUANTIZE=False, **shape(x.shape[2]), **FP8,
    )  # fmt: skip
    return out


def add_norm(
    x: Tensor, y: Tensor | None, gate: Tensor | None, z: Tensor | None, weight: Tensor, bias: Tensor,
    eps: float, still: int, store: bool, quantize: bool, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, length, width = x.shape
    x = x.contiguous()
    y, gate, z = (None if t is None else t.contiguous() for t in (y, gate, z))
    stream = torch.empty_like(x) if store else x.new_empty(0)
    out = torch.empty_like(x, dtype=E4M3 if quantize else dtype)
    scales = x.new_empty(batch * length, 1) if quantize else x.new_empty(0)
    _add_norm[(batch * length,)](
        x, y, gate, z, weight.contiguous(), bias.contiguous(), stream, out, scales, length, still, eps,
        ADDED=(y is not None) + (z is not None), STORE=store, NORM=True, QUANTIZE=quantize, **shape(width), **FP8,
    )  # fmt: skip
    return stream, out, scales


def rms_rotate(x: Tensor, weight: Tensor, rotary: Tensor | None, eps: float, head_dim: int) -> Tensor:
    batch, length, width = x.shape
    rows = x.flatten(0, 1)  # a view of a part of wider rows, unless there are gaps between samples
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _rms_rotate[(batch * length,)](
        rows, weight, None if rotary is None else rotary.contiguous(), out, rows.stride(0), length, eps,
        HEAD_DIM=head_dim, ROTATE=rotary is not None, **shape(width),
    )  # fmt: skip
    return out


def quantize(x: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    out, scales = torch.empty(x.shape, dtype=E4M3, device=x.device), x.new_empty(x.shape[0], 1, dtype=torch.float32)
    _quantize[(x.shape[0],)](x, out, scales, x.stride(0), GELU=gelu, **shape(x.shape[1]), **FP8)
    return out, scales
