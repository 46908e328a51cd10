"""The GPU path as far as a machine without one can follow it: traced on tensors without memory, compiled by the real compilers."""

import json
import subprocess
import sys
from collections import Counter
from functools import cache

import pytest

from tests.conftest import PROJECT_ROOT

pytest.importorskip("triton", reason="the Triton language is not installed")


@cache
def ran(module: str, *arguments: str) -> dict:
    command = [sys.executable, "-m", f"tests.wan.cuda.{module}", *arguments]
    answer = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=280)
    assert answer.returncode == 0, answer.stderr[-3000:]
    return json.loads(answer.stdout.splitlines()[-1])


def gigabytes(found: dict) -> float:
    return sum(size for _, size in found["kernels"])


@pytest.mark.parametrize(
    ("variant", "linear", "sampler", "blocks"),
    [
        ("t2v-1.3b", "dense", "euler", "fused"),
        ("t2v-1.3b", "fp8", "unipc", "plain"),
        ("t2v-14b", "fp8", "dpm++", "fused"),
    ],
)
def test_a_whole_denoise_stays_on_its_device_in_its_types_and_never_waits(variant, linear, sampler, blocks):
    found = ran("denoise", variant, linear, sampler, blocks)
    assert found["latents"] == ["torch.float32", "cuda", [16, 21, 60, 104]]
    assert all(seen == ["torch.float32", "cuda", "torch.float32"] for seen in found["seen"])
    assert found["waits"] == {}
    assert set(found["copies"]) == {"cpu to cuda"}  # noise, texts, timesteps, rotary table; nothing comes back
    assert found["per_step"] == [[0, 0]] * len(found["per_step"])
    assert len(found["per_step"]) == 2


def test_the_operands_of_every_fp8_product_are_laid_out_as_cublaslt_wants_them():
    found = ran("denoise", "t2v-14b", "fp8", "dpm++", "fused")
    assert all(found["products"])
    blocks, branches, steps = 2, 2, 3
    once, each_step = blocks * 2, branches * blocks * 6  # keys and values of the texts; qkv, o, q, o, two of the FFN
    assert len(found["products"]) == once + steps * each_step


def test_a_block_in_fp8_quantises_each_input_once_and_writes_no_float32_queries():
    found = ran("inductor", "t2v-14b", "fp8", "fused")
    assert Counter(found["calls"])["extern_kernels._scaled_mm"] == 6  # q, k and v are one product
    ours = [[name.split(".")[1], size] for name, size in found["kernels"] if name.startswith("wan.")]
    assert Counter(name for name, _ in ours) == {"add_norm": 3, "rms_rotate": 3, "quantize": 3, "add_gated": 1}
    assert max(size for name, size in ours if name == "rms_rotate") < 0.7  # read and written in bfloat16
    assert gigabytes(found) - gigabytes({"kernels": ours}) < 0.001  # what is left between products is of single rows
    assert (
        gigabytes(found) <= 10.3
    )  # 11.6 as the compiler fuses it; 14.0 with q, k, v quantised each and float32 q and k


def test_a_block_in_bfloat16_writes_the_hidden_layer_once():
    found = ran("inductor", "t2v-1.3b", "dense")
    assert any("addmm_activation" in call for call in found["calls"])  # GELU in the product's epilogue
    assert len(found["kernels"]) <= 6
    assert gigabytes(found) <= 2.6
