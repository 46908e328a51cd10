"""Peak memory of packaging, on layers of the 1.3B model's real size."""

import json

import torch

from export.dit.benchmark_packaging import MIB, benchmark
from export.dit.random_checkpoint import MODELS, official_umt5
from export.dit.stream import Slot, write_safetensors
from wan import keys
from wan.checkpoint import Checkpoint
from wan.dit import WanDiT
from wan.tensor_files import TensorFiles

BLOCKS = 3


def test_packaging_holds_one_shard_and_one_tensor_not_the_model(tmp_path):
    config = MODELS["t2v-1.3b"].dit
    with torch.device("meta"):
        module = WanDiT(type(config)(**{**vars(config), "num_layers": BLOCKS}))
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    source = tmp_path / "source"
    source.mkdir()
    slots = [Slot(name, torch.float32, shape) for name, shape in shapes.items()]
    tensors = (torch.full(shape, 0.5) for shape in shapes.values())
    write_safetensors(source / "diffusion_pytorch_model.safetensors", slots, tensors, {})
    (source / "config.json").write_text(json.dumps({"num_heads": config.num_heads}))
    (tmp_path / "package").mkdir()
    measured = benchmark(source, tmp_path / "package", "fp8", shard_bytes=32 * MIB)
    assert measured["source_mib"] > 2 * measured["allowed_mib"]
    assert measured["peak_anonymous_mib"] <= measured["allowed_mib"]
    layer = Checkpoint.open(tmp_path / "package").dit_tensors()
    assert layer.load("blocks.2.ffn.0.weight").dtype == torch.float8_e4m3fn


def test_official_names_of_umt5_are_understood(checkpoint):
    tensors: TensorFiles = Checkpoint.open(checkpoint).text_tensors()
    for name in tensors.names - {"encoder.embed_tokens.weight"}:
        official = official_umt5(name)
        assert official != name
        assert keys.umt5_from_official(official) == name
