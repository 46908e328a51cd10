"""`python -m tests.wan.cuda.denoise VARIANT LINEAR SAMPLER BLOCKS`: a whole denoise traced on a pretended H200, as JSON.

No operator may mix devices (fake tensors raise), and what a GPU would wait for is counted.
"""

import collections
import json
import sys
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from contract import Geometry, ModelCard
from contract.parameters import LOSSLESS
from tests.wan.cuda import pretended
from wan import fp8, optimize
from wan.denoise import Conditioning, Denoiser, Expert
from wan.dit import Block, rotary_tables
from wan.fusion.blocks import FusedBlock

SIZE = {"width": 832, "height": 480, "num_frames": 81}
STEPS = 3
# Operators after which the host waits for the GPU: values it reads, shapes that depend on them, copies to it.
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")


class Watch(TorchDispatchMode):
    """Counts what moves between devices, what waits, and the operands of FP8 products."""

    def __init__(self):
        super().__init__()
        self.copies, self.waits, self.products = collections.Counter(), collections.Counter(), []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        name = operator._overloadpacket.__name__
        devices = [t.device.type for t in tree_leaves(args) if isinstance(t, torch.Tensor)]
        if name in WAITS and "cuda" in devices:
            self.waits[name] += 1
        if name in ("_to_copy", "copy_") and isinstance(out, torch.Tensor):
            source = args[1] if name == "copy_" else args[0]
            if source.device != out.device:
                self.copies[f"{source.device.type} to {out.device.type}"] += 1
        if name == "_scaled_mm":
            self.products.append(laid_out(*args, **(kwargs or {})))
        return out


def laid_out(a, b, scale_a, scale_b, bias=None, scale_result=None, out_dtype=None, use_fast_accum=False) -> bool:
    """Whether cuBLASLt and CUTLASS take the operands: row-wise float32 scales, a by rows, b by columns, 16 bytes at a time."""
    (rows, inner), columns = a.shape, b.shape[1]
    return (
        (scale_a.shape, scale_b.shape) == ((rows, 1), (1, columns))
        and scale_a.dtype == scale_b.dtype == torch.float32
        and scale_a.is_contiguous() and scale_b.is_contiguous()
        and (a.stride(), b.stride()) == ((inner, 1), (1, inner))
        and inner % 16 == columns % 16 == 0
        and (bias is None or bias.dtype == torch.bfloat16)
        and out_dtype == torch.bfloat16
    )  # fmt: skip


def on_host(data, *args, device=None, **kwargs):
    """torch.tensor of numbers is a copy from the host; its own fake form forgets the host."""
    made = REAL(data, *args, **kwargs)
    return made if device is None else made.to(device)


REAL = torch.tensor


def traced(variant: str, linear: str, sampler: str, blocks: str) -> dict:
    pretended.install()
    fp8.check, torch.cuda.synchronize = lambda *_: None, lambda *_: None
    rotary_tables.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True), mock.patch("torch.tensor", on_host):
        dit = pretended.real_size(variant, 2, linear)
        fp8.use(dit)
        optimize.fuse_gelu(dit)
        for block in dit.blocks:
            block.__class__ = {"fused": FusedBlock, "plain": Block}[blocks]
            block.self_attn.attend = block.cross_attn.attend = lambda q, k, v, bias=None: pretended.attention(q, k, v)
        dit.fold_text, dit.engine = False, {}  # as where blocks are compiled
        request = ModelCard().request(
            prompt="a", seed=0, steps=STEPS, guidance_scale=5.0, sampler=sampler, **SIZE | LOSSLESS
        )
        denoiser = Denoiser((Expert(dit),), Geometry())
        texts = Conditioning(torch.zeros(512, 4096), torch.zeros(512, 4096))
        watch, seen, step = Watch(), [], []

        def on_step(progress):
            seen.append([str(progress.x0.dtype), progress.x0.device.type, str(progress.state.latents.dtype)])
            step.append((sum(watch.copies.values()), sum(watch.waits.values())))

        run = Denoiser.run.__wrapped__  # tensors without memory know no inference mode
        with watch, torch.no_grad():
            latents, info = run(denoiser, texts, request, on_step=on_step)
    per_step = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(step, step[1:], strict=False)]
    return {
        "latents": [str(latents.dtype), latents.device.type, list(latents.shape)], "seen": seen, "engine": info.engine,
        "copies": watch.copies, "waits": watch.waits, "per_step": per_step, "products": watch.products,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(traced(*sys.argv[1:5])))
