import pytest
import torch
from safetensors.torch import save_file

from contract.lora_keys import LoraError
from export.dit.lora import Lora, merge, parse_lora_argument

SHAPES = {
    "blocks.0.self_attn.q.weight": (8, 6), "blocks.0.self_attn.q.bias": (8,), "blocks.0.norm3.weight": (6,),
    "blocks.0.cross_attn.o.weight": (8, 6), "blocks.0.ffn.0.weight": (12, 6), "blocks.0.modulation": (1, 6, 6),
    "head.head.weight": (4, 6), "head.head.bias": (4,),
}  # fmt: skip
GENERATOR = torch.Generator().manual_seed(5)
DOWN, UP = torch.randn(2, 6, generator=GENERATOR), torch.randn(8, 2, generator=GENERATOR)
WEIGHT = torch.randn(8, 6, generator=GENERATOR)
Q = "blocks.0.self_attn.q"


def _lora(tmp_path, tensors, strength=1.0, metadata=None, name="lora.safetensors") -> Lora:
    path = tmp_path / name
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path, metadata or {})
    return Lora(path, strength, SHAPES)


FAMILIES = {
    "DiffSynth": {f"{Q}.lora_A.default.weight": DOWN, f"{Q}.lora_B.default.weight": UP},
    "DiffSynth, older": {f"diffusion_model.{Q}.lora_A.weight": DOWN, f"diffusion_model.{Q}.lora_B.weight": UP},
    "Diffusers": {
        "transformer.blocks.0.attn1.to_q.lora_A.weight": DOWN,
        "transformer.blocks.0.attn1.to_q.lora_B.weight": UP,
    },
    "LightX2V": {f"diffusion_model.{Q}.lora_down.weight": DOWN, f"diffusion_model.{Q}.lora_up.weight": UP},
    "kohya": {
        "lora_unet_blocks_0_self_attn_q.lora_down.weight": DOWN,
        "lora_unet_blocks_0_self_attn_q.lora_up.weight": UP,
    },
    "linear layer": {f"{Q}.lora_linear_layer.down.weight": DOWN, f"{Q}.lora_linear_layer.up.weight": UP},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_names_merges_to_the_same_weight(tmp_path, family):
    lora = _lora(tmp_path, FAMILIES[family], strength=0.5)
    assert lora.parameters == {f"{Q}.weight"}
    assert torch.allclose(merge([lora], f"{Q}.weight", WEIGHT), WEIGHT + 0.5 * UP @ DOWN, atol=1e-6)


def test_alpha_scales_by_its_ratio_to_the_rank(tmp_path):
    tensors = FAMILIES["kohya"] | {"lora_unet_blocks_0_self_attn_q.alpha": torch.tensor(1.0)}
    merged = merge([_lora(tmp_path, tensors)], f"{Q}.weight", WEIGHT)
    assert torch.allclose(merged, WEIGHT + 0.5 * UP @ DOWN, atol=1e-6)


def test_alpha_of_a_peft_adapter_is_read_from_its_configuration(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8, "r": 2}')
    merged = merge([_lora(tmp_path, FAMILIES["Diffusers"])], f"{Q}.weight", WEIGHT)
    assert torch.allclose(merged, WEIGHT + 4 * UP @ DOWN, atol=1e-5)


def test_full_rank_differences_reach_weight_bias_and_modulation(tmp_path):
    difference = torch.full((1, 6, 6), 0.25)
    tensors = {
        "diffusion_model.blocks.0.diff_m": difference, f"diffusion_model.{Q}.diff_b": torch.ones(8),
        "diffusion_model.head.head.diff": torch.ones(4, 6), "transformer.blocks.0.norm2.diff": torch.ones(6),
    }  # fmt: skip
    lora = _lora(tmp_path, tensors, strength=2.0)
    assert lora.parameters == {"blocks.0.modulation", f"{Q}.bias", "head.head.weight", "blocks.0.norm3.weight"}
    assert torch.equal(merge([lora], "blocks.0.modulation", torch.zeros(1, 6, 6)), 2 * difference)
    assert torch.equal(merge([lora], f"{Q}.bias", torch.zeros(8)), torch.full((8,), 2.0))


def test_several_files_add_up(tmp_path):
    first = _lora(tmp_path, FAMILIES["kohya"], 1.0, name="a.safetensors")
    second = _lora(tmp_path, FAMILIES["DiffSynth"], -1.0, name="b.safetensors")
    assert torch.allclose(merge([first, second], f"{Q}.weight", WEIGHT), WEIGHT, atol=1e-6)


REFUSED = {
    "of no known kind": {f"{Q}.weights": DOWN},
    r"has hada_w1_a \[2, 6\], which is no whole LoHa or LoKr": {f"{Q}.hada_w1_a": DOWN},
    "has lokr_w1 .*, lokr_w2_a .*, which is no whole": {f"{Q}.lokr_w1": UP, f"{Q}.lokr_w2_a": UP},
    r"has lokr_w1 \[8, 2\], lokr_w2 \[2, 6\], the weight is \[8, 6\]": {f"{Q}.lokr_w1": UP, f"{Q}.lokr_w2": DOWN},
    "has a low-rank pair beside lokr_w1": {
        f"{Q}.lora_A.weight": DOWN,
        f"{Q}.lora_B.weight": UP,
        f"{Q}.lokr_w1": UP,
        f"{Q}.lokr_w2": DOWN,
    },
    "of a LoKr with Tucker's factors adapter": {f"{Q}.lokr_t2": DOWN},
    "of a DoRA adapter": {f"{Q}.dora_scale": DOWN},
    "key blocks.7.ffn.0.lora_A.weight fits no tensor": {"blocks.7.ffn.0.lora_A.weight": DOWN},
    "key lora_unet_blocks_0_self_attn_k.alpha fits no tensor": {
        "lora_unet_blocks_0_self_attn_k.alpha": torch.tensor(1.0)
    },
    r"self_attn.q has no up \(B\) matrix": {f"{Q}.lora_down.weight": DOWN},
    "has an alpha but no matrices": {f"{Q}.alpha": torch.tensor(1.0)},
    r"is \[8, 2\] @ \[2, 5\], the weight is \[8, 6\]": {f"{Q}.lora_A.weight": DOWN[:, :5], f"{Q}.lora_B.weight": UP},
    "cross_attn.o has a difference for bias": {"blocks.0.cross_attn.o.diff_b": torch.ones(8)},
    "second expert": {"transformer_2.blocks.0.attn1.to_q.lora_A.weight": DOWN},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_an_error_that_names_the_key(tmp_path, message):
    with pytest.raises(LoraError, match=message):
        _lora(tmp_path, REFUSED[message])


def test_argument_has_an_optional_strength():
    assert parse_lora_argument("a/b.safetensors=0.75") == (parse_lora_argument("a/b.safetensors")[0], 0.75)
    assert parse_lora_argument("x.safetensors")[1] == 1.0
    with pytest.raises(LoraError, match="strength of the LoRA x is 'much'"):
        parse_lora_argument("x=much")
