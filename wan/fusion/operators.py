"""The fused operators as PyTorch and its compiler see them: in plain PyTorch, the reference, and on a GPU by our kernels.

`x` is the residual stream, float32 [B, S, C]. Factors [R, C] have one row for all tokens or two: that of the first
`still` tokens of each sample and that of the others.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from wan.dit import rotate
from wan.fp8 import E4M3, quantize_rows


def _by_token(rows: Tensor, length: int, still: int) -> Tensor:
    """Factors [R, C] as [1 or S, C]."""
    if not still:
        return rows[:1]
    return torch.cat([rows[:1].expand(still, -1), rows[1:].expand(length - still, -1)])


def plain_add_gated(x: Tensor, y: Tensor, gate: Tensor, still: int) -> Tensor:
    """x + y * gate."""
    return torch.addcmul(x, y.float(), _by_token(gate, x.shape[1], still))


def plain_add_norm(
    x: Tensor, y: Tensor | None, gate: Tensor | None, z: Tensor | None, weight: Tensor, bias: Tensor,
    eps: float, still: int, store: bool, quantize: bool, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The stream x + y * gate + z (empty unless to `store`) and its LayerNorm * weight + bias [B, S, C] in `dtype`.

    Or, to `quantize`, in E4M3 with scales [B * S, 1], which are empty otherwise.
    """
    if y is not None and gate is not None:
        x = plain_add_gated(x, y, gate, still)
    if z is not None:
        x = x + z
    scale, shift = (_by_token(rows, x.shape[1], still) for rows in (weight, bias))
    normed = torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], None, None, eps), scale)
    stream = x.clone() if store else x.new_empty(0)
    if not quantize:
        return stream, normed.to(dtype), x.new_empty(0)
    values, scales = quantize_rows(normed.flatten(0, 1))
    return stream, values.view(x.shape), scales


def plain_rms_rotate(x: Tensor, weight: Tensor, rotary: Tensor | None, eps: float, head_dim: int) -> Tensor:
    """RMSNorm over the whole width of [B, S, C], then the rotation of each head's channel pairs, in the dtype of x."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    normed = (wide * scale).type_as(x) * weight.type_as(x)
    return normed if rotary is None else rotate(normed.unflatten(-1, (-1, head_dim)), rotary).flatten(-2)


def plain_quantize(x: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """[N, K], through the tanh form of GELU if asked, to E4M3 and scales [N, 1]; in float32 between."""
    return quantize_rows(F.gelu(x.float(), approximate="tanh") if gelu else x)


@torch.library.custom_op("wan::add_gated", mutates_args=())
def add_gated(x: Tensor, y: Tensor, gate: Tensor, still: int) -> Tensor:
    """See `plain_add_gated`."""
    if not x.is_cuda:
        return plain_add_gated(x, y, gate, still)
    from wan.fusion import kernels

    return kernels.add_gated(x, y, gate, still)


@add_gated.register_fake
def _(x, y, gate, still):
    return torch.empty_like(x)


@torch.library.custom_op("wan::add_norm", mutates_args=())
def add_norm(
    x: Tensor, y: Tensor | None, gate: Tensor | None, z: Tensor | None, weight: Tensor, bias: Tensor,
    eps: float, still: int, store: bool, quantize: bool, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """See `plain_add_norm`."""
    if not x.is_cuda:
        return plain_add_norm(x, y, gate, z, weight, bias, eps, still, store, quantize, dtype)
    from wan.fusion import kernels

    return kernels.add_norm(x, y, gate, z, weight, bias, eps, still, store, quantize, dtype)


@add_norm.register_fake
def _(x, y, gate, z, weight, bias, eps, still, store, quantize, dtype):
    scales = x.new_empty(x.shape[0] * x.shape[1], 1) if quantize else x.new_empty(0)
    return (
        torch.empty_like(x) if store else x.new_empty(0),
        torch.empty_like(x, dtype=E4M3 if quantize else dtype),
        scales,
    )


@torch.library.custom_op("wan::rms_rotate", mutates_args=())
def rms_rotate(x: Tensor, weight: Tensor, rotary: Tensor | None, eps: float, head_dim: int) -> Tensor:
    """See `plain_rms_rotate`; x may be a part of wider rows."""
    if not x.is_cuda:
        return plain_rms_rotate(x, weight, rotary, eps, head_dim).contiguous()
    from wan.fusion import kernels

    return kernels.rms_rotate(x, weight, rotary, eps, head_dim)


@rms_rotate.register_fake
def _(x, weight, rotary, eps, head_dim):
    return x.new_empty(x.shape)


@torch.library.custom_op("wan::quantize", mutates_args=())
def quantize(x: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    """See `plain_quantize`."""
    if not x.is_cuda:
        return plain_quantize(x, gelu)
    from wan.fusion import kernels

    return kernels.quantize(x, gelu)


@quantize.register_fake
def _(x, gelu):
    return x.new_empty(x.shape, dtype=E4M3), x.new_empty(x.shape[0], 1, dtype=torch.float32)
