import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import wan
from export.manifest import describe_source
from wan import keys
from wan.checkpoint import Checkpoint, DiffusersCheckpoint, OfficialCheckpoint
from wan.config import VAE21_MEAN

UMT5_INVERSE = {
    "shared.": "token_embedding.", "encoder.final_layer_norm.": "norm.", "encoder.block.": "blocks.",
    ".layer.0.layer_norm.": ".norm1.", ".layer.1.layer_norm.": ".norm2.",
    ".layer.0.SelfAttention.relative_attention_bias.": ".pos_embedding.embedding.", ".layer.0.SelfAttention.": ".attn.",
    ".layer.1.DenseReluDense.wi_0.": ".ffn.gate.0.", ".layer.1.DenseReluDense.wi_1.": ".ffn.fc1.",
    ".layer.1.DenseReluDense.wo.": ".ffn.fc2.",
}  # fmt: skip


@pytest.fixture(scope="module")
def official(checkpoint, tmp_path_factory):
    """The tiny checkpoint rewritten in the official layout: two DiT shards with an index, and .pth files."""
    root = tmp_path_factory.mktemp("official")
    stored = load_file(checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")
    dit = {keys.dit_from_diffusers(k): v for k, v in stored.items()}
    names = sorted(dit)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({f"model.diffusion_model.{k}": dit[k] for k in part}, root / file)
        weight_map |= {k: file for k in part}
    (root / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (root / "config.json").write_text(json.dumps({"num_heads": 4}))
    rename = keys.vae_from_diffusers(1)
    vae = load_file(checkpoint / "vae" / "diffusion_pytorch_model.safetensors")
    torch.save({rename(k): v for k, v in vae.items()}, root / "Wan2.1_VAE.pth")
    text = {}
    for key, value in load_file(checkpoint / "text_encoder" / "model.safetensors").items():
        for theirs, ours in UMT5_INVERSE.items():
            key = key.replace(theirs, ours)
        text[key] = value
    torch.save(text, root / "models_t5_umt5-xxl-enc-bf16.pth")
    shutil.copytree(checkpoint / "tokenizer", root / "google" / "umt5-xxl")
    return root


@pytest.fixture
def broken(checkpoint, tmp_path):
    """A copy of the tiny DiT to damage: returns the folder and a function that rewrites its tensors."""
    shutil.copytree(checkpoint / "transformer", tmp_path / "transformer")
    file = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"

    def rewrite(change):
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return tmp_path, rewrite


def assert_identical(a, b):
    theirs = dict(b.named_parameters())
    assert dict(a.named_parameters()).keys() == theirs.keys()
    for name, parameter in a.named_parameters():
        assert torch.equal(parameter, theirs[name]), name


def test_both_layouts_load_to_identical_tensors(checkpoint, official):
    assert isinstance(Checkpoint.open(checkpoint), DiffusersCheckpoint)
    assert isinstance(Checkpoint.open(official), OfficialCheckpoint)
    assert_identical(wan.load_dit(checkpoint), wan.load_dit(official))
    assert_identical(wan.load_vae(checkpoint), wan.load_vae(official))
    assert_identical(wan.load_text_encoder(checkpoint), wan.load_text_encoder(official))
    assert Checkpoint.open(official).vae_config().latents_mean == VAE21_MEAN


def test_a_component_loads_without_the_others(checkpoint, tmp_path):
    shutil.copytree(checkpoint / "vae", tmp_path / "vae")
    assert_identical(wan.load_vae(tmp_path), wan.load_vae(checkpoint))
    with pytest.raises(wan.CheckpointError, match="has no transformer/"):
        wan.load_dit(tmp_path)


def test_precision_sensitive_parts_stay_in_float32(checkpoint):
    dit = wan.load_dit(checkpoint, dtype=torch.bfloat16)
    assert dit.blocks[0].ffn[0].weight.dtype == torch.bfloat16
    kept = [dit.blocks[0].modulation, dit.head.modulation, dit.time_embedding[0].weight, dit.blocks[0].norm3.weight]
    assert {p.dtype for p in kept} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blocks.3.attn1.to_q.weight"), r"1 tensors are missing: blocks\.3\.self_attn\.q\.weight"),
        (lambda t: t.update({"blocks.0.extra": torch.zeros(1)}), r"1 unknown tensors: blocks\.0\.extra"),
        (
            lambda t: t.update({"blocks.1.attn1.to_k.bias": torch.zeros(7)}),
            r"blocks\.1\.self_attn\.k\.bias has shape \[7\], expected \[192\]",
        ),
        (
            lambda t: t.update({"blocks.1.attn1.to_k.bias": torch.zeros(192, dtype=torch.int32)}),
            r"blocks\.1\.self_attn\.k\.bias has dtype torch\.int32",
        ),
    ],
    ids=["missing", "left over", "shape", "dtype"],
)
def test_a_damaged_checkpoint_is_refused_naming_the_tensor(broken, change, message):
    root, rewrite = broken
    rewrite(change)
    with pytest.raises(wan.CheckpointError, match=message):
        wan.load_dit(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"vace_blocks.0.proj_out.weight": torch.zeros(1)}), "Wan VACE model"),
        (
            lambda t: t.update({"patch_embedding.weight": torch.zeros(192, 48, 1, 2, 2)}),
            "16 latent and 32 further input channels",
        ),
    ],
)
def test_another_variant_is_named_and_refused(broken, change, message):
    root, rewrite = broken
    rewrite(change)
    with pytest.raises(wan.UnsupportedCheckpoint, match=message):
        wan.load_dit(root)


