"""Adapters beside the weights do what merging them does, and leave nothing behind."""

import copy

import pytest
import torch

from contract import Defaults, ModelCard
from contract.lora_keys import LoraError
from tests.wan.adapter_files import FAMILIES, differences, pairs
from tests.wan.reference import relative_error
from wan import adapted, fp8
from wan.checkpoint import weight_shapes
from wan.config import DiTConfig
from wan.denoise import GUIDANCE, Conditioning, Denoiser, Expert, Resume
from wan.dit import WanDiT
from wan.errors import InvalidRequest
from wan.lora import Lora
from wan.optimize import Options, block_linears, cast, optimized

CONFIG = DiTConfig(dim=64, num_layers=2, num_heads=4, ffn_dim=128, text_dim=32, freq_dim=32)
WEIGHTS = weight_shapes(CONFIG)
CLOSE = 1e-4


def _random_dit(seed: int = 0) -> WanDiT:
    torch.manual_seed(seed)
    dit = WanDiT(CONFIG).eval().requires_grad_(False)
    for parameter in dit.parameters():
        parameter += 0.05 * torch.randn(parameter.shape)
    return dit


@pytest.fixture(scope="module")
def dit():
    """Not optimized: copies of it are."""
    return _random_dit()


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    context = torch.randn(2, 16, 32, generator=generator)
    context[:, 7:] = 0
    return torch.randn(2, 16, 2, 8, 8, generator=generator), torch.tensor([700.0, 700.0]), context


def lora(tensors: dict, **more) -> Lora:
    return Lora("test", tensors, WEIGHTS, **more)


def merged(dit: WanDiT, adapters: adapted.Adapters) -> WanDiT:
    """A copy of `dit` with the adapters in its weights."""
    other = copy.deepcopy(dit)
    for name, parameter in other.named_parameters():
        for each, strength in adapters:
            parameter.copy_(each.add_to(name, parameter, strength))
    return other


@torch.inference_mode()
def answer(dit: WanDiT, inputs, adapters: adapted.Adapters = ()) -> torch.Tensor:
    with adapted.applied(dit, adapters):
        return dit(*inputs)


@pytest.mark.parametrize("linear", ["onednn", "dense"])
@pytest.mark.parametrize("family", FAMILIES)
def test_beside_the_weights_equals_merged_for_every_family_of_files(dit, inputs, family, linear):
    adapters = [(lora(FAMILIES[family](pairs(WEIGHTS))), 0.7)]
    expected = answer(merged(dit, adapters), inputs)
    found = answer(optimized(copy.deepcopy(dit), Options(linear=linear)), inputs, adapters)
    assert relative_error(found, expected) < CLOSE
    assert relative_error(found, answer(dit, inputs)) > 10 * CLOSE


def test_three_adapters_at_once_with_differences_of_every_parameter(dit, inputs):
    files = [
        FAMILIES["LightX2V"](pairs(WEIGHTS, 16, seed=1)) | differences(WEIGHTS),
        FAMILIES["PEFT, Diffusers"](pairs(WEIGHTS, 3, seed=2)) | differences(WEIGHTS, seed=5),
        {k: v for k, v in FAMILIES["kohya, musubi"](pairs(WEIGHTS, 8, seed=4)).items() if "_ffn_" not in k},
    ]
    adapters = list(zip(map(lora, files), (1.0, -0.5, 2.0), strict=True))
    served = optimized(copy.deepcopy(dit))
    assert relative_error(answer(served, inputs, adapters), answer(merged(dit, adapters), inputs)) < CLOSE
    with adapted.applied(served, adapters):
        layer = served.blocks[1].self_attn.q
        assert (layer.down.shape, layer.up.shape) == ((32, 64), (32, 64))  # one pair of 16 + 3 + 8, padded


def test_the_configuration_of_a_peft_adapter_scales_it(dit, inputs):
    tensors = FAMILIES["PEFT, Diffusers"](pairs(WEIGHTS, rank=4))
    by_config = [(lora(tensors, config='{"lora_alpha": 8, "use_rslora": true}'), 0.5)]
    by_hand = [(lora(tensors), 0.5 * 8 / 2)]
    assert relative_error(answer(dit, inputs, by_config), answer(dit, inputs, by_hand)) < 1e-6


