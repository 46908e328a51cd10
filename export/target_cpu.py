"""The CPU target: ONNX graphs in float32 for the text encoder and the VAE decoder, the DiT as safetensors."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from export import onnx_graphs, paths
from export.components import check_components, model_values
from export.dit_package import package_dit
from export.preview_projection import fit_projection
from export.repository import render
from wan.checkpoint import Checkpoint
from wan.text import TEXT_LENGTH

Step = Callable[[str], None]


def build(checkpoint: Checkpoint, repository: Path, denoise_instances: int, step: Step) -> dict:
    """Write a complete repository except for its manifest; returns the manifest's part that only the build knows."""
    dit, vae_config, text = check_components(checkpoint)
    values = model_values(dit, vae_config, text)
    render(repository, values | {"denoise_instances": denoise_instances})
    step("tokenizer")
    shutil.copytree(checkpoint.tokenizer_directory, paths.tokenizer(repository))
    parity = _text_encoder(checkpoint, repository, step)
    vae = checkpoint.load_vae()
    parity |= _vae_decoder(vae, repository, step)
    step("DiT weights")
    package_dit(checkpoint, paths.dit_checkpoint(repository))
    step("preview colours")
    preview = fit_projection(vae)
    strides = {"spatial_stride": vae_config.spatial_stride, "temporal_stride": vae_config.temporal_stride}
    return {
        "defaults": asdict(checkpoint.defaults),
        "caches": sorted(checkpoint.caches),
        "text": {"length": TEXT_LENGTH, "dim": text.d_model},
        "vae": {"z_dim": vae_config.z_dim} | strides,
        "dit": asdict(dit),
        "instances": {"denoise": denoise_instances},
        "precision": {"text_encoder": "float32", "denoise": "float32", "vae_decoder": "float32"},
        "parity": parity,
        "preview": preview,
    }


def _text_encoder(checkpoint: Checkpoint, repository: Path, step: Step) -> dict:
    graph = onnx_graphs.text_encoder_graph(checkpoint.load_text_encoder(), checkpoint.text_config().vocab_size)
    return _export(graph, "text_encoder", repository, step)


def _vae_decoder(vae, repository: Path, step: Step) -> dict:
    parity = {}
    for graph in onnx_graphs.decoder_graphs(vae):
        parity |= _export(graph, "vae_decoder", repository, step)
    return parity


def _export(graph: onnx_graphs.Graph, model: str, repository: Path, step: Step) -> dict:
    step(f"{model}/{graph.file}")
    path = onnx_graphs.write(graph, paths.version(repository, model))
    step(f"{model}/{graph.file} against PyTorch")
    return {f"{model}/{graph.file}": asdict(onnx_graphs.check(graph, path))}