def test_a_file_that_is_cut_off_is_named(broken):
    root, _ = broken
    file = root / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(
        wan.CheckpointError, match=r"diffusion_pytorch_model\.safetensors is not a readable safetensors"
    ):
        wan.load_dit(root)


def test_a_pickle_with_code_is_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"conv2.weight": Evil()}, tmp_path / "Wan2.1_VAE.pth")
    with pytest.raises(wan.CheckpointError, match="not a readable weights-only PyTorch file"):
        wan.load_vae(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_shard_that_the_index_names_must_exist(official, tmp_path):
    shutil.copytree(official, tmp_path / "copy")
    (tmp_path / "copy" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(wan.CheckpointError, match=r"00002-of-00002\.safetensors is missing"):
        wan.load_dit(tmp_path / "copy")


def test_a_folder_without_a_checkpoint_says_what_was_expected(tmp_path):
    with pytest.raises(wan.CheckpointError, match="Expected the Diffusers layout"):
        wan.load_dit(tmp_path)
    with pytest.raises(wan.CheckpointError, match="is not a directory"):
        wan.load_dit(tmp_path / "missing")


def test_an_unknown_default_is_refused(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "copy")
    (tmp_path / "copy" / "wan.json").write_text(json.dumps({"defaults": {"width": 64, "wdith": 64}}))
    with pytest.raises(wan.CheckpointError, match=r"unknown keys \['wdith'\]"):
        _ = Checkpoint.open(tmp_path / "copy").card


@pytest.mark.parametrize("count", [1, 2])
def test_renaming_to_diffusers_and_back_is_the_identity(checkpoint, count):
    dit = [name for name, _ in wan.load_dit(checkpoint).named_parameters()]
    assert [keys.dit_from_diffusers(keys.dit_to_diffusers(name)) for name in dit] == dit
    vae = [name for name, _ in wan.WanVAE(wan.vae.VAEConfig(dim=8, num_res_blocks=count)).named_parameters()]
    there, back = keys.vae_to_diffusers(count), keys.vae_from_diffusers(count)
    assert [back(there(name)) for name in vae] == vae


def test_what_a_checkpoint_lacks_is_read_from_its_base(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "base")
    root = tmp_path / "fine-tuned"
    shutil.move(tmp_path / "base" / "transformer", root / "transformer")
    (root / "wan.json").write_text(json.dumps({"base": "../base", "defaults": {"steps": 7}}))
    opened = Checkpoint.open(root)
    assert opened.card.defaults.steps == 7
    assert opened.vae_config() == Checkpoint.open(checkpoint).vae_config()
    assert opened.tokenizer_directory == tmp_path / "base" / "tokenizer"
    files = describe_source(opened)["files"]
    for name in ("transformer/config.json", "../base/vae/config.json", "../base/tokenizer/tokenizer.json"):
        assert (root / name).stat().st_size == files[name]["bytes"]
    shutil.rmtree(tmp_path / "base" / "vae")
    with pytest.raises(wan.CheckpointError, match=f"{root} and its base {tmp_path / 'base'} has no vae/"):
        opened.load_vae()