@pytest.mark.parametrize("layers", ["all", "ffn alone"])
def test_beside_fp8_the_base_is_the_same_and_the_pair_exact(dit, inputs, layers):
    """The weights stay as they were quantised, and the branch sees the input before it is."""
    base = copy.deepcopy(dit)
    names = block_linears(base)
    fp8.swap_linears(base, names if layers == "all" else [n for n in names if "ffn" in n])
    optimized(base)
    adapters = [(lora(FAMILIES["LightX2V"](pairs(WEIGHTS)) | differences(WEIGHTS)), 1.0)]
    exact = answer(merged(dit, adapters), inputs)
    plain = relative_error(answer(base, inputs), answer(dit, inputs))
    assert relative_error(answer(base, inputs, adapters), exact) < 1.5 * plain
    layer, x = base.blocks[0].ffn[0], torch.randn(1, 5, 64)
    down, up = pairs(WEIGHTS)["blocks.0.ffn.0"]
    with adapted.applied(base, adapters):
        wide = base.blocks[0].ffn[0]
        assert wide.base is layer
        added = wide(x) - layer(x)
    bias = differences(WEIGHTS)["diffusion_model.blocks.0.ffn.0.diff_b"]
    assert torch.allclose(added, 2 * x @ down.T @ up.T + bias, atol=1e-5)


@pytest.mark.parametrize("kind", ["float32", "fp8", "bfloat16"])
def test_afterwards_the_model_is_what_it_was_to_the_bit(dit, inputs, kind):
    base = copy.deepcopy(dit)
    if kind == "fp8":
        fp8.swap_linears(base, block_linears(base))
    optimized(cast(base, torch.bfloat16) if kind == "bfloat16" else base)
    before, modules = answer(base, inputs), [name for name, _ in base.named_modules()]
    files = [FAMILIES["LightX2V"](pairs(WEIGHTS)) | differences(WEIGHTS), FAMILIES["bare"](pairs(WEIGHTS, 30, seed=9))]
    alone = [answer(base, inputs, [(lora(file), 1.0)]) for file in files]
    with pytest.raises(ZeroDivisionError), adapted.applied(base, [(lora(files[0]), 1.0)]):
        raise ZeroDivisionError
    for i in (1, 0, 1):
        assert torch.equal(answer(base, inputs, [(lora(files[i]), 1.0)]), alone[i])
        assert torch.equal(answer(base, inputs), before)
    assert [name for name, _ in base.named_modules()] == modules


def test_compiled_blocks_are_not_built_again_for_another_adapter_of_the_size(dit, inputs):
    """The graphs are what matters; they run as they are, since a C++ compiler takes minutes over them."""
    base = optimized(copy.deepcopy(dit))
    for block in base.blocks:
        block.compile(backend="eager", dynamic=False)
    some, others, larger = ([(lora(FAMILIES["bare"](pairs(WEIGHTS, rank, seed=rank))), 1.0)] for rank in (4, 9, 17))
    assert relative_error(answer(base, inputs), answer(dit, inputs)) < CLOSE
    assert relative_error(answer(base, inputs, some), answer(dit, inputs, some)) < CLOSE
    with torch.compiler.set_stance("fail_on_recompile"):
        assert relative_error(answer(base, inputs, others), answer(dit, inputs, others)) < CLOSE
        assert relative_error(answer(base, inputs), answer(dit, inputs)) < CLOSE
        with pytest.raises(RuntimeError, match="recompile"):
            answer(base, inputs, larger)


def test_an_adapter_of_an_image_model_for_a_text_model_is_refused_by_its_keys():
    of_images = FAMILIES["DiffSynth-Studio"](pairs(WEIGHTS)) | {
        "pipe.dit.blocks.0.cross_attn.k_img.lora_A.default.weight": torch.ones(2, 64),
        "pipe.dit.blocks.0.cross_attn.k_img.lora_B.default.weight": torch.ones(64, 2),
    }
    with pytest.raises(LoraError, match=r"key pipe.dit.blocks.0.cross_attn.k_img\S+ fits no tensor of the model"):
        lora(of_images)


