"""Adapters beside the weights of a DiT that runs, for as long as a request does.

All LoRAs and LoHas of a request together are one pair of matrices a linear layer, y = W x + b + up (down x), at the cost of
their ranks' sum; LoKrs, whose rank is full, are small products of their own. The layer itself stays as it is, in FP8 too, and
computes its own share as it does without adapters. Ranks are padded with zeros to a few sizes, and a layer that is adapted in
one block is in all, so that compiled code serves them all; it is built again for LoKrs of other sizes.
Differences in full rank are added to the parameters of the request's time; the originals come back with the end.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan import onednn
from wan.dit import SelfAttention, WanDiT
from wan.fp8 import Fp8Linear
from wan.lora import Lora
from wan.onednn import OneDNNLinear
from wan.optimize import GeluLinear

Adapters = Sequence[tuple[Lora, float]]  # with strengths
BLOCK = re.compile(r"blocks\.(\d+)")
RANKS = (16, 32, 64, 128, 256, 512)
LINEAR = (nn.Linear, OneDNNLinear, GeluLinear, Fp8Linear)


def padded(rank: int) -> int:
    """The rank that a pair of `rank` is padded to."""
    return next((size for size in RANKS if size >= rank), -(-rank // RANKS[-1]) * RANKS[-1])


class Kron(nn.Module):
    """left [a, b] ⊗ (up [c, r] down [r, d]), without up left ⊗ down [c, d], of an input [..., b d] in few operations."""

    left: Tensor
    down: Tensor
    up: Tensor | None

    def __init__(self, left: Tensor, down: Tensor, up: Tensor | None):
        super().__init__()
        for name, tensor in (("left", left), ("down", down), ("up", up)):
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # [..., b d] -> [..., a c]
        x = F.linear(x.unflatten(-1, (self.left.shape[1], -1)), self.down)  # [..., b, r]
        x = F.linear(x.transpose(-1, -2), self.left).transpose(-1, -2)  # [..., a, r]
        return (x if self.up is None else F.linear(x, self.up)).flatten(-2)


class AdaptedLinear(nn.Module):
    """A linear layer of any kind with a low-rank pair beside it: down [R, in], up [R, out] and bias [out]; and LoKrs."""

    down: Tensor
    up: Tensor
    added_bias: Tensor | None

    def __init__(self, base: Any, down: Tensor, up: Tensor, bias: Tensor | None, krons: Sequence[Kron] = ()):
        super().__init__()
        self.base, self.krons = base, nn.ModuleList(krons)
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("up", up, persistent=False)
        self.register_buffer("added_bias", bias, persistent=False)
        # an activation that the layer has taken in comes after the sum
        self.gelu = isinstance(base, GeluLinear) or (isinstance(base, OneDNNLinear) and base.gelu)
        self._linear: Any = F.linear if onednn.missing(down.device) else onednn.linear

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor:
        return self.base.bias

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """The pair's output for the input x [..., in] on top of the layer's own y [..., out], in place."""
        # the product adds to what is there, in one pass over the output, which costs more than the multiplication
        y.view(-1, self.up.shape[1]).addmm_(self._linear(x, self.down).flatten(0, -2), self.up)
        for kron in self.krons:
            y.add_(kron(x))
        return y if self.added_bias is None else y.add_(self.added_bias)

    def forward(self, x: Tensor) -> Tensor:
        if not self.gelu:
            return self.add(self.base(x), x)
        if isinstance(self.base, OneDNNLinear):
            return onednn.gelu(self.add(onednn.linear(x, self.weight, self.bias), x))
        return F.gelu(self.add(F.linear(x, self.weight, self.bias), x), approximate="tanh")


class AdaptedProject(nn.Module):
    """In the place of an attention's `project`, which goes on to see its own layers."""

    def __init__(self, project: Any):
        super().__init__()
        self.project = project

    def forward(self, layers: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
        own = [layer.base if isinstance(layer, AdaptedLinear) else layer for layer in layers]
        outputs = self.project(own, x)
        pairs = zip(layers, outputs, strict=True)
        return [layer.add(y, x) if isinstance(layer, AdaptedLinear) else y for layer, y in pairs]


@contextlib.contextmanager
def applied(dit: WanDiT, adapters: Adapters) -> Iterator[None]:
    """`dit` with `adapters` until the block ends; what is exchanged for them comes back untouched."""
    with contextlib.ExitStack() as swaps, torch.no_grad():
        if adapters:
            _apply(dit, adapters, swaps)
        yield


def _apply(dit: WanDiT, adapters: Adapters, swaps: contextlib.ExitStack) -> None:
    modules = dict(dit.named_modules())
    touched = sorted(set().union(*(lora.modules for lora, _ in adapters)))
    linear = {name for name in touched if isinstance(modules[name], LINEAR)}
    _swap_in_full(dit, {name: modules[name] for name in touched}, adapters, swaps)
    for kind in sorted({re.sub(r"^blocks\.\d+", "blocks.*", name) for name in linear}):
        same = [kind.replace("*", str(i)) for i in range(len(dit.blocks))] if "*" in kind else [kind]
        _swap_linears({name: modules[name] for name in same}, modules, adapters, swaps)
    for module in modules.values():
        if isinstance(module, SelfAttention) and any(isinstance(c, AdaptedLinear) for c in module.children()):
            _swap_project(module, swaps)


def _swap_in_full(dit: WanDiT, touched: dict[str, Any], adapters: Adapters, swaps: contextlib.ExitStack) -> None:
    """What differences in full rank change. A block's own are read while an iteration is at it, see `wan.offload`."""
    blocks: dict[int | None, list[str]] = {}
    for name, module in touched.items():
        if not isinstance(module, LINEAR) or _differences(name, module, adapters):
            block = BLOCK.match(name)
            blocks.setdefault(int(block[1]) if block else None, []).append(name)

    def swap(names: list[str]) -> None:
        for name in names:
            exchange = _swap_weight if isinstance(touched[name], LINEAR) else _swap_parameters
            exchange(name, touched[name], adapters, swaps)

    swap(blocks.pop(None, []))
    for i, _ in enumerate(dit.blocks if blocks else ()):
        swap(blocks.get(i, []))


def _swap_parameters(name: str, module: nn.Module, adapters: Adapters, swaps: contextlib.ExitStack) -> None:
    """The changed parameters of a norm, a modulation or a convolution."""
    for leaf, parameter in list(module.named_parameters(recurse=False)):
        changed = parameter.float()
        for lora, strength in adapters:
            changed = lora.add_to(f"{name}.{leaf}".removeprefix("."), changed, strength)
        _exchange(module._parameters, leaf, nn.Parameter(changed.to(parameter.dtype), requires_grad=False), swaps)


def _swap_linears(
    layers: dict[str, Any], modules: dict[str, nn.Module], adapters: Adapters, swaps: contextlib.ExitStack
) -> None:
    """The layers of one kind in all blocks: pairs of one size, and a bias for all where one has it."""
    found = {name: _pair(name, layer, adapters) for name, layer in layers.items()}
    rank = padded(max(down.shape[0] for down, _, _ in found.values()))
    biased = any(bias is not None for _, _, bias in found.values())
    krons = {name: _krons(name, layers, adapters) for name in layers}
    for name, (down, up, bias) in found.items():
        base, more = layers[name], rank - down.shape[0]
        where: dict[str, Any] = {"device": base.bias.device, "dtype": base.bias.dtype}
        down, up = F.pad(down, (0, 0, 0, more)).to(**where), F.pad(up, (0, more)).t().to(**where).contiguous()
        if biased:
            bias = (torch.zeros(up.shape[1]) if bias is None else bias).to(**where)
        owner, _, leaf = name.rpartition(".")
        beside = [kron.to(**where) for kron in krons[name]]
        _exchange(modules[owner]._modules, leaf, AdaptedLinear(base, down, up, bias, beside), swaps)


def _pair(name: str, layer: Any, adapters: Adapters) -> tuple[Tensor, Tensor, Tensor | None]:
    """All adapters of a layer as one: down [R, in], up [out, R] with their strengths in it, and what they add to the bias."""
    out, width = layer.weight.shape
    downs, ups, bias = [torch.zeros(0, width)], [torch.zeros(out, 0)], None
    for lora, strength in adapters:
        if (pair := lora.pair(name)) is not None:
            down, up, scale = pair
            downs.append(down.float().cpu())
            ups.append(strength * scale * up.float().cpu())
        if (added := lora.difference(name + ".bias")) is not None:
            bias = strength * added.float().cpu().flatten() + (0 if bias is None else bias)
        # weights in FP8 take no difference
        if isinstance(layer, Fp8Linear) and (added := lora.difference(name + ".weight")) is not None:
            downs.append(strength * added.float().cpu().reshape(out, width))
            ups.append(torch.eye(out))
    return torch.cat(downs), torch.cat(ups, dim=1), bias


def _krons(name: str, layers: Mapping[str, Any], adapters: Adapters) -> list[Kron]:
    """The LoKrs of a layer with their strengths in them; zeros of one that only others of the `layers` have."""
    made = []
    for lora, strength in adapters:
        if (found := lora.kron(name)) is not None:
            made.append(Kron(strength * found[0], *found[1:]))
        elif (other := next((kron for like in layers if (kron := lora.kron(like)) is not None), None)) is not None:
            made.append(Kron(torch.zeros_like(other[0]), *other[1:]))
    return made


def _differences(name: str, layer: Any, adapters: Adapters) -> list[tuple[Tensor, float]]:
    """Those in full rank of a weight that is not FP8, with their strengths."""
    if isinstance(layer, Fp8Linear):
        return []
    found = [(lora.difference(name + ".weight"), strength) for lora, strength in adapters]
    return [(difference, strength) for difference, strength in found if difference is not None]


def _swap_weight(name: str, layer: Any, adapters: Adapters, swaps: contextlib.ExitStack) -> None:
    changed = layer.weight.float()
    for difference, strength in _differences(name, layer, adapters):
        changed = changed + strength * difference.to(changed.device).float().reshape(changed.shape)
    _exchange(layer._parameters, "weight", nn.Parameter(changed.to(layer.weight.dtype), requires_grad=False), swaps)


def _swap_project(attention: Any, swaps: contextlib.ExitStack) -> None:
    project = attention.project
    where = attention._modules if "project" in attention._modules else attention.__dict__
    _exchange(where, "project", AdaptedProject(project), swaps)


def _exchange(where: dict, name: str, value: Any, swaps: contextlib.ExitStack) -> None:
    """where[name] = value until `swaps` closes; not by attribute, which would change the order of modules."""
    swaps.callback(where.__setitem__, name, where[name])
    where[name] = value
