"""What computes on this machine against float32: attention backends, our kernels among them, FP8 and fused layers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from wan.attention import BACKENDS, LARGEST_ERROR, sdpa
from wan.config import DiTConfig
from wan.dit import WanDiT
from wan.fp8 import LARGEST_ERROR as LARGEST_FP8_ERROR
from wan.fp8 import Fp8Linear, swap_linears
from wan.fusion import blocks, compare
from wan.optimize import GeluLinear, block_linears, cast

QUERIES = 2048  # of the rows of a real sequence: float32 attention of all of them would take minutes
LARGEST_ROUNDING = 0.01


@dataclass(frozen=True)
class Check:
    """`difference()` is relative to float32; `missing` says why it cannot be asked."""

    name: str
    bound: float
    difference: Callable[[], float]
    missing: str | None = None

    def row(self) -> dict:
        """The result as data; an exception of a kernel is a result too."""
        if self.missing:
            return {"name": self.name, "missing": self.missing}
        try:
            error = self.difference()
        except (RuntimeError, ImportError, AssertionError) as failure:  # of kernels that others have built
            return {"name": self.name, "right": False, "failed": str(failure).splitlines()[0]}
        return {"name": self.name, "difference": error, "bound": self.bound, "right": error <= self.bound}


def _relative(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected).norm() / expected.norm()).item()


def _noise(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def _attention(name: str, device: torch.device, tokens: int, heads: int) -> float:
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    q, k, v = (_noise(device, 1, n, heads, 128).to(dtype) for n in (min(tokens, QUERIES), tokens, tokens))
    k = 1.5 * k + 3 * k[:, :1]  # sharp, with channels that all keys share, as in real models
    return _relative(BACKENDS[name].function(q, k, v), sdpa(q.float(), k.float(), v.float()))


def _fp8(device: torch.device, rows: int, inputs: int, outputs: int) -> float:
    with torch.device(device):
        layer = Fp8Linear.from_linear(nn.Linear(inputs, outputs))
    values, scale = layer.quantize(_noise(device, rows, inputs))
    expected = layer.multiply_exactly(values, scale, torch.float32)
    return _relative(layer.multiply(values, scale, torch.float32), expected)


def _gelu(device: torch.device, rows: int, inputs: int, outputs: int) -> float:
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    with torch.device(device):
        layer = nn.Linear(inputs, outputs, dtype=dtype)
    x = _noise(device, rows, inputs).to(dtype)
    exact = nn.functional.linear(x.float(), layer.weight.float(), layer.bias.float())
    return _relative(GeluLinear(layer)(x), nn.functional.gelu(exact, approximate="tanh"))


def _fused(device: torch.device, architecture: dict, tokens: int) -> float:
    with torch.device(device):
        dit = cast(WanDiT(DiTConfig(**architecture | {"num_layers": 1})), torch.bfloat16)
    swap_linears(dit, block_linears(dit))
    return max(error / bound for _, error, bound in compare.differences(dit, tokens, True))


def checks(device: torch.device, architecture: dict, tokens: int) -> Iterator[Check]:
    """At the widths of a DiT and a number of tokens."""
    dim, ffn, heads = (architecture[name] for name in ("dim", "ffn_dim", "num_heads"))
    for name, backend in BACKENDS.items():
        title = f"{name} attention, {tokens} tokens, {heads} heads"
        missing = backend.missing(device)
        yield Check(title, LARGEST_ERROR[backend.lossless], partial(_attention, name, device, tokens, heads), missing)
    for shape in ((dim, dim), (dim, ffn), (ffn, dim)):
        title = f"FP8 product {shape[0]} x {shape[1]}"
        yield Check(title, LARGEST_FP8_ERROR, partial(_fp8, device, min(tokens, QUERIES), *shape))
    yield Check(
        f"operators between products at {dim}, {tokens} tokens, share of what is allowed", 1.0,
        partial(_fused, device, architecture, tokens), blocks.missing(device),
    )  # fmt: skip
    yield Check(
        f"product and GELU {dim} x {ffn}", LARGEST_ROUNDING, partial(_gelu, device, min(tokens, QUERIES), dim, ffn)
    )
