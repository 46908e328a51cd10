"""How a DiT computes, applied from outside: linear layers, attention, compilation.

The model file knows nothing of this. `optimize` changes a loaded model in place and says what it did. With its
defaults nothing is lost; FP8 and 8-bit attention are approximations that have to be asked for by name.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from wan import attention, compile, fastest, fp8, onednn
from wan.checkpoint import FLOAT32_PARTS
from wan.dit import WanDiT
from wan.errors import InvalidRequest
from wan.fusion import blocks

logger = logging.getLogger(__name__)
USUAL_TOKENS = 4096  # where nobody says how many
LINEAR = ("auto", "dense", "onednn", "fp8", "fp8-fast")


@dataclass(frozen=True)
class Options:
    """Choices at loading time.

    `linear`: dense (PyTorch), onednn (a CPU's), fp8 (lossy), fp8-fast (sums of 14 bits); auto is the fastest lossless one. `attention`: a name of
    `wan.attention.BACKENDS`, auto (the fastest lossless one) or auto-8bit (the fastest one); `tokens` is the length of the
    sequence that it is measured on, `keep` the directory where the choice is kept. `compile`: fuse the elementwise work of
    the blocks; None does where it pays, on a GPU. `fuse`: by kernels of our own; None does where they run and are right.
    """

    linear: str = "auto"
    attention: str = "auto"
    compile: bool | None = None
    tokens: int | None = None
    keep: Path | None = None
    fuse: bool | None = None

    def __post_init__(self):
        if self.linear not in LINEAR:
            raise InvalidRequest("linear", self.linear, ", ".join(LINEAR))

    def compiles(self, device: torch.device) -> bool:
        """Whether blocks on `device` are compiled."""
        if self.compile is None:
            return device.type == "cuda" and compile.missing(device) is None
        return self.compile


def cast(dit: WanDiT, dtype: torch.dtype) -> WanDiT:
    """In place: what `Checkpoint.load_dit` with `dtype` makes of the same weights."""
    for name, parameter in dit.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if FLOAT32_PARTS.search(name) else dtype)
    return dit


def _is_tanh_gelu(layer: nn.Module) -> bool:
    return isinstance(layer, nn.GELU) and layer.approximate == "tanh"


def _linears(dit: nn.Module) -> Iterator[tuple[nn.Module, str, str | None]]:
    """Every nn.Linear as its parent and name, with the name of the GELU that follows it if one does."""
    for parent in list(dit.modules()):
        children = list(parent.named_children())
        for i, (name, layer) in enumerate(children):
            if type(layer) is nn.Linear:
                follower = children[i + 1] if isinstance(parent, nn.Sequential) and i + 1 < len(children) else None
                yield parent, name, follower[0] if follower is not None and _is_tanh_gelu(follower[1]) else None


def use_onednn(dit: nn.Module) -> None:
    """Exchange every nn.Linear, taking in the GELU that follows one."""
    for parent, name, gelu in _linears(dit):
        setattr(parent, name, onednn.OneDNNLinear(getattr(parent, name), gelu=gelu is not None))
        if gelu:
            setattr(parent, gelu, nn.Identity())


class GeluLinear(nn.Module):
    """An nn.Linear, sharing its parameters, with the tanh form of GELU in cuBLASLt's epilogue: before the product is rounded."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cuda:  # there the operator is the exact GELU, which these models were not trained with
            return nn.functional.gelu(nn.functional.linear(x, self.weight, self.bias), approximate="tanh")
        product = torch._addmm_activation(self.bias, x.flatten(0, -2), self.weight.t(), use_gelu=True)
        return product.unflatten(0, x.shape[:-1])


def fuse_gelu(dit: nn.Module) -> None:
    """Take the GELU into the nn.Linear before it, so that the hidden layer, the widest of all, is written once."""
    for parent, name, gelu in _linears(dit):
        if gelu:
            setattr(parent, name, GeluLinear(getattr(parent, name)))
            setattr(parent, gelu, nn.Identity())


def block_linears(dit: WanDiT) -> list[str]:
    """Names of the linear layers inside the blocks, 98 % of the weights."""
    return [f"blocks.{n}" for n, layer in dit.blocks.named_modules() if type(layer) is nn.Linear]


def optimize(dit: WanDiT, options: Options = Options()) -> dict:
    """Apply `options` to `dit` in place; returns what is in use, which also goes into the INFO of every run.

    Raises InvalidRequest if this machine does not have what was asked for, or computes it wrongly.
    """
    heads = dit.config.num_heads, dit.config.head_dim
    # On a CPU the first one is the fastest as a rule, and all processes shall compute the same bits.
    tokens = options.tokens if dit.device.type == "cuda" else None
    backend, dit.attention_ms = fastest.choose(options.attention, dit.device, *heads, tokens, options.keep)
    linear = options.linear
    if linear == "auto":
        linear = "dense" if onednn.missing(dit.device) else "onednn"
    if linear == "onednn" and (reason := onednn.missing(dit.device)):
        raise InvalidRequest("linear", linear, f"auto, dense or fp8 on this machine (onednn {reason})")
    if fast := linear == "fp8-fast":
        linear = "fp8"
    if linear == "fp8":
        fp8.swap_linears(dit, block_linears(dit))
    if linear != "dense" and not onednn.missing(dit.device):
        use_onednn(dit)  # beside FP8: the layers that stay in full precision
    elif dit.device.type == "cuda":
        fuse_gelu(dit)
    for_text = attention.use(dit, backend)
    if fp8.use(dit, fast):
        linear = "fp8-fast" if fast else "fp8"  # also where the checkpoint came with such layers
    fused = _fuse(dit, options)
    if compiled := options.compiles(dit.device):
        compile.compile_blocks(dit)
    dtype = str(dit.dtype).removeprefix("torch.")
    names = {"linear": linear, "attention": backend.name, "text_attention": for_text.name}
    dit.engine = names | {"compiled": compiled, "dtype": dtype} | fused
    return dit.engine


def _fuse(dit: WanDiT, options: Options) -> dict:
    """Exchange the blocks if the kernels are there and right; what INFO says of it, nothing where nobody expects them."""
    if reason := blocks.missing(dit.device):
        if options.fuse:
            raise InvalidRequest("fuse", True, f"false on this machine ({reason})")
        return {}
    if options.fuse is False:
        return {"fused": False}
    if reason := blocks.use(dit, options.tokens or USUAL_TOKENS):
        if options.fuse:
            raise InvalidRequest("fuse", True, f"false on this machine ({reason})")
        logger.warning("the blocks are not fused by our kernels: %s", reason)
        return {"fused": False, "unfused_because": reason}
    return {"fused": True}


def optimized(dit: WanDiT, options: Options = Options()) -> WanDiT:
    """`optimize`, for use in an expression."""
    optimize(dit, options)
    return dit
