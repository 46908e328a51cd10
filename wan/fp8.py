"""Linear layers in FP8: E4M3 weights with one scale per output channel, activations with one scale per token.

The model knows nothing of this: `swap_linears` replaces its nn.Linear modules from outside. Both operands are rounded
to E4M3 on every device. A GPU of compute capability 8.9 or higher multiplies them as they are (torch._scaled_mm,
row-wise scales); elsewhere they are dequantised first, so that a CPU shows the quality that a GPU will serve.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan.errors import CheckpointError, InvalidRequest

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
SMALLEST_AMAX = 1e-12  # a row of zeros still needs a scale that is not zero
# cuBLASLt and CUTLASS load FP8 operands 16 bytes at a time (checked by torch._scaled_mm).
MULTIPLE = 16
NATIVE_CAPABILITY = (8, 9)
# Of the hardware's products against float32 ones of the same operands, relative: rounding to bfloat16 makes 0.002.
LARGEST_ERROR = 0.01
LARGEST_FAST_ERROR = 0.03  # with 14 bits
CHECKED_ROWS = 257
SCALE_SUFFIX = "weight_scale"


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [N, K] to E4M3 values [N, K] and float32 scales [N, 1] with x ≈ values * scales; the largest of a row maps to 448."""
    x = x.float()
    scale = x.abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST_AMAX) / E4M3_MAX
    return (x / scale).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3), scale


