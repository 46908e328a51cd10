"""Blocks of the DiT whose work between matrix products is done by the fused operators, once these have been compared.

Where the next product is in FP8 its operand leaves the operator before it in FP8; a layer of another kind, such as one with
an adapter beside it, gets bfloat16 and does as it always does.
"""

from functools import partial, reduce
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wan.dit import Block, RMSNorm, Source, WanDiT
from wan.fp8 import Fp8Linear, JoinedLinears, is_native
from wan.fusion import compare, operators


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
    if takes_fp8(layer):
        values, scales = operators.quantize(x.flatten(0, -2), gelu)
        return Rows(values.view(x.shape), scales)
    return Rows(nn.functional.gelu(x, approximate="tanh") if gelu else x)


def takes_fp8(layer: nn.Module) -> bool:
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
        x, normed = norm(attended, gate_sa, told, 1 + scale_ff, shift_ff, True, takes_fp8(wide))
        del attended, told  # as much memory as the widest layer needs
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
        together = attention.project
        if isinstance(together, JoinedLinears) and takes_fp8(together.joined):
            _, normed = norm(False, True)
            q, k, v = _multiply(together.joined, normed, self.dtype).split(together.sizes, dim=-1)
        else:
            _, normed = norm(False, False)
            q, k, v = together((attention.q, attention.k, attention.v), normed.values)
        q, k = (self._rotate(x, own, rotary) for x, own in ((q, attention.norm_q), (k, attention.norm_k)))
        out = attention.attend(*map(attention._heads, (q, k, v)))
        return _multiply(attention.o, _rows(attention.o, out), self.dtype)

    def _cross_attention(self, norm: Any, sources: tuple[Source, ...]) -> Tensor:
        attention: Any = self.cross_attn
        _, normed = norm(False, takes_fp8(attention.q))
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
    in_fp8 = any(takes_fp8(layer) for layer in dit.modules())
    if reason := compare.wrong(dit, tokens, in_fp8):
        return reason
    for block in dit.blocks:
        block.__class__ = FusedBlock
    return None