def test_a_file_for_both_experts_gives_each_its_own_keys():
    first = FAMILIES["PEFT, Diffusers"](pairs(WEIGHTS, seed=1))
    second = {"transformer_2." + k.removeprefix("transformer."): v for k, v in FAMILIES["PEFT, Diffusers"](
        pairs(WEIGHTS, seed=2)).items()}  # fmt: skip
    for expert, own in enumerate((first, second)):
        found = lora(first | second, expert=expert, experts=2).pair("blocks.0.ffn.2")
        wanted = next(tensor for key, tensor in own.items() if "blocks.0.ffn.net.2.lora_A" in key)
        assert torch.equal(found[0], wanted)


CARD = ModelCard("t2v-a14b", defaults=Defaults(width=64, height=64, num_frames=5, steps=6, flow_shift=5.0,
                 guidance_scale=4.0, guidance_scale_2=3.0, negative_prompt=""))  # fmt: skip


def two_experts(first: WanDiT, second: WanDiT) -> Denoiser:
    return Denoiser((Expert(first, {}, 875.0), Expert(second, {}, 0.0, GUIDANCE[1])), CARD.geometry)


def test_each_expert_has_its_own_file_or_none(dit, inputs):
    other = _random_dit(seed=5)
    high, low = (lora(FAMILIES["bare"](pairs(WEIGHTS, seed=seed, size=0.3))) for seed in (1, 2))
    given = Conditioning(inputs[2][0], inputs[2][1])
    pair = two_experts(*(optimized(copy.deepcopy(each)) for each in (dit, other)))
    plain = pair.run(given, CARD.request(prompt="x", seed=1))[0]
    for files in ((high, low), (high, None), (None, low)):
        request = CARD.request(prompt="x", seed=1, lora="style:0.5")
        found, info = pair.run(given, request, adapters={"style": files})
        assert {step.expert for step in info.plan} == {0, 1}
        sides = [merged(base, [(file, 0.5)]) if file else base for base, file in zip((dit, other), files, strict=True)]
        expected = two_experts(*sides).run(given, CARD.request(prompt="x", seed=1))[0]
        assert relative_error(found, expected) < 10 * CLOSE
        assert relative_error(found, plain) > 100 * CLOSE
    assert torch.equal(pair.run(given, CARD.request(prompt="x", seed=1))[0], plain)


def test_a_run_with_adapters_continues_at_every_step_to_the_bit(dit, inputs):
    files = {"style": [lora(FAMILIES["bare"](pairs(WEIGHTS, seed=s, size=0.3)) | differences(WEIGHTS)) for s in (1, 2)]}
    pair, given, states = two_experts(dit, _random_dit(seed=5)), Conditioning(inputs[2][0], inputs[2][1]), []
    request = CARD.request(prompt="x", seed=1, lora="style")
    whole, info = pair.run(given, request, adapters=files, on_step=states.append)
    switch = [step.expert for step in info.plan].index(1)
    for done in (switch - 1, switch, switch + 1):
        resume = Resume(done, states[done - 1].state)
        assert torch.equal(pair.run(given, request, adapters=files, resume=resume)[0], whole)


def test_an_adapter_that_nobody_loaded_is_not_left_out_silently(dit, inputs):
    denoiser = Denoiser((Expert(dit),), CARD.geometry)
    request = ModelCard(defaults=Defaults(width=64, height=64, num_frames=5, steps=2)).request(prompt="x", lora="style")
    with pytest.raises(InvalidRequest, match="lora is 'style'; allowed: adapters that were loaded: none"):
        denoiser.run(Conditioning(inputs[2][0]), request)


@pytest.mark.parametrize(("rank", "size"), [(1, 16), (16, 16), (17, 32), (300, 512), (513, 1024)])
def test_ranks_are_padded_to_few_sizes(rank, size):
    assert adapted.padded(rank) == size