def dequantize(values: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values in any FP8 type times a scale that broadcasts; the product is rounded once, to `dtype`."""
    return (values.float() * scale.float()).to(dtype)


def is_native(device: torch.device) -> bool:
    """Whether `device` multiplies FP8 matrices in hardware."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= NATIVE_CAPABILITY


def scaled_mm(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, fast: bool = False
) -> Tensor:
    """(x * x_scale) (weight * weight_scale)ᵀ + bias on an FP8-capable GPU, bfloat16 [M, N].

    x E4M3 [M, K], weight E4M3 [N, K] contiguous, scales float32 [M, 1] and [N, 1]. Accumulates in float32, or `fast` in
    the tensor core, which keeps 14 bits only.
    """
    bias = None if bias is None else bias.to(torch.bfloat16)
    return torch._scaled_mm(
        x,
        weight.t(),
        scale_a=x_scale,
        scale_b=weight_scale.t(),
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=fast,
    )


class Fp8Linear(nn.Module):
    """Drop-in for nn.Linear; parameters `weight` E4M3 [out, in], `weight_scale` float32 [out, 1] and `bias`."""

    def __init__(self, in_features: int, out_features: int, bias: bool, device=None):
        super().__init__()
        if in_features % MULTIPLE or out_features % MULTIPLE:
            raise CheckpointError(
                f"an FP8 layer is {in_features} x {out_features}; both must be multiples of {MULTIPLE}"
            )
        self.in_features, self.out_features, self.fast = in_features, out_features, False
        self.weight = nn.Parameter(
            torch.empty(out_features, in_features, dtype=E4M3, device=device), requires_grad=False
        )
        self.weight_scale = nn.Parameter(torch.empty(out_features, 1, device=device), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features, device=device), requires_grad=False) if bias else None

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: nn.Linear) -> "Fp8Linear":
        """Quantise the weights of `linear`."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, linear.weight.device)
        values, scale = quantize_rows(linear.weight)
        layer.weight.data, layer.weight_scale.data = values, scale
        if linear.bias is not None and layer.bias is not None:
            layer.bias.data = linear.bias.detach()
        return layer

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [..., in]
        """The form of an input that `multiply` takes."""
        return quantize_rows(x.reshape(-1, self.in_features))

    def multiply(self, values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """Quantised rows [N, in] to [N, out] in `dtype`."""
        if is_native(values.device):
            return scaled_mm(values, scale, self.weight, self.weight_scale, self.bias, self.fast).to(dtype)
        return self.multiply_exactly(values, scale, dtype)

    def multiply_exactly(self, values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """The same from dequantised operands, on any device."""
        weight = dequantize(self.weight, self.weight_scale, dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.linear(dequantize(values, scale, dtype), weight, bias)

    def forward(self, x: Tensor) -> Tensor:  # [..., in] -> [..., out] in the dtype of x
        return self.multiply(*self.quantize(x), x.dtype).view(*x.shape[:-1], self.out_features)


def apply_each(layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """The outputs of layers that take the same input, which is quantised once for all FP8 layers among them."""
    shared: Any = next((layer.quantize(x) for layer in layers if isinstance(layer, Fp8Linear)), None)
    outputs = []
    for layer in layers:
        if isinstance(layer, Fp8Linear):
            outputs.append(layer.multiply(shared[0], shared[1], x.dtype).view(*x.shape[:-1], layer.out_features))
        else:
            outputs.append(layer(x))
    return outputs


class JoinedLinears(nn.Module):
    """FP8 layers of one input as one layer: quantised once, one product. It and they share one memory."""

    def __init__(self, layers: Sequence[Fp8Linear]):
        super().__init__()
        self.sizes = [layer.out_features for layer in layers]
        self.joined = Fp8Linear(layers[0].in_features, sum(self.sizes), layers[0].bias is not None, "meta")
        for name, _ in list(self.joined.named_parameters()):
            together = torch.cat([getattr(layer, name).data for layer in layers])
            setattr(self.joined, name, nn.Parameter(together, requires_grad=False))
            for layer, part in zip(layers, together.split(self.sizes), strict=True):
                getattr(layer, name).data = part

    def forward(self, layers: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, ...]:
        """As `apply_each` of the layers that it was made of."""
        return self.joined(x).split(self.sizes, dim=-1)


def use(dit: Any, fast: bool = False) -> bool:
    """Let the FP8 layers of `dit` that share an input share its quantisation; returns whether there are any.

    `fast` accumulates with 14 bits. Raises InvalidRequest if the machine does not have that, or if its products are not
    those of the operands.
    """
    layers = [layer for layer in dit.modules() if isinstance(layer, Fp8Linear)]
    if not layers:
        return False
    if fast and not is_native(dit.device):
        raise InvalidRequest("linear", "fp8-fast", "fp8 on this machine, which does not multiply FP8 in hardware")
    for layer in layers:
        layer.fast = fast
    for layer in {(layer.in_features, layer.out_features): layer for layer in layers}.values():
        check(layer, dit.device)
    for block in dit.blocks:
        block.cross_attn.project = apply_each
        three = [block.self_attn.q, block.self_attn.k, block.self_attn.v]
        joinable = all(isinstance(layer, Fp8Linear) for layer in three)
        block.self_attn.project = JoinedLinears(three) if joinable else apply_each
        if joinable:
            block.self_attn.project.joined.fast = fast
    return True


@torch.inference_mode()
def check(layer: Fp8Linear, device: torch.device) -> None:
    """Compare the product of `device` with one in float32, on rows of noise; raises InvalidRequest if they differ."""
    if layer.weight.device != device:  # the layer computes there, but does not lie there
        layer = copy.deepcopy(layer).to(device)
    noise = torch.randn(CHECKED_ROWS, layer.in_features, generator=torch.Generator().manual_seed(0))
    values, scale = layer.quantize(noise.to(device))
    expected = layer.multiply_exactly(values, scale, torch.float32)
    error = ((layer.multiply(values, scale, torch.float32) - expected).norm() / expected.norm()).item()
    bound = LARGEST_FAST_ERROR if layer.fast else LARGEST_ERROR
    if not error <= bound:
        shape = f"{layer.in_features} x {layer.out_features}"
        reason = f"this machine multiplies a layer of {shape} with a relative error of {error:.2g}, not {bound:g}"
        raise InvalidRequest("linear", "fp8", f"auto ({reason})")


def swap_linears(module: nn.Module, names: Iterable[str]) -> None:
    """Replace the nn.Linear modules `names` by Fp8Linear; weights are quantised, those on the meta device stay empty."""
    for name in names:
        linear = module.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            raise CheckpointError(f"{name} is {type(linear).__name__}; only nn.Linear layers have an FP8 form")
        if linear.weight.is_meta:
            layer = Fp8Linear(linear.in_features, linear.out_features, linear.bias is not None, "meta")
        else:
            layer = Fp8Linear.from_linear(linear)
        module.set_submodule(name, layer)
