"""The fused operators against plain PyTorch, on noise of the shapes in use, before anything believes them."""

from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import Tensor

from wan.dit import WanDiT
from wan.fp8 import E4M3, dequantize
from wan.fusion import operators

# Relative: sums in another order move some values over a rounding edge, by 0.004 of themselves in bfloat16, 0.06 in FP8.
LARGEST_ERROR = {False: 0.002, True: 0.01}  # in FP8 or not
COMPARED_TOKENS = 64  # at each end of a sequence

Noise = Callable[..., Tensor]  # (*shape, dtype)
Pair = tuple[str, bool, Tensor, Tensor]  # name, whether in FP8, what came out and what should have


@torch.inference_mode()
def wrong(dit: WanDiT, tokens: int, in_fp8: bool) -> str | None:
    """Why the operators cannot be used for sequences of `tokens` at the widths of `dit`, or None."""
    try:
        for name, error, bound in differences(dit, tokens, in_fp8):
            if not error <= bound:
                return f"{name} is wrong: relative error {error:.2g}, at most {bound:g} is right"
    except Exception as failure:  # of Triton, whose errors have no common kind
        return f"fails: {type(failure).__name__}: {failure}"
    return None


def differences(dit: WanDiT, tokens: int, in_fp8: bool) -> Iterator[tuple[str, float, float]]:
    """Of each operator: name, relative error, what is allowed."""
    generator, tokens = torch.Generator(dit.device).manual_seed(0), max(tokens, 2 * COMPARED_TOKENS)

    def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, device=dit.device, dtype=dtype)

    kinds = (False, True) if in_fp8 else (False,)
    compared = chain(_norms(dit, tokens, noise, kinds), _rotations(dit, tokens, noise))
    for name, fp8, found, expected in chain(compared, _roundings(dit, tokens, noise)) if in_fp8 else compared:
        yield name, ((found.float() - expected.float()).norm() / expected.float().norm()).item(), LARGEST_ERROR[fp8]


def _ends(x: Tensor) -> Tensor:
    """The first and the last tokens of [B, S, ...]."""
    return torch.cat([x[:, :COMPARED_TOKENS], x[:, -COMPARED_TOKENS:]], dim=1)


def _wide_ends(values: Tensor, scales: Tensor) -> Tensor:
    """`_ends` of FP8 values [1, S, C] with scales [S, 1], as what they stand for, or of others without any."""
    if not scales.numel():
        return _ends(values)
    return dequantize(_ends(values.view(torch.uint8)).view(E4M3), _ends(scales[None]))


def _norms(dit: WanDiT, tokens: int, noise: Noise, kinds: tuple[bool, ...]) -> Iterator[Pair]:
    width = dit.config.dim
    x, y, gate, weight, bias = (noise(1, tokens, width), noise(1, tokens, width, dtype=dit.dtype), *noise(3, 2, width))
    first, added = _ends(x), _ends(y)
    for still in (0, COMPARED_TOKENS):  # of the first tokens, which both see
        found = operators.add_gated(x, y, gate, still)
        yield "gate and residual", False, _ends(found), operators.plain_add_gated(first, added, gate, still)
        for fp8 in kinds:
            rest = (weight, bias, dit.config.eps, still, True, fp8, dit.dtype)
            stream, values, scales = operators.add_norm(x, y, gate, y, *rest)
            plain = operators.plain_add_norm(first, added, gate, added, *rest)
            yield "residual before a norm", False, _ends(stream), plain[0]
            yield "norm", fp8, _wide_ends(values, scales), _wide_ends(*plain[1:])


def _rotations(dit: WanDiT, tokens: int, noise: Noise) -> Iterator[Pair]:
    width, head_dim = dit.config.dim, dit.config.head_dim
    queries = noise(1, tokens, 3 * width, dtype=dit.dtype).split(width, dim=-1)[1]  # as of one product for q, k and v
    weight, angles = noise(width, dtype=dit.dtype), noise(1, tokens, 1, head_dim // 2, 2)
    for name, rotary in (("norm", None), ("norm and rotation", angles)):
        found = operators.rms_rotate(queries, weight, rotary, dit.config.eps, head_dim)
        there = None if rotary is None else _ends(rotary)
        plain = operators.plain_rms_rotate(_ends(queries), weight, there, dit.config.eps, head_dim)
        yield f"{name} of queries", False, _ends(found), plain


def _roundings(dit: WanDiT, tokens: int, noise: Noise) -> Iterator[Pair]:
    for name, width, gelu in (("rounding", dit.config.dim, False), ("GELU and rounding", dit.config.ffn_dim, True)):
        x = noise(1, tokens, width, dtype=dit.dtype)
        values, scales = operators.quantize(x[0], gelu)
        plain = operators.plain_quantize(_ends(x)[0], gelu)
        yield name, True, _wide_ends(values[None], scales), _wide_ends(plain[0][None], plain[1])
