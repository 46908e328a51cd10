"""Each FP8 format of the wild, written as its tools write it, reads back as the same dequantised weights."""

import json

import pytest
import torch
from safetensors.torch import save_file

from export.dit.formats import DitWeights
from wan import fp8, keys
from wan.checkpoint import Checkpoint
from wan.errors import UnsupportedCheckpoint
from wan.tensor_files import TensorFiles

OUT, IN = 32, 16
LAYER = "blocks.0.ffn.0"


def _weight() -> torch.Tensor:
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(3)) * torch.logspace(-2, 1, OUT)[:, None]


def _per_tensor(dtype=torch.float8_e4m3fn) -> tuple[torch.Tensor, torch.Tensor]:
    weight = _weight()
    scale = weight.abs().max() / torch.finfo(dtype).max
    return (weight / scale).to(dtype), scale


def _rest() -> dict[str, torch.Tensor]:
    return {f"{LAYER}.bias": torch.ones(OUT, dtype=torch.bfloat16), "blocks.0.modulation": torch.full((1, 6, IN), 0.5)}


def _rows():
    values, scale = fp8.quantize_rows(_weight())
    return (
        "rows",
        {f"{LAYER}.weight": values, f"{LAYER}.weight_scale": scale.bfloat16()},
        values.float() * scale.bfloat16().float(),
        {},
    )


def _comfy():
    values, scale = _per_tensor()
    description = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    extra = {
        f"{LAYER}.weight_scale": scale,
        f"{LAYER}.input_scale": torch.tensor(2.0),
        f"{LAYER}.comfy_quant": description,
    }
    return "comfy", {f"{LAYER}.weight": values} | extra, values.float() * scale, {}


def _comfy_metadata():
    values, scale = _per_tensor(torch.float8_e5m2)
    metadata = {
        "_quantization_metadata": json.dumps({"format_version": "1.0", "layers": {LAYER: {"format": "float8_e5m2"}}})
    }
    return "comfy", {f"{LAYER}.weight": values, f"{LAYER}.weight_scale": scale}, values.float() * scale, metadata


def _comfy_legacy():
    values, scale = _per_tensor()
    marker = {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn), f"{LAYER}.scale_input": torch.tensor([1.0])}
    return (
        "comfy-legacy",
        {f"{LAYER}.weight": values, f"{LAYER}.scale_weight": scale} | marker,
        values.float() * scale,
        {},
    )


def _kijai():
    values, scale = _per_tensor()
    return (
        "comfy-legacy",
        {f"{LAYER}.weight": values, f"{LAYER}.scale_weight": scale.view(1)},
        values.float() * scale,
        {},
    )


def _plain():
    values = _weight().to(torch.float8_e4m3fn)
    return "plain", {f"{LAYER}.weight": values}, values.float(), {}


def _half():
    return "float", {f"{LAYER}.weight": _weight().half()}, _weight().half().float(), {}


FORMATS = [_rows, _comfy, _comfy_metadata, _comfy_legacy, _kijai, _plain, _half]


@pytest.mark.parametrize("make", FORMATS, ids=lambda f: f.__name__[1:])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_format_is_recognised_and_dequantised(make, prefix, tmp_path):
    name, tensors, expected, metadata = make()
    path = tmp_path / "dit.safetensors"
    save_file({prefix + key: tensor for key, tensor in (tensors | _rest()).items()}, path, metadata)
    weights = DitWeights(TensorFiles([path], keys.dit_from_diffusers))
    assert weights.format == name
    assert weights.names == sorted([f"{LAYER}.weight", *_rest()])
    assert torch.equal(weights.load(f"{LAYER}.weight"), expected)
    assert torch.equal(weights.load(f"{LAYER}.bias"), torch.ones(OUT))


def test_diffusers_names_of_scales_are_understood(tmp_path):
    values, scale = fp8.quantize_rows(torch.randn(16, 16))
    path = tmp_path / "dit.safetensors"
    save_file({"blocks.3.attn1.to_q.weight": values, "blocks.3.attn1.to_q.weight_scale": scale}, path)
    weights = DitWeights(TensorFiles([path], keys.dit_from_diffusers))
    assert torch.equal(weights.load("blocks.3.self_attn.q.weight"), values.float() * scale)


def _refused(tmp_path, tensors, metadata=None) -> str:
    path = tmp_path / "dit.safetensors"
    save_file(tensors, path, metadata or {})
    with pytest.raises(UnsupportedCheckpoint) as error:
        _ = DitWeights(TensorFiles([path])).format
    return str(error.value)


def test_block_scales_are_refused(tmp_path):
    values, _ = _per_tensor()
    message = _refused(tmp_path, {f"{LAYER}.weight": values, f"{LAYER}.weight_scale": torch.ones(2, 2)})
    assert f"{LAYER}.weight_scale has shape [2, 2]; allowed: one value, or [32, 1]" in message


def test_unknown_scale_names_are_refused(tmp_path):
    values, _ = _per_tensor()
    tensors = {f"{LAYER}.weight": values, f"{LAYER}.weight_scale_inv": torch.ones(1, dtype=torch.int8)}
    assert "weight_scale_inv has dtype I8" in _refused(tmp_path, tensors)


def test_mixed_formats_are_refused(tmp_path):
    values, scale = _per_tensor()
    tensors = {f"{LAYER}.weight": values, f"{LAYER}.weight_scale": scale, "blocks.0.ffn.2.weight": values.clone()}
    assert "FP8 formats are mixed: blocks.0.ffn.0.weight is comfy, blocks.0.ffn.2.weight is plain" in _refused(
        tmp_path, tensors
    )


def test_a_scale_without_an_fp8_weight_is_refused(tmp_path):
    tensors = {f"{LAYER}.weight": _weight(), f"{LAYER}.weight_scale": torch.ones(OUT, 1)}
    assert f"{LAYER}.weight_scale belongs to no FP8 weight" in _refused(tmp_path, tensors)


def test_other_comfy_formats_are_refused(tmp_path):
    values, scale = _per_tensor()
    metadata = {"_quantization_metadata": json.dumps({"layers": {LAYER: {"format": "nvfp4"}}})}
    tensors = {f"{LAYER}.weight": values, f"{LAYER}.weight_scale": scale}
    assert "has format 'nvfp4'; allowed: float8_e4m3fn, float8_e5m2" in _refused(tmp_path, tensors, metadata)


def test_integer_weights_are_refused(tmp_path):
    assert "has dtype I8; allowed" in _refused(tmp_path, {f"{LAYER}.weight": torch.ones(4, 4, dtype=torch.int8)})


def test_an_fp8_checkpoint_is_not_loaded_as_if_it_were_float(checkpoint, tmp_path):
    import shutil

    copy = tmp_path / "checkpoint"
    shutil.copytree(checkpoint / "transformer", copy / "transformer")
    weights = DitWeights(Checkpoint.open(checkpoint).dit_tensors())
    tensors = {name: weights.load(name) for name in weights.names}
    tensors["blocks.0.ffn.0.weight"] = tensors["blocks.0.ffn.0.weight"].to(torch.float8_e4m3fn)
    for file in (copy / "transformer").glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, copy / "transformer" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(Exception, match="blocks.0.ffn.0.weight has dtype torch.float8_e4m3fn; package FP8"):
        Checkpoint.open(copy).load_dit()
