import pytest
import torch

from tests.wan.reference import relative_error
from wan import attention, onednn
from wan.errors import InvalidRequest

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


def test_eight_bit_backends_leave_biased_attention_exact():
    q, k, v = inputs(20, 30)
    bias = torch.randn(2, 1, 1, 30)
    exact = attention.sdpa(q, k, v, bias)
    assert torch.equal(attention.int8(q, k, v, bias), exact)
    assert torch.equal(attention.int8_fp8(q, k, v, bias), exact)
    assert not torch.equal(attention.int8(q, k, v), attention.sdpa(q, k, v))


def test_automatic_choice_is_lossless_and_a_gpu_takes_the_fastest_it_has(monkeypatch):
    assert attention.choose("auto", CPU).lossless
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    assert attention.choose("auto", gpu).name == "cudnn"
    monkeypatch.setattr(attention, "find_spec", lambda name: object())
    assert attention.choose("auto", gpu).name == "flash3"
    assert attention.choose("sage", gpu).name == "sage"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert attention.choose("auto", gpu).name == "sdpa"
    with pytest.raises(InvalidRequest, match=r"int8-fp8 needs compute capability 8.9, this GPU has 8.0"):
        attention.choose("int8-fp8", gpu)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flash9", "attention is 'flash9'; allowed: auto, sdpa"),
        ("flash3", "flash3 needs a CUDA GPU"),
        ("sage", "needs a CUDA GPU"),
    ],
)
def test_a_backend_that_is_not_there_is_refused_with_the_reason(name, message):
    with pytest.raises(InvalidRequest, match=message):
        attention.choose(name, CPU)


def test_onednn_linear_equals_pytorch_with_and_without_gelu():
    layer, x = torch.nn.Linear(33, 65), torch.randn(2, 9, 33)
    with torch.no_grad():
        torch.testing.assert_close(onednn.OneDNNLinear(layer)(x), layer(x), rtol=1e-5, atol=1e-5)
        fused = onednn.OneDNNLinear(layer, gelu=True)(x)
        torch.testing.assert_close(fused, torch.nn.functional.gelu(layer(x), approximate="tanh"), rtol=1e-5, atol=1e-5)
