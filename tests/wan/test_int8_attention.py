import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.wan.reference import relative_error
from wan import int8_attention
from wan.attention import sdpa

ROOT = str(Path(__file__).parents[2])


def inputs(queries=200, keys=200, heads=2, dim=48, batch=2, dtype=torch.float32):
    torch.manual_seed(0)
    shapes = ((batch, n, heads, dim) for n in (queries, keys, keys))
    return [torch.randn(shape).to(dtype) for shape in shapes]


@pytest.mark.parametrize(("fp8_values", "bound"), [(False, 0.02), (True, 0.06)])
def test_the_reference_is_close_to_exact_attention(fp8_values, bound):
    q, k, v = inputs()
    assert relative_error(int8_attention.reference(q, k, v, fp8_values), sdpa(q, k, v)) < bound


def test_smoothing_the_keys_keeps_a_common_offset_from_costing_precision():
    q, k, v = inputs()
    offset = 30 * torch.randn(1, 1, 2, 48)
    exact = sdpa(q, k, v)  # softmax does not see the offset
    assert relative_error(int8_attention.reference(q, k + offset, v), exact) < 0.02


def test_quantised_blocks_reproduce_the_tokens_to_half_a_step():
    x = torch.randn(1, 130, 2, 16)
    values, scales = int8_attention.quantize(x, 64)
    assert values.shape == (1, 2, 192, 16)
    assert scales.shape == (1, 2, 3)
    restored = (
        (values.unflatten(2, (-1, 64)).float() * scales[..., None, None]).flatten(2, 3)[:, :, :130].transpose(1, 2)
    )
    assert ((restored - x).abs() <= 0.5001 * scales.max()).all()
    assert not values[:, :, 130:].any()


KERNEL = """
import numpy
import torch
import triton.language as tl
from triton.runtime import interpreter

# In bfloat16 Triton's interpreter multiplies the bits as if they were integers.
shipped = interpreter.InterpreterBuilder.create_dot
def wide(x):
    return (x.data.astype(numpy.uint32) << 16).view(numpy.float32)
def dot(self, a, b, d, precision, imprecise):
    if a.dtype.scalar != tl.bfloat16:
        return shipped(self, a, b, d, precision, imprecise)
    return interpreter.TensorHandle(numpy.matmul(wide(a), wide(b), dtype=numpy.float32) + d.data, d.dtype.scalar)
interpreter.InterpreterBuilder.create_dot = dot

from tests.wan.test_int8_attention import inputs
from wan import int8_attention
from wan.attention_kernels.int8 import forward
for sizes in (dict(), dict(queries=70, keys=129, heads=3, dim=128, batch=1)):
    for fp8_values in (False, True):
        q, k, v = inputs(**sizes)
        expected = int8_attention.reference(q, k, v, fp8_values)
        error = ((forward(q, k, v, fp8_values) - expected).abs().max() / expected.abs().max()).item()
        print(sizes, fp8_values, error)
        # rounding to FP8, the interpreter of Triton 3.7 loses the carry into the exponent: 31.5 becomes 16
        assert error < (0.12 if fp8_values else 1e-5), error
    q, k, v = inputs(**sizes, dtype=torch.bfloat16)
    expected = int8_attention.reference(q, k, v).float()
    error = ((forward(q, k, v).float() - expected).norm() / expected.norm()).item()
    print(sizes, "bfloat16", error)
    assert error < 1e-2, error  # probabilities are rounded to bfloat16 under another maximum
"""


def test_the_kernel_computes_what_the_reference_does():
    """In Triton's interpreter, which runs the kernel's own source on a CPU."""
    pytest.importorskip("triton", reason="the Triton language is not installed")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([ROOT, *sys.path])}
    command = [sys.executable, "-c", KERNEL]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
