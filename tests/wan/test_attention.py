import copy
import sys
import types

import pytest
import torch

from tests.wan.reference import relative_error
from wan import attention, onednn
from wan.config import DiTConfig
from wan.dit import WanDiT
from wan.errors import InvalidRequest
from wan.optimize import Options, optimize

CPU = torch.device("cpu")


def inputs(queries, keys, batch=2, heads=3, dim=40, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(batch, n, heads, dim).to(dtype) for n in (queries, keys, keys)]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(7, 5), (600, 700)])
def test_every_lossless_backend_of_this_machine_computes_the_same(queries, keys, biased):
    q, k, v = inputs(queries, keys)
    bias = torch.randn(2, 1, 1, keys) if biased else None
    scores = torch.einsum("bshd,blhd->bhsl", q.double(), k.double()) / q.shape[-1] ** 0.5
    weights = (scores + (bias if biased else 0)).softmax(-1)
    expected = torch.einsum("bhsl,blhd->bshd", weights, v.double()).flatten(2)
    names = [n for n, b in attention.BACKENDS.items() if b.lossless and b.missing(CPU) is None]
    assert "sdpa" in names
    for name in names:
        assert relative_error(attention.BACKENDS[name].function(q, k, v, bias), expected) < 2e-6, name


LOSSY = ("sage", "int8", "int8-fp8")  # the others are treated as these


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", LOSSY)
@torch.no_grad()
def test_lossy_backends_attend_to_the_video_and_never_to_the_text(name, compiled, monkeypatch):
    seen = []

    @torch.compiler.disable
    def spy(q, k, v):
        seen.append((q.shape[1], k.shape[1]))
        return attention.sdpa(q, k, v)

    monkeypatch.setitem(attention.BACKENDS, name, attention.Backend(name, spy, False, lambda device: None))
    monkeypatch.setattr(torch.nn.Module, "compile", through_dynamo)
    torch._dynamo.reset()
    dit = WanDiT(DiTConfig(dim=96, num_layers=2, num_heads=2, ffn_dim=64, text_dim=32)).eval()
    exact = copy.deepcopy(dit)
    optimize(dit, Options(attention=name, compile=compiled))
    assert seen.pop() == (attention.CHECKED_TOKENS,) * 2  # compared with exact attention
    assert dit.fold_text is not compiled  # else no bias, which once let lossy attention through
    context = torch.randn(1, 512, 32)
    context[:, 9:] = 0
    inputs = torch.randn(1, 16, 2, 4, 4), torch.tensor([500.0]), context
    out = dit(*inputs)
    assert seen == [(8, 8)] * 2
    assert relative_error(out, exact(*inputs)) < 1e-5


def through_dynamo(module, **options):
    """Compile as `nn.Module.compile` does, without the minute that generating code takes."""
    module._compiled_call_impl = torch.compile(module._call_impl, backend="eager", dynamic=options["dynamic"])


def test_text_goes_through_the_asked_backend_if_that_loses_nothing():
    dit = WanDiT(DiTConfig(dim=96, num_layers=1, num_heads=2, ffn_dim=64, text_dim=32))
    attention.use(dit, attention.BACKENDS["sdpa"])
    assert dit.blocks[0].cross_attn.attend is dit.blocks[0].self_attn.attend is attention.sdpa


def test_automatic_choice_is_lossless_and_a_gpu_takes_the_fastest_it_has(monkeypatch):
    assert attention.choose("auto", CPU).lossless
    gpu = torch.device("cuda")
    monkeypatch.setattr(attention, "wrong", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    assert attention.choose("auto", gpu).name == "cudnn"
    monkeypatch.setattr(attention, "find_spec", lambda name: object())
    assert attention.choose("auto", gpu).name == "flash3"
    assert attention.choose("sage", gpu).name == "sage"
    assert attention.choose("auto-8bit", gpu).lossless  # unless something faster has been measured
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert attention.choose("auto", gpu).name == "sdpa"
    with pytest.raises(InvalidRequest, match=r"int8-fp8 needs compute capability 8.9, this GPU has 8.0"):
        attention.choose("int8-fp8", gpu)


def noise(q, k, v, bias=None):
    """What SageAttention 2.2 gave on some H100s."""
    return torch.randn_like(q).flatten(2)


def not_built_for_this_gpu(q, k, v, bias=None):
    raise RuntimeError("no kernel image is available for execution on the device")


@pytest.mark.parametrize(
    ("function", "reason"), [(noise, "is wrong: relative error"), (not_built_for_this_gpu, "fails: no kernel")]
)
def test_a_backend_whose_results_are_wrong_is_refused_by_name_and_passed_over_by_auto(
    function, reason, monkeypatch, caplog
):
    for name, lossless in (("sage", False), ("onednn", True)):
        broken = attention.Backend(name, function, lossless, lambda device: None)
        monkeypatch.setitem(attention.BACKENDS, name, broken)
        with pytest.raises(InvalidRequest, match=f"{name} {reason}"):
            attention.choose(name, CPU)
    assert attention.choose("auto", CPU).name == "sdpa"
    assert reason in caplog.text


@pytest.mark.parametrize(("heads", "dim"), [(12, 128), (40, 128), (3, 40)])
def test_every_backend_of_this_machine_is_right(heads, dim):
    for backend in attention.BACKENDS.values():
        assert backend.missing(CPU) or attention.wrong(backend, CPU, heads, dim) is None, backend.name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flash9", "attention is 'flash9'; allowed: auto, auto-8bit, sdpa"),
        ("flash3", "flash3 needs a CUDA GPU"),
        ("sage", "needs a CUDA GPU"),
    ],
)
def test_a_backend_that_is_not_there_is_refused_with_the_reason(name, message):
    with pytest.raises(InvalidRequest, match=message):
        attention.choose(name, CPU)


def test_flash_attention_3_in_fp8_is_given_a_scale_for_each_head(monkeypatch):
    """Its module is for Hopper alone: in its place float32 attention of what the FP8 values stand for."""

    def flash_attn_func(q, k, v, *, q_descale, k_descale, v_descale):
        assert {x.dtype for x in (q, k, v)} == {torch.float8_e4m3fn}
        wide = [x.float() * s[:, None, :, None] for x, s in ((q, q_descale), (k, k_descale), (v, v_descale))]
        return attention.sdpa(*wide).unflatten(2, q.shape[2:])

    monkeypatch.setitem(sys.modules, "flash_attn_interface", types.SimpleNamespace(flash_attn_func=flash_attn_func))
    q, k, v = inputs(70, 90)
    shared = 30 * torch.randn(1, 1, 3, 40)
    assert 1e-3 < relative_error(attention.flash3_fp8(q, k + shared, v), attention.sdpa(q, k, v)) < 0.12


def test_onednn_linear_equals_pytorch_with_and_without_gelu():
    layer, x = torch.nn.Linear(33, 65), torch.randn(2, 9, 33)
    with torch.no_grad():
        torch.testing.assert_close(onednn.OneDNNLinear(layer)(x), layer(x), rtol=1e-5, atol=1e-5)
        fused = onednn.OneDNNLinear(layer, gelu=True)(x)
        torch.testing.assert_close(fused, torch.nn.functional.gelu(layer(x), approximate="tanh"), rtol=1e-5, atol=1e-5)
