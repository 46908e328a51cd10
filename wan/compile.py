"""Compilation of the DiT's blocks: one block is compiled and serves for all, since they differ in weights only.

What is fused is the elementwise work between the matrix products: norms, modulation, rotation, gates. Compiled code is
kept in a directory, so that a restart finds it. Needs Triton on a GPU and a C++ compiler on a CPU.
"""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from wan.dit import Sources, WanDiT
from wan.errors import InvalidRequest

MAX_LENGTHS = 32  # numbers of tokens that are compiled for; each takes a minute and stays in memory
VARIANTS = 8  # graphs of one length: one or two guidance branches, experts, kinds of linear layers
# What a norm gives is computed again where it is read, in a row that the cache holds, rather than written out in float32.
OPTIONS = {"realize_reads_threshold": 16, "realize_opcount_threshold": 200}
KEPT = Path.home() / ".cache" / "wan" / "compiled"


def missing(device: torch.device) -> str | None:
    """Why nothing can be compiled for `device`, or None if it can."""
    if device.type == "cuda":
        return "needs the package triton" if find_spec("triton") is None else None
    compilers = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return None if any(c and shutil.which(c) for c in compilers) else "needs a C++ compiler"


def keep_in(directory: Path) -> None:
    """Keep compiled code in `directory`, for every compilation of this process and the next ones."""
    directory.mkdir(parents=True, exist_ok=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(directory)  # PyTorch offers no other way to set them
    os.environ["TRITON_CACHE_DIR"] = str(directory / "triton")


class CompiledBlocks:
    """Takes the place of `WanDiT.run_blocks`. Lengths beyond the first MAX_LENGTHS run as they are; `dit.engine` says so.

    The decision is made here and not by PyTorch, which would log a line once and leave INFO wrong.
    """

    def __init__(self, dit: WanDiT):
        self._dit = dit
        self._lengths: set[int] = set()

    def __call__(self, x: Tensor, modulation: Tensor, rotary: Tensor, conditioning: Sources, still: int = 0) -> Tensor:
        length = x.shape[1]
        if len(self._lengths) < MAX_LENGTHS:
            self._lengths.add(length)
        compiled = length in self._lengths
        self._report(compiled, length)
        for block, sources in zip(self._dit.blocks, conditioning.sources, strict=True):
            x = (block if compiled else block.forward)(x, modulation, rotary, sources, still)
        return x

    def _report(self, compiled: bool, length: int) -> None:
        self._dit.engine["compiled"] = compiled
        self._dit.engine.pop("eager_because", None)
        if not compiled:
            reason = f"{length} tokens; {MAX_LENGTHS} other lengths are compiled, which is the limit"
            self._dit.engine["eager_because"] = reason


def compile_blocks(dit: WanDiT) -> None:
    """Compile the blocks of `dit`; the work is done when a length first comes by.

    Raises InvalidRequest if the machine has no compiler.
    """
    if reason := missing(dit.device):
        raise InvalidRequest("compile", True, f"false on this machine ({reason})")
    torch._dynamo.config.recompile_limit = MAX_LENGTHS * VARIANTS
    torch._dynamo.config.accumulated_recompile_limit = MAX_LENGTHS * VARIANTS
    # Folded, every length of prompt would be a shape of its own; cross-attention is 1 % of a real size.
    dit.fold_text = False
    for block in dit.blocks:
        block.compile(
            dynamic=False, options=OPTIONS
        )  # shapes are few and known; a kernel for any shape is slower on each
    dit.run_blocks = CompiledBlocks(dit)  # type: ignore[method-assign]  # in its place
