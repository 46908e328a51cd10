"""How a DiT computes, applied from outside: linear layers, attention, compilation.

The model file knows nothing of this. `optimize` changes a loaded model in place and says what it did. With its
defaults nothing is lost; FP8 and 8-bit attention are approximations that have to be asked for by name.
"""

from dataclasses import dataclass

from torch import nn

from wan import attention, compile, fp8, onednn
from wan.dit import WanDiT
from wan.errors import InvalidRequest

LINEAR = ("auto", "dense", "onednn", "fp8")


@dataclass(frozen=True)
class Options:
    """Choices at loading time.

    `linear`: dense (PyTorch), onednn (a CPU's), fp8 (lossy); auto is the fastest lossless one. `attention`: a name of
    `wan.attention.BACKENDS` or auto. `compile`: fuse the elementwise work of the blocks.
    """

    linear: str = "auto"
    attention: str = "auto"
    compile: bool = False

    def __post_init__(self):
        if self.linear not in LINEAR:
            raise InvalidRequest("linear", self.linear, ", ".join(LINEAR))


def _is_tanh_gelu(layer: nn.Module) -> bool:
    return isinstance(layer, nn.GELU) and layer.approximate == "tanh"


def use_onednn(dit: nn.Module) -> None:
    """Exchange every nn.Linear, taking in the GELU that follows one."""
    for parent in list(dit.modules()):
        children = list(parent.named_children())
        for i, (name, layer) in enumerate(children):
            if type(layer) is not nn.Linear:
                continue
            follower = children[i + 1] if isinstance(parent, nn.Sequential) and i + 1 < len(children) else None
            fused = follower if follower is not None and _is_tanh_gelu(follower[1]) else None
            setattr(parent, name, onednn.OneDNNLinear(layer, gelu=fused is not None))
            if fused is not None:
                setattr(parent, fused[0], nn.Identity())


def block_linears(dit: WanDiT) -> list[str]:
    """Names of the linear layers inside the blocks, 98 % of the weights."""
    return [f"blocks.{n}" for n, layer in dit.blocks.named_modules() if type(layer) is nn.Linear]


def optimize(dit: WanDiT, options: Options = Options()) -> dict:
    """Apply `options` to `dit` in place; returns what is in use, which also goes into the INFO of every run.

    Raises InvalidRequest if this machine does not have what was asked for.
    """
    backend = attention.choose(options.attention, dit.device)
    linear = options.linear
    if linear == "auto":
        linear = "dense" if onednn.missing(dit.device) else "onednn"
    if linear == "onednn" and (reason := onednn.missing(dit.device)):
        raise InvalidRequest("linear", linear, f"auto, dense or fp8 on this machine (onednn {reason})")
    if linear == "fp8":
        fp8.swap_linears(dit, block_linears(dit))
    if linear != "dense" and not onednn.missing(dit.device):
        use_onednn(dit)  # beside FP8: the layers that stay in full precision
    for_text = attention.use(dit, backend)
    if options.compile:
        compile.compile_blocks(dit)
    if any(isinstance(layer, fp8.Fp8Linear) for layer in dit.modules()):
        linear = "fp8"  # also where the checkpoint came with such layers
    dtype = str(dit.dtype).removeprefix("torch.")
    names = {"linear": linear, "attention": backend.name, "text_attention": for_text.name}
    dit.engine = names | {"compiled": options.compile, "dtype": dtype}
    return dit.engine


def optimized(dit: WanDiT, options: Options = Options()) -> WanDiT:
    """`optimize`, for use in an expression."""
    optimize(dit, options)
    return dit
