"""Compilation of the DiT's blocks: one block is compiled and serves for all, since they differ in weights only.

What is fused is the elementwise work between the matrix products: norms, modulation, rotation, gates. Compiled code is
kept in a directory, so that a restart finds it. Needs Triton on a GPU and a C++ compiler on a CPU.
"""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch

from wan.dit import WanDiT
from wan.errors import InvalidRequest

MAX_SHAPES = 64  # compiled variants of the block: sizes times one or two guidance branches


def missing(device: torch.device) -> str | None:
    """Why nothing can be compiled for `device`, or None if it can."""
    if device.type == "cuda":
        return "needs the package triton" if find_spec("triton") is None else None
    compilers = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return None if any(c and shutil.which(c) for c in compilers) else "needs a C++ compiler"


def keep_in(directory: Path) -> None:
    """Keep compiled code in `directory`, for every compilation of this process and the next ones."""
    directory.mkdir(parents=True, exist_ok=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(directory)  # PyTorch offers no other way to set it


def compile_blocks(dit: WanDiT) -> None:
    """Compile the blocks of `dit`; the work is done when a shape first comes by.

    Raises InvalidRequest if the machine has no compiler.
    """
    if reason := missing(dit.device):
        raise InvalidRequest("compile", True, f"false on this machine ({reason})")
    torch._dynamo.config.recompile_limit = MAX_SHAPES
    # Folded, every length of prompt would be a shape of its own; cross-attention is 1 % of a real size.
    dit.fold_text = False
    for block in dit.blocks:
        block.compile(dynamic=False)  # shapes are few and known; a kernel for any shape is slower on each
