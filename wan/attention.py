"""Scaled dot-product attention with named backends, chosen by what the machine has.

Every lossless backend computes softmax(q kᵀ / sqrt(D) + bias) v for q [B, S, H, D] and k, v [B, L, H, D], with a
bias that broadcasts to [B, H, S, L], and returns [B, S, H * D]. The lossy ones round q, k (and v), take no bias and
are for self-attention alone: `use` gives cross-attention, where few keys carry the whole text, a lossless one.

`choose` compares a backend with exact attention before it is used: SageAttention 2.2 gave noise on some H100s.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wan import int8_attention, onednn
from wan.errors import InvalidRequest

logger = logging.getLogger(__name__)
CHECKED_TOKENS = 333  # not a multiple of any tile
LARGEST_ERROR = {True: 0.02, False: 0.15}  # lossless or not: of a backend against float32, relative

Attention = Callable[..., Tensor]  # (q, k, v), lossless ones also (q, k, v, bias)


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """PyTorch's own choice of kernel."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias)
    return out.transpose(1, 2).flatten(2)


def cudnn(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """cuDNN's kernel, which on Hopper is ahead of PyTorch's default (FlashAttention-2)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(order, set_priority=True):
        return sdpa(q, k, v, bias)


def flash3(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """FlashAttention-3 (Shah et al. 2024)."""
    if bias is not None:
        return sdpa(q, k, v, bias)
    from flash_attn_interface import flash_attn_func

    out = flash_attn_func(q, k, v)
    return (out[0] if isinstance(out, tuple) else out).flatten(2)


def _fp8_per_head(x: Tensor) -> tuple[Tensor, Tensor]:
    """[B, S, H, D] to E4M3 and float32 scales [B, H]."""
    scale = x.abs().amax(dim=(1, 3)).float().clamp(min=1e-8) / int8_attention.FP8_MAX
    return (x.float() / scale[:, None, :, None]).to(torch.float8_e4m3fn), scale


def flash3_fp8(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention-3 with everything in FP8, a scale per head; the mean key is taken off as in `wan.int8_attention`."""
    from flash_attn_interface import flash_attn_func

    (q8, q_scale), (k8, k_scale), (v8, v_scale) = map(_fp8_per_head, (q, k - k.mean(dim=1, keepdim=True), v))
    out = flash_attn_func(q8, k8, v8, q_descale=q_scale, k_descale=k_scale, v_descale=v_scale)
    return (out[0] if isinstance(out, tuple) else out).flatten(2).to(q.dtype)


def sage(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """SageAttention (Zhang et al. 2024): INT8 queries and keys, FP8 or FP16 values."""
    from sageattention import sageattn

    return sageattn(q, k, v, tensor_layout="NHD").flatten(2)


def int8(q: Tensor, k: Tensor, v: Tensor, fp8_values: bool = False) -> Tensor:
    """Our own: INT8 queries and keys, probabilities and values as they come; the kernel on a GPU, its reference else."""
    if not q.is_cuda:
        return int8_attention.reference(q, k, v, fp8_values)
    from wan.attention_kernels.int8 import forward

    return forward(q, k, v, fp8_values)


def int8_fp8(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`int8` with FP8 probabilities and values."""
    return int8(q, k, v, fp8_values=True)


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def _needs(device: torch.device, least: tuple[int, int], package: str | None = None) -> str | None:
    """Why a CUDA backend does not run on `device`, or None if it does."""
    if device.type != "cuda":
        return "needs a CUDA GPU"
    if _capability(device) < least:
        return f"needs compute capability {least[0]}.{least[1]}, this GPU has {'.'.join(map(str, _capability(device)))}"
    return f"needs the package {package}" if package and find_spec(package) is None else None


def _cudnn_missing(device: torch.device) -> str | None:
    return _needs(device, (9, 0)) or (None if torch.backends.cudnn.is_available() else "needs cuDNN")


def _int8_missing(device: torch.device, least: tuple[int, int]) -> str | None:
    return None if device.type == "cpu" else _needs(device, least, "triton")  # on a CPU its reference runs


@dataclass(frozen=True)
class Backend:
    """A way to compute attention. `missing(device)` says why it does not run there; None if it does.

    A lossless `function` takes (q, k, v, bias or None), a lossy one (q, k, v).
    """

    name: str
    function: Attention
    lossless: bool
    missing: Callable[[torch.device], str | None]


BACKENDS = {
    b.name: b
    for b in (
        Backend("sdpa", sdpa, True, lambda device: None),
        Backend("onednn", onednn.attention, True, onednn.missing),
        Backend("cudnn", cudnn, True, _cudnn_missing),
        Backend("flash3", flash3, True, lambda device: _needs(device, (9, 0), "flash_attn_interface")),
        Backend("flash3-fp8", flash3_fp8, False, lambda device: _needs(device, (9, 0), "flash_attn_interface")),
        Backend("sage", sage, False, lambda device: _needs(device, (8, 0), "sageattention")),
        Backend("int8", int8, False, lambda device: _int8_missing(device, (8, 0))),
        Backend("int8-fp8", int8_fp8, False, lambda device: _int8_missing(device, (8, 9))),
    )
}
PREFERRED = ("flash3", "cudnn", "onednn", "sdpa")  # lossless, as a rule the fastest first
EIGHT_BIT = ("sage", "flash3-fp8", "int8-fp8", "int8")  # likewise
# What a machine may choose from by itself. Who says "auto-8bit" may lose quality, but only to what is faster for it.
CHOICES = {"auto": PREFERRED, "auto-8bit": PREFERRED + EIGHT_BIT}


@lru_cache
@torch.inference_mode()
def wrong(backend: Backend, device: torch.device, heads: int, head_dim: int) -> str | None:
    """Why the results of `backend` on `device` cannot be used, or None if they can."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, CHECKED_TOKENS, heads, head_dim, generator=generator).unbind()
    k = 1.5 * k + 3 * k[:, :1]  # sharp, with channels that all keys share, as in real models
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    q, k, v = (x.to(device, dtype) for x in (q, k, v))
    exact = sdpa(q.float(), k.float(), v.float())
    try:
        error = ((backend.function(q, k, v).float() - exact).norm() / exact.norm()).item()
    except (RuntimeError, ImportError, AssertionError) as failure:  # of kernels that others have built
        return f"fails: {failure}"
    bound = LARGEST_ERROR[backend.lossless]
    return None if error <= bound else f"is wrong: relative error {error:.2g}, at most {bound:g} is right"


def unusable(backend: Backend, device: torch.device, heads: int = 12, head_dim: int = 128) -> str | None:
    """Why `backend` cannot be used, or None."""
    return backend.missing(device) or wrong(backend, device, heads, head_dim)


def usable(names: Iterable[str], device: torch.device, heads: int, head_dim: int) -> list[Backend]:
    """Those of `names` that are there and right; what is there and wrong is logged."""
    found = []
    for backend in (BACKENDS[name] for name in names):
        if backend.missing(device):
            continue
        if reason := wrong(backend, device, heads, head_dim):
            logger.warning("attention %s is installed but %s", backend.name, reason)
        else:
            found.append(backend)
    return found


def choose(name: str, device: torch.device, heads: int = 12, head_dim: int = 128) -> Backend:
    """The backend `name`, or the first of a choice, compared with exact attention; `wan.fastest` measures before it chooses.

    Raises InvalidRequest with the reason if the machine does not have it, or computes it wrongly.
    """
    if name in CHOICES:
        if found := usable(CHOICES[name], device, heads, head_dim):
            return found[0]
        raise InvalidRequest("attention", name, "one whose results are right; this machine has none")
    if name not in BACKENDS:
        raise InvalidRequest("attention", name, ", ".join((*CHOICES, *BACKENDS)))
    reason = unusable(BACKENDS[name], device, heads, head_dim)
    if reason:
        right = ", ".join(n for n, b in BACKENDS.items() if unusable(b, device, heads, head_dim) is None)
        raise InvalidRequest("attention", name, f"{right} on this machine ({name} {reason})")
    return BACKENDS[name]


def use(dit: Any, backend: Backend) -> Backend:
    """Let every block of `dit` attend with `backend`: itself, and, if that loses nothing, to the text.

    Returns the backend for the text.
    """
    heads = dit.config.num_heads, dit.config.head_dim
    for_text = backend if backend.lossless else choose("auto", dit.device, *heads)
    for block in dit.blocks:
        block.self_attn.attend, block.cross_attn.attend = backend.function, for_text.function
    return for_text
