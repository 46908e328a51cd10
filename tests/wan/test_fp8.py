import pytest
import torch
from torch import nn

from wan import fp8
from wan.checkpoint import Checkpoint
from wan.config import DiTConfig
from wan.dit import WanDiT
from wan.errors import CheckpointError, InvalidRequest
from wan.optimize import block_linears


def _linear(out_features: int, in_features: int, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(in_features, out_features)


def test_largest_value_of_a_row_survives_exactly():
    x = torch.tensor([[0.5, -3.0, 1.0], [0.0, 0.0, 0.0], [1e-3, 2e-3, -4e-3]])
    values, scale = fp8.quantize_rows(x)
    restored = fp8.dequantize(values, scale)
    assert torch.allclose(restored.abs().amax(1), x.abs().amax(1), rtol=1e-6)
    assert torch.isfinite(restored).all()


def test_quantisation_error_is_that_of_three_mantissa_bits():
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    values, scale = fp8.quantize_rows(x)
    error = (fp8.dequantize(values, scale) - x).abs()
    normal = x.abs() > scale * 2**-6  # below it the format has fixed steps
    assert (error[normal] <= x.abs()[normal] * 2**-4 * 1.0001).all()
    assert (error[~normal] <= (scale * 2**-10 * 1.0001).expand_as(x)[~normal]).all()


def test_layer_equals_the_product_of_its_rounded_operands():
    linear = _linear(32, 48)
    layer = fp8.Fp8Linear.from_linear(linear)
    x = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(2))
    rounded = fp8.dequantize(*fp8.quantize_rows(x.reshape(10, 48)))
    weight = fp8.dequantize(layer.weight, layer.weight_scale)
    expected = (rounded.double() @ weight.double().T + linear.bias.double()).float().view(2, 5, 32)
    assert torch.allclose(layer(x), expected, atol=1e-5)
    relative = (layer(x) - linear(x)).norm() / linear(x).norm()
    assert 1e-3 < relative < 0.06  # rounded, and not more than the format costs


def test_layer_keeps_the_dtype_of_its_input():
    layer = fp8.Fp8Linear.from_linear(_linear(16, 16))
    assert layer(torch.ones(3, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_sizes_that_the_kernel_cannot_load_are_refused():
    with pytest.raises(CheckpointError, match="24 x 16.*multiples of 16"):
        fp8.Fp8Linear(24, 16, bias=True)


def test_swap_replaces_only_what_is_named_and_refuses_other_modules():
    module = nn.Sequential(_linear(16, 16), nn.GELU(), _linear(16, 16, seed=1))
    fp8.swap_linears(module, ["2"])
    assert isinstance(module[0], nn.Linear)
    assert isinstance(module[2], fp8.Fp8Linear)
    with pytest.raises(CheckpointError, match="1 is GELU"):
        fp8.swap_linears(module, ["1"])


def test_dit_without_scales_loads_as_usual(checkpoint):
    dit = Checkpoint.open(checkpoint).load_dit()
    assert isinstance(dit.blocks[0].ffn[0], nn.Linear)


needs_fp8_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and fp8.is_native(torch.device("cuda"))),
    reason="needs a GPU of compute capability 8.9 or higher",
)
# (out, in) of the linear layers of the 1.3B and the 14B model.
REAL_SHAPES = [(1536, 1536), (8960, 1536), (1536, 8960), (5120, 5120), (13824, 5120), (5120, 13824)]


@needs_fp8_gpu
@pytest.mark.parametrize(("out_features", "in_features"), REAL_SHAPES)
@pytest.mark.parametrize("rows", [1, 77, 4096])
def test_fp8_kernel_agrees_with_dequantised_operands(out_features, in_features, rows):
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(rows, in_features, device="cuda", generator=generator).bfloat16()
    weight = torch.randn(out_features, in_features, device="cuda", generator=generator) / in_features**0.5
    bias = torch.randn(out_features, device="cuda", generator=generator)
    (xq, xs), (wq, ws) = fp8.quantize_rows(x), fp8.quantize_rows(weight)
    ours = fp8.scaled_mm(xq, xs, wq, ws, bias).float()
    exact = fp8.dequantize(xq, xs) @ fp8.dequantize(wq, ws).T + bias
    assert (ours - exact).norm() / exact.norm() < 4e-3  # the output is rounded to bfloat16: 2^-9 at most


def _dit() -> WanDiT:
    torch.manual_seed(0)
    config = DiTConfig(dim=32, num_layers=2, num_heads=2, ffn_dim=48, text_dim=16, freq_dim=16)
    dit = WanDiT(config).eval().requires_grad_(False)
    for block in dit.blocks:
        block.modulation.normal_(std=0.5)
    fp8.swap_linears(dit, block_linears(dit))
    return dit


@torch.no_grad()
def test_queries_keys_and_values_are_quantised_once_with_the_same_result(monkeypatch):
    dit = _dit()
    inputs = torch.randn(1, 16, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 8, 16)
    each = dit(*inputs)
    weights = {name: tensor.clone() for name, tensor in dit.blocks[0].self_attn.q.named_parameters()}
    assert fp8.use(dit)
    quantised = []
    original = fp8.quantize_rows
    monkeypatch.setattr(fp8, "quantize_rows", lambda x: (quantised.append(x.shape), original(x))[1])
    assert torch.equal(dit(*inputs), each)
    per_block = 6 + 1  # qkv, o, q, o, two of the feed-forward layer, and the text
    assert len(quantised) == 2 * per_block
    assert all(torch.equal(dit.blocks[0].self_attn.q.get_parameter(n), w) for n, w in weights.items())


@torch.no_grad()
def test_a_layer_that_stays_in_full_precision_is_not_joined():
    dit = _dit()
    dit.blocks[0].self_attn.k = nn.Linear(32, 32)
    inputs = torch.randn(1, 16, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 8, 16)
    each = dit(*inputs)
    fp8.use(dit)
    assert torch.equal(dit(*inputs), each)


@pytest.mark.parametrize("fast", [False, True])
@torch.no_grad()
def test_sums_are_as_exact_as_was_asked_in_every_product(fast, monkeypatch):
    asked = []

    def product(a, b, *, scale_a, scale_b, bias, out_dtype, use_fast_accum):  # as this machine has none
        asked.append(use_fast_accum)
        return ((a.float() * scale_a) @ (b.float() * scale_b) + bias.float()).to(out_dtype)

    monkeypatch.setattr(fp8, "is_native", lambda device: True)
    monkeypatch.setattr(torch, "_scaled_mm", product)
    dit = _dit()
    fp8.use(dit, fast)
    dit(torch.randn(1, 16, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 8, 16))
    assert set(asked) == {fast}


def test_hardware_that_multiplies_wrongly_is_refused(monkeypatch):
    dit = _dit()
    fp8.use(dit)
    monkeypatch.setattr(
        fp8.Fp8Linear, "multiply", lambda self, values, scale, dtype: torch.zeros(len(values), self.out_features)
    )
    with pytest.raises(
        InvalidRequest,
        match="linear is 'fp8'; allowed: auto .*multiplies a layer of 32 x 32 with a relative error of 1",
    ):
        fp8.use(dit)
