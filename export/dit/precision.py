"""Which tensors of a DiT are stored in which precision.

Only the linear layers inside the blocks are candidates for FP8: they hold 98 % of the weights. Embeddings, the time
path, norms, modulation tables, biases and the head stay in bfloat16 or float32: they are small, and their errors reach
every token. Cross-attention keys and values are counted as attention.
"""

import re
from dataclasses import dataclass

import torch

from wan.checkpoint import FLOAT32_PARTS
from wan.errors import WanError
from wan.fp8 import E4M3, MULTIPLE

# Parts of a block by preset. FP8 attention projections have been seen to collapse long videos where FP8 feed-forward
# layers, two thirds of the work of a short clip, did not; hence the third.
PRESETS: dict[str, frozenset[str]] = {
    "bf16": frozenset(),
    "fp8": frozenset({"self_attn", "cross_attn", "ffn"}),
    "fp8-ffn": frozenset({"ffn"}),
}
_LINEAR = re.compile(r"blocks\.(\d+)\.(self_attn|cross_attn|ffn)\.\w+\.weight$")


class PrecisionError(WanError):
    """The precision that was asked for does not exist or leaves nothing of what it names."""


@dataclass(frozen=True)
class Precision:
    """A preset, and how many blocks at either end of the model it leaves alone."""

    preset: str = "fp8"
    keep_first: int = 0
    keep_last: int = 0

    def __post_init__(self):
        if self.preset not in PRESETS:
            raise PrecisionError(f"precision is {self.preset!r}; allowed: {', '.join(PRESETS)}")
        for name in ("keep_first", "keep_last"):
            if getattr(self, name) < 0:
                raise PrecisionError(f"{name} is {getattr(self, name)}; allowed: 0 or more")
            if getattr(self, name) and not PRESETS[self.preset]:
                raise PrecisionError(
                    f"{name} is {getattr(self, name)}; allowed: 0, as {self.preset} quantises no block"
                )

    def check(self, num_layers: int) -> None:
        """Raises PrecisionError if no block is left to quantise."""
        if PRESETS[self.preset] and self.keep_first + self.keep_last >= num_layers:
            raise PrecisionError(
                f"keep_first {self.keep_first} and keep_last {self.keep_last} leave none of {num_layers} blocks to {self.preset}"
            )

    def dtype(self, name: str, shape: tuple[int, ...], num_layers: int) -> torch.dtype:
        """What the tensor `name` of `shape` is stored in."""
        return E4M3 if self.is_fp8(name, shape, num_layers) else high_precision(name)

    def is_fp8(self, name: str, shape: tuple[int, ...], num_layers: int) -> bool:
        """Whether the tensor `name` of `shape` is stored in FP8."""
        match = _LINEAR.fullmatch(name)
        if not match or len(shape) != 2 or any(size % MULTIPLE for size in shape):
            return False
        block, part = int(match[1]), match[2]
        return part in PRESETS[self.preset] and self.keep_first <= block < num_layers - self.keep_last


def high_precision(name: str) -> torch.dtype:
    """The type of a tensor that is not stored in FP8."""
    return torch.float32 if FLOAT32_PARTS.search(name) else torch.bfloat16


def group(name: str) -> str:
    """The layer group that a manifest names: `self_attn`, `cross_attn`, `ffn`, `time`, `text`, `norm`, `modulation`, `head`, `patch`."""
    for part in ("modulation", "norm", "self_attn", "cross_attn", "ffn", "time", "text", "head", "patch"):
        if part in name:
            return part
    return "other"
