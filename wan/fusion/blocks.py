"""Blocks of the DiT whose work between matrix products is done by the fused operators, once these have been compared.

Where the next product is in FP8 its operand leaves the operator before it in FP8; a layer of another kind, such as one with
an adapter beside it, gets bfloat16 and does as it always does.
"""

from collections.abc import Iterator
from functools import partial, reduce
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wan.dit import Block, RMSNorm, Source, WanDiT
from wan.fp8 import Fp8Linear, JoinedLinears, dequantize, is_native
from wan.fusion import operators

# Of an operator against plain PyTorch, relative: sums in another order move some values over a rounding edge, by 0.004 of
# themselves in bfloat16 and by 0.06 in FP8.
LARGEST_ERROR = {False: 0.002, True: 0.01}  # in FP8 or not
COMPARED_ROWS = 64  # at each end of a sequence of the size in use


class Rows(NamedTuple):
    """What a linear layer takes: values [B, S, C], in FP8 with scales [B * S, 1]."""

    values: Tensor
    scales: Tensor | None = None


def _multiply(layer: Any, rows: Rows, dtype: torch.dtype) -> Tensor:
    if rows.scales is None:
        return layer(rows.values)
    product = layer.multiply(rows.values.flatten(0, -2), rows.scales, dtype)
    return product.unflatten(0, rows.values.shape[:-1])


def _rows(layer: nn.Module, x: Tensor, gelu: bool = False) -> Rows:
    """`x`, through GELU if asked, as `layer` takes it."""
    if _takes_fp8(layer):
        values, scales = operators.quantize(x.flatten(0, -2), gelu)
        return Rows(values.view(x.shape), scales)
    return Rows(nn.functional.gelu(x, approximate="tanh") if gelu else x)


def _takes_fp8(layer: nn.Module) -> bool:
    """Elsewhere than on a GPU that multiplies FP8 the layer rounds for itself."""
    return isinstance(layer, Fp8Linear) and (is_native(layer.weight.device) or layer.weight.device.type == "cpu")


class FusedBlock(Block):
    """A block that becomes this one keeps its parameters and parts."""

    def forward(
        self, x: Tensor, modulation: Tensor, rotary: Tensor, sources: tuple[Source, ...], still: int = 0
    ) -> Tensor:
        """As `Block.forward`; the stream between attention and feed-forward is written once."""
        rows = self.modulation + modulation
        if rows.shape[0] != 1 + bool(still):  # samples at timesteps of their own: training
            return super().forward(x, modulation, rotary, sources, still)
        shift_sa, scale_sa, gate_sa, shift_ff, scale_ff, gate_ff = rows.unbind(1)
        norm = partial(self._norm, x, still)
        attended = self._self_attention(partial(norm, None, None, None, 1 + scale_sa, shift_sa), rotary)
        to_text = self._as_rows(self.norm3.weight, still), self._as_rows(self.norm3.bias, still)
        told = self._cross_attention(partial(norm, attended, gate_sa, None, *to_text), sources)
        wide, gelu, narrow = self.ffn
        x, normed = norm(attended, gate_sa, told, 1 + scale_ff, shift_ff, True, _takes_fp8(wide))
        hidden = _multiply(wide, normed, self.dtype)
        out = _multiply(narrow, _rows(narrow, hidden, isinstance(gelu, nn.GELU)), self.dtype)
        return operators.add_gated(x, out, gate_ff, still)

    @staticmethod
    def _as_rows(parameter: Tensor, still: int) -> Tensor:
        return parameter.float().expand(1 + bool(still), -1)

    def _norm(self, x, still, y, gate, z, weight, bias, store: bool, fp8: bool) -> tuple[Tensor, Rows]:
        found = operators.add_norm(x, y, gate, z, weight, bias, self.eps, still, store, fp8, self.dtype)
        return found[0], Rows(found[1], found[2] if fp8 else None)

    def _self_attention(self, norm: Any, rotary: Tensor) -> Tensor:
        attention: Any = self.self_attn
        joined = attention.project if isinstance(attention.project, JoinedLinears) else None
        fp8 = joined is not None and _takes_fp8(joined.joined)
        _, normed = norm(False, fp8)
        if fp8:
            q, k, v = _multiply(joined.joined, normed, self.dtype).split(joined.sizes, dim=-1)
        else:
            q, k, v = attention.project((attention.q, attention.k, attention.v), normed.values)
        q, k = (self._rotate(x, own, rotary) for x, own in ((q, attention.norm_q), (k, attention.norm_k)))
        out = attention.attend(*map(attention._heads, (q, k, v)))
        return _multiply(attention.o, _rows(attention.o, out), self.dtype)

    def _cross_attention(self, norm: Any, sources: tuple[Source, ...]) -> Tensor:
        attention: Any = self.cross_attn
        _, normed = norm(False, _takes_fp8(attention.q))
        q = attention._heads(self._rotate(_multiply(attention.q, normed, self.dtype), attention.norm_q, None))
        out = reduce(torch.add, [attention.attend(q, *source) for source in sources])
        return _multiply(attention.o, _rows(attention.o, out), self.dtype)

    def _rotate(self, x: Tensor, norm: RMSNorm, rotary: Tensor | None) -> Tensor:
        return operators.rms_rotate(x, norm.weight, rotary, norm.eps, self.self_attn.head_dim)


