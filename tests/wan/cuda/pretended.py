"""An H200 that is not there: tensors without memory on it, what PyTorch would ask its driver, and the DiT at real sizes.

For a process of its own: what `install` patches stays so.
"""

import ctypes
import os
import subprocess
import types
from pathlib import Path

import torch
from torch import nn
from torch.utils.cpp_extension import include_paths

from contract.variants import VARIANTS
from wan import fp8
from wan.checkpoint import FLOAT32_PARTS
from wan.config import DiTConfig
from wan.dit import WanDiT
from wan.optimize import block_linears

LIBRARIES = Path(torch.__file__).parent / "lib"
BUILT = Path(__file__).resolve().parents[3] / "build" / "cuda-guard"
CAPABILITY = (9, 0)
SIZES = {row.name: row.sizes for row in VARIANTS if row.sizes}
PROPERTIES = types.SimpleNamespace(
    name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, warp_size=32, max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65536, total_memory=141 << 30, shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472, shared_memory_per_block=49152, max_threads_per_block=1024,
    L2_cache_size=50 << 20, gcnArchName="", is_integrated=0, uuid="none",
)  # fmt: skip


def install_guard() -> None:
    """Compile and load `guard.cpp`; kept between runs of the same PyTorch."""
    library = BUILT / f"{torch.__version__}.so"
    if not library.is_file():
        BUILT.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}")
        include = [f"-I{path}" for path in include_paths()]
        source = Path(__file__).with_name("guard.cpp")
        options = ["-shared", "-fPIC", "-std=c++20", *include, f"-L{LIBRARIES}", "-lc10"]
        subprocess.run(["g++", source, *options, "-o", unfinished], check=True)
        unfinished.rename(library)
    ctypes.CDLL(str(library)).install()


def install() -> None:
    """From here on this process believes in one H200, as long as nothing is computed on it."""
    install_guard()
    torch.cuda.get_device_capability = lambda *_: CAPABILITY
    torch.cuda.mem_get_info = lambda *_: (130 << 30, 140 << 30)
    torch.cuda.get_device_properties = lambda *_: PROPERTIES
    torch.cuda.current_device = lambda: 0


def real_size(name: str, layers: int, linear: str) -> WanDiT:
    """A DiT with the widths of a variant and `layers` blocks, its weights as a checkpoint's are on a GPU."""
    sizes = vars(SIZES[name]) | {"num_layers": layers}
    with torch.device("meta"):
        dit = WanDiT(DiTConfig(**sizes)).eval()
        if linear == "fp8":
            fp8.swap_linears(dit, block_linears(dit))
    for full, parameter in list(dit.named_parameters()):
        owner, _, leaf = full.rpartition(".")
        dtype = torch.float32 if FLOAT32_PARTS.search(full) else torch.bfloat16
        dtype = parameter.dtype if parameter.dtype.itemsize == 1 else dtype
        value = nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device="cuda"), requires_grad=False)
        setattr(dit.get_submodule(owner), leaf, value)
    return dit


@torch.library.custom_op("pretended::attention", mutates_args=())
def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """In the place of kernels that other libraries bring, cuDNN's for one; what is written around it is under test."""
    return q.flatten(2).clone()


@attention.register_fake
def _(q, k, v):
    return q.new_empty(*q.shape[:2], q.shape[2] * q.shape[3])
