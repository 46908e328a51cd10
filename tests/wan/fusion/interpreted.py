"""`TRITON_INTERPRET=1 python -m tests.wan.fusion.interpreted`: the kernels on a CPU against plain PyTorch, as JSON.

{"kernel and what was asked of it": relative difference}
"""

import json
from itertools import product

import numpy
import torch
import triton.language as tl
from triton.runtime import interpreter

shipped = interpreter._convert_float


ROUNDED = {tl.float8e4nv: (torch.float8_e4m3fn, torch.uint8), tl.bfloat16: (torch.bfloat16, torch.int16)}


def convert(values, of, to, rounding):
    """To bfloat16 the shipped one cuts off; to FP8 it loses the carry into the exponent: 31.5 becomes 16."""
    if of != tl.float32 or to not in ROUNDED:
        return shipped(values, of, to, rounding)
    kind, bits = ROUNDED[to]
    wide = torch.from_numpy(numpy.ascontiguousarray(values).view(numpy.float32))
    return wide.to(kind).view(bits).numpy().view(f"u{kind.itemsize}").reshape(values.shape)


interpreter._convert_float = convert

from wan.fp8 import dequantize  # noqa: E402  (the interpreter is mended before kernels are made)
from wan.fusion import kernels, operators  # noqa: E402

LENGTH = 9


def difference(found, expected) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def compared(width: int, head_dim: int, dtype: torch.dtype):
    x, rows = torch.randn(2, LENGTH, width), torch.randn(3, 2, width)
    y, z = (torch.randn(2, LENGTH, width).to(dtype) for _ in range(2))
    for still in (0, 4):
        found, plain = (module.add_gated(x, y, rows[0], still) for module in (kernels, plain_form))
        yield f"add_gated still={still}", difference(found, plain)
        for added, fp8 in product((0, 1, 2), (False, True)):
            given = (y, rows[0], z)[:added] if added == 0 else (y, rows[0], z if added == 2 else None)
            given = given or (None, None, None)
            asked = (x, *given, rows[1], rows[2], 1e-6, still, added > 0, fp8, dtype)
            found, plain = kernels.add_norm(*asked), plain_form.add_norm(*asked)
            name = f"add_norm added={added} still={still} fp8={fp8}"
            if added:
                yield name + " stream", difference(found[0], plain[0])
            if fp8:
                found, plain = (dequantize(f[1].flatten(0, 1), f[2]) for f in (found, plain))
            else:
                found, plain = found[1], plain[1]
            yield name, difference(found, plain)
    part, weight = torch.randn(2, LENGTH, 3 * width).to(dtype).split(width, dim=-1)[1], rows[0, 0].to(dtype)
    phase = torch.randn(1, LENGTH, 1, head_dim // 2)
    for rotary in (None, torch.stack([phase.cos(), phase.sin()], -1)):
        found, plain = (m.rms_rotate(part, weight, rotary, 1e-6, head_dim) for m in (kernels, plain_form))
        yield f"rms_rotate rotate={rotary is not None}", difference(found, plain)
    for gelu in (False, True):
        found, plain = (dequantize(*module.quantize(3 * y[0], gelu)) for module in (kernels, plain_form))
        yield f"quantize gelu={gelu}", difference(found, plain)
    assert torch.equal(kernels.quantize(torch.zeros(1, width, dtype=dtype), False)[0].float(), torch.zeros(1, width))


class plain_form:
    add_gated, add_norm = operators.plain_add_gated, operators.plain_add_norm
    rms_rotate, quantize = operators.plain_rms_rotate, operators.plain_quantize


if __name__ == "__main__":
    torch.manual_seed(0)
    answer = {}
    for size in ((96, 48, torch.bfloat16), (80, 40, torch.float32)):
        answer |= {f"{size[0]} {size[2]} {name}": error for name, error in compared(*size)}
    print(json.dumps(answer))