def missing(device: torch.device) -> str | None:
    """Why the kernels do not run on `device`, or None if they do."""
    if device.type != "cuda":
        return "needs a CUDA GPU"
    return "needs the package triton" if find_spec("triton") is None else None


def use(dit: WanDiT, tokens: int) -> str | None:
    """Let the blocks of `dit` use the operators; returns why not, where one of them is wrong at `tokens`."""
    if reason := wrong(dit, tokens):
        return reason
    for block in dit.blocks:
        block.__class__ = FusedBlock
    return None


@torch.inference_mode()
def wrong(dit: WanDiT, tokens: int) -> str | None:
    """Why the operators cannot be used for sequences of `tokens`, or None: each is compared with plain PyTorch."""
    try:
        for name, fp8, found, expected in _compared(dit, tokens):
            error = ((found - expected).norm() / expected.norm()).item()
            if not error <= LARGEST_ERROR[fp8]:
                return f"{name} is wrong: relative error {error:.2g}, at most {LARGEST_ERROR[fp8]:g} is right"
    except Exception as failure:  # of Triton, whose errors have no common kind
        return f"fails: {type(failure).__name__}: {failure}"
    return None


def _ends(x: Tensor) -> Tensor:
    """The first and the last tokens of [B, S, ...]."""
    return torch.cat([x[:, :COMPARED_ROWS], x[:, -COMPARED_ROWS:]], dim=1)


def _compared(dit: WanDiT, tokens: int) -> Iterator[tuple[str, bool, Tensor, Tensor]]:
    """Name, whether in FP8, what came out and what should have, for noise [1, tokens, ...] of the model's widths."""
    config, device, dtype, eps = dit.config, dit.device, dit.dtype, dit.config.eps
    generator = torch.Generator(device).manual_seed(0)
    tokens, head_dim = max(tokens, 2 * COMPARED_ROWS), config.head_dim

    def noise(*shape: int, like: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=like)

    x, y = noise(1, tokens, config.dim), noise(1, tokens, config.dim, like=dtype)
    gate, weight, bias = (noise(2, config.dim) for _ in range(3))
    ends = _ends(x), _ends(y)
    for still in (0, COMPARED_ROWS):  # of the first tokens, which both see
        found = operators.add_gated(x, y, gate, still)
        yield "gate and residual", False, _ends(found), operators.plain_add_gated(*ends, gate, still)
        for fp8 in {False, any(map(_takes_fp8, dit.modules()))}:
            rest = (weight, bias, eps, still, True, fp8, dtype)
            found, plain = (
                operators.add_norm(x, y, gate, y, *rest),
                operators.plain_add_norm(*ends, gate, ends[1], *rest),
            )
            yield "residual before a norm", False, _ends(found[0]), plain[0]
            scales = (_ends(found[2].view(1, -1, 1)), plain[2].view(1, -1, 1)) if fp8 else (1.0, 1.0)
            values = (
                dequantize(v, torch.as_tensor(s)) for v, s in zip((_ends(found[1]), plain[1]), scales, strict=True)
            )
            yield "norm", fp8, *values
    parts = noise(1, tokens, 3 * config.dim, like=dtype).split(config.dim, dim=-1)
    rotary, own = noise(1, tokens, 1, head_dim // 2, 2), noise(config.dim, like=dtype)
    for angles in (rotary, None):
        found = operators.rms_rotate(parts[1], own, angles, eps, head_dim)
        plain = operators.plain_rms_rotate(
            _ends(parts[1]), own, angles if angles is None else _ends(angles), eps, head_dim
        )
        yield "norm and rotation", False, _ends(found).float(), plain.float()
    if any(map(_takes_fp8, dit.modules())):
        for width, gelu in ((config.dim, False), (config.ffn_dim, True)):
            h = noise(1, tokens, width, like=dtype)
            found, plain = operators.quantize(h[0], gelu), operators.plain_quantize(_ends(h)[0], gelu)
            values = dequantize(_ends(found[0][None]), _ends(found[1][None])), dequantize(*plain)[None]
            yield "GELU and rounding" if gelu else "rounding", True, *values
