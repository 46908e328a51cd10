"""Fused blocks in plain PyTorch, as a CPU runs them; `test_kernels.py` has the kernels themselves."""

import copy

import pytest
import torch

from tests.wan.reference import relative_error
from wan import fp8
from wan.config import DiTConfig
from wan.dit import Block, Source, WanDiT, rotary_tables
from wan.errors import InvalidRequest
from wan.fusion import blocks, operators
from wan.fusion.blocks import FusedBlock
from wan.optimize import Options, block_linears, optimize

CONFIG = DiTConfig(dim=96, num_layers=1, num_heads=2, ffn_dim=160, text_dim=32)
CPU = torch.device("cpu")


@pytest.fixture(params=["dense", "fp8"])
def dit(request):
    torch.manual_seed(0)
    model = WanDiT(CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    if request.param == "fp8":
        fp8.swap_linears(model, block_linears(model))
        fp8.use(model)
    return model


def arguments(samples: int, rows: int, still: int) -> tuple:
    torch.manual_seed(1)
    rotary = rotary_tables(CONFIG.rope_dims, (1, 3, 4), CPU)
    text = Source(torch.randn(samples, 5, 2, 48), torch.randn(samples, 5, 2, 48), None)
    return torch.randn(samples, 12, 96), torch.randn(rows, 6, 96), rotary, (text, text), still


@pytest.mark.parametrize(("samples", "rows", "still"), [(1, 1, 0), (2, 1, 0), (2, 2, 4), (2, 2, 0)])
def test_a_fused_block_computes_what_the_block_does(dit, samples, rows, still):
    given = arguments(samples, rows, still)
    expected = dit.blocks[0](*given)
    assert blocks.use(dit, 12) is None
    assert type(dit.blocks[0]) is FusedBlock
    error = relative_error(dit.blocks[0](*given) - given[0], expected - given[0])
    assert error < (2e-6 if isinstance(dit.blocks[0].ffn[0], torch.nn.Linear) else 0.02)


def test_each_distinct_input_is_rounded_once_and_its_products_are_those_of_the_model(dit, monkeypatch):
    fused = copy.deepcopy(dit)
    blocks.use(fused, 12)
    rounded, multiplied = [], []

    def count(name, seen):
        real = getattr(fp8, name)
        monkeypatch.setattr(operators, name, lambda x: seen.append(tuple(x.shape)) or real(x))

    count("quantize_rows", rounded)
    real = fp8.Fp8Linear.multiply
    monkeypatch.setattr(
        fp8.Fp8Linear, "multiply", lambda self, *a: multiplied.append(self.out_features) or real(self, *a)
    )
    monkeypatch.setattr(fp8, "quantize_rows", lambda x: pytest.fail("a layer rounds for itself"))
    fused.blocks[0](*arguments(1, 1, 0))
    in_fp8 = isinstance(dit.blocks[0].ffn[0], fp8.Fp8Linear)
    assert multiplied == ([288, 96, 96, 96, 160, 96] if in_fp8 else [])  # q, k and v are one
    assert rounded == ([(12, 96)] * 5 + [(12, 160)] if in_fp8 else [])


def test_an_adapter_gets_the_input_that_it_knows(dit):
    class Beside(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.bias = base, base.bias

        def forward(self, x):
            return self.base(x) + 0.1 * x.mean(-1, keepdim=True)

    dit.blocks[0].cross_attn.q = Beside(dit.blocks[0].cross_attn.q)
    dit.blocks[0].ffn[0] = Beside(dit.blocks[0].ffn[0])
    given = arguments(1, 1, 0)
    expected = dit.blocks[0](*given)
    blocks.use(dit, 12)
    assert relative_error(dit.blocks[0](*given), expected) < 0.01


@pytest.mark.parametrize("name", ["add_gated", "add_norm", "rms_rotate", "quantize"])
def test_an_operator_that_is_wrong_leaves_the_blocks_as_they_are_and_is_named(dit, name, monkeypatch):
    real = getattr(operators, name)

    def wrong(*given):
        out = real(*given)
        for part in out if isinstance(out, tuple) else (out,):
            if part.dtype == torch.float32:
                part.mul_(1.02)
        return out

    monkeypatch.setattr(operators, name, wrong)
    reason = blocks.use(dit, 12)
    if name == "quantize" and not isinstance(dit.blocks[0].ffn[0], fp8.Fp8Linear):
        assert reason is None  # nothing uses it
    else:
        assert "relative error" in reason or "fails" in reason
        assert type(dit.blocks[0]) is Block


def test_info_says_whether_blocks_are_fused_and_why_not(dit, monkeypatch):
    options = Options(attention="sdpa", compile=False)
    assert "fused" not in optimize(copy.deepcopy(dit), options)  # nobody expects it of a CPU
    with pytest.raises(InvalidRequest, match=r"fuse is True; allowed: false on this machine \(needs a CUDA GPU\)"):
        optimize(copy.deepcopy(dit), Options(fuse=True))
    monkeypatch.setattr(blocks, "missing", lambda device: None)
    assert optimize(copy.deepcopy(dit), options)["fused"] is True
    assert optimize(copy.deepcopy(dit), Options(attention="sdpa", fuse=False))["fused"] is False
    monkeypatch.setattr(operators, "rms_rotate", lambda *_: 1 / 0)
    engine = optimize(dit, options)
    assert (engine["fused"], engine["unfused_because"]) == (False, "fails: ZeroDivisionError: division by zero")
    assert type(dit.blocks[0]) is Block


@pytest.mark.parametrize(("y", "still"), [(False, 0), (True, 5)])
def test_the_shapes_that_the_compiler_is_told_are_those_that_come(y, still):
    from torch._subclasses.fake_tensor import FakeTensorMode

    def shapes(found):
        return [(x.shape, x.dtype, x.is_contiguous()) for x in (found if isinstance(found, tuple) else (found,))]

    def everything():
        x, rows = torch.randn(2, 7, 96), torch.randn(2, 96)
        added = (x, rows, x) if y else (None, None, None)
        yield shapes(operators.add_gated(x, x.bfloat16(), rows, still))
        for fp8_out in (False, True):
            yield shapes(operators.add_norm(x, *added, rows, rows, 1e-6, still, y, fp8_out, torch.bfloat16))
        part = torch.randn(2, 7, 288).split(96, dim=-1)[1]
        yield shapes(operators.rms_rotate(part, rows[0], torch.randn(1, 7, 1, 24, 2) if y else None, 1e-6, 48))
        yield shapes(operators.quantize(x[0].bfloat16(), y))

    real = list(everything())
    with FakeTensorMode():
        assert list(everything()) == real
