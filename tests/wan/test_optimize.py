import copy
import os

import pytest
import torch

from tests.wan.reference import dit_pair, relative_error
from wan import compile
from wan.checkpoint import FLOAT32_PARTS
from wan.config import DiTConfig
from wan.dit import WanDiT
from wan.errors import InvalidRequest
from wan.keys import dit_from_diffusers
from wan.optimize import GeluLinear, Options, block_linears, cast, fuse_gelu, optimize, optimized


@pytest.fixture(scope="module")
def pair():
    return dit_pair(3, 48, 3, 256, 64, seed=0)


def arguments(dtype=torch.float32):
    torch.manual_seed(1)
    context = torch.randn(1, 512, 64)
    context[:, 20:] = 0
    return torch.randn(1, 16, 3, 8, 6), torch.tensor([500.0]), context.to(dtype)


@torch.no_grad()
def test_the_defaults_change_nothing_but_the_speed(pair):
    reference, ours = pair
    dit = optimized(copy.deepcopy(ours))
    expected = reference(*arguments(), return_dict=False)[0]
    assert relative_error(dit(*arguments()), expected) < 1e-4
    names = {"linear": "onednn", "attention": "onednn", "text_attention": "onednn"}
    assert dit.engine == names | {"compiled": False, "dtype": "float32"}
    assert set(dit.state_dict()) == set(ours.state_dict())


@torch.no_grad()
def test_deep_models_in_bfloat16_stay_far_closer_to_float32_than_diffusers_whose_residual_is_rounded():
    reference, ours = dit_pair(2, 48, 20, 256, 64, seed=0)
    for parameter in (p for p in ours.parameters() if p.ndim == 2):
        torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    for parameter in ours.parameters():  # the same weights in both precisions: only the arithmetic differs
        parameter.copy_(parameter.bfloat16())
    reference.load_state_dict({k: ours.state_dict()[dit_from_diffusers(k)] for k in reference.state_dict()})
    latents, timestep, context = (t.bfloat16() for t in arguments())
    expected = ours(latents.float(), timestep, context.float())
    theirs = relative_error(reference.to(torch.bfloat16)(latents, timestep, context)[0].float(), expected)
    as_loaded = {n: p.float() if FLOAT32_PARTS.search(n) else p.bfloat16() for n, p in ours.state_dict().items()}
    ours.load_state_dict(as_loaded, assign=True)
    error = relative_error(optimized(ours)(latents, timestep, context), expected)
    assert error < 0.5 * theirs, (error, theirs)


@pytest.mark.parametrize(
    ("options", "bound"), [({"linear": "fp8"}, 0.15), ({"attention": "int8"}, 0.05), ({"attention": "int8-fp8"}, 0.1)]
)
@torch.no_grad()
def test_lossy_options_are_close_and_reported(pair, options, bound):
    _, ours = pair
    dit = copy.deepcopy(ours)
    engine = optimize(dit, Options(**options))
    error = relative_error(dit(*arguments()), ours(*arguments()))
    assert 0 < error < bound
    assert {name: engine[name] for name in options} == options


def test_only_the_layers_inside_the_blocks_become_fp8(pair):
    names = block_linears(pair[1])
    assert len(names) == 3 * 10
    assert all(name.startswith("blocks.") for name in names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"linear": "int4"}, "linear is 'int4'; allowed: auto, dense, onednn, fp8, fp8-fast"),
        ({"linear": "fp8-fast"}, "linear is 'fp8-fast'; allowed: fp8 on this machine, which does not multiply FP8"),
        ({"attention": "flash3"}, "needs a CUDA GPU"),
    ],
)
def test_an_unknown_or_missing_choice_is_refused(pair, options, message):
    with pytest.raises(InvalidRequest, match=message):
        optimize(copy.deepcopy(pair[1]), Options(**options))


@pytest.mark.skipif(compile.missing(torch.device("cpu")) is not None, reason="no C++ compiler here")
@torch.no_grad()
@pytest.mark.slow
def test_one_compilation_serves_all_blocks_and_changes_nothing(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""))  # restored afterwards
    compile.keep_in(tmp_path)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    dit = optimized(copy.deepcopy(pair[1]), Options(compile=True))
    assert relative_error(dit(*arguments()), pair[1](*arguments())) < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert any(tmp_path.rglob("*.so"))


def test_what_is_kept_in_float32_is_never_cast_below_it():
    dit = WanDiT(DiTConfig(dim=16, num_layers=1, num_heads=1, ffn_dim=16, text_dim=8, freq_dim=8))
    exact = dit.blocks[0].modulation.data.normal_().clone()
    cast(dit, torch.bfloat16)
    assert torch.equal(dit.blocks[0].modulation, exact)
    assert dit.time_embedding[0].weight.dtype == dit.head.head.weight.dtype == torch.float32
    assert dit.blocks[0].ffn[0].weight.dtype == torch.bfloat16


@torch.no_grad()
def test_gelu_in_the_product_is_the_same_function(pair):
    dit = copy.deepcopy(pair[1])
    fuse_gelu(dit)
    assert sum(isinstance(layer, GeluLinear) for layer in dit.modules()) == 3 + 1  # feed-forward layers and the text's
    assert not any(isinstance(layer, torch.nn.GELU) for layer in dit.modules())
    assert relative_error(dit(*arguments()), pair[1](*arguments())) < 1e-5
