"""Packages of models that are given pictures: FP8 and LoRA reach the image projections."""

import pytest
import torch
from safetensors.torch import save_file

from export.dit import package
from export.dit.formats import DitWeights
from export.dit.lora import Lora, merge
from export.dit.precision import Precision
from tests.wan.picture_checkpoints import CLIP_DIM, TOKENS, write_diffusers
from wan.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def opened(checkpoint, tmp_path_factory):
    return Checkpoint.open(write_diffusers(tmp_path_factory.mktemp("i2v") / "checkpoint", checkpoint, 2))


def test_an_fp8_package_quantises_the_image_projections_and_computes_nearly_the_same(opened, tmp_path):
    weights = DitWeights(opened.dit_tensors())
    package.package(opened, weights, tmp_path, Precision("fp8"), [], "recipe")
    packed = Checkpoint.open(tmp_path)
    stored = packed.dit_tensors()
    assert stored.load("blocks.0.cross_attn.k_img.weight").dtype == torch.float8_e4m3fn
    assert stored.load("blocks.0.cross_attn.norm_k_img.weight").dtype == torch.bfloat16
    assert stored.load("img_emb.proj.1.weight").dtype == stored.load("img_emb.emb_pos").dtype == torch.float32
    inputs = torch.randn(1, 36, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 512, 128)
    tokens = torch.randn(1, 2 * TOKENS, CLIP_DIM)
    with torch.no_grad():
        exact, close = opened.load_dit()(*inputs, tokens), packed.load_dit()(*inputs, tokens)
    error = (close - exact).norm() / exact.norm()
    assert 0 < error < 0.1


def test_a_lora_changes_the_image_projections(opened, tmp_path):
    weights = DitWeights(opened.dit_tensors())
    shapes = {name: weights.shape(name) for name in weights.names}
    name = "blocks.1.cross_attn.k_img"
    down, up = torch.randn(4, 96), torch.randn(96, 4)
    save_file({f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up},
              tmp_path / "lora.safetensors")  # fmt: skip
    lora = Lora(tmp_path / "lora.safetensors", 0.5, shapes)
    before = weights.load(f"{name}.weight").float()
    merged = merge([lora], f"{name}.weight", weights.load(f"{name}.weight"))
    torch.testing.assert_close(merged, before + 0.5 * up @ down, rtol=1e-4, atol=1e-4)
