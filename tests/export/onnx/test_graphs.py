"""The check must find a graph that is wrong; that the exported ones are right is in the manifest of every export."""

import numpy as np
import onnxruntime
import pytest
import torch

from export.onnx.checks import parity
from export.onnx.graphs import GraphMismatch, decoder_graphs
from stages.vae_runtime import FIRST, NEXT
from wan.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def graphs(checkpoint):
    return {graph.file: graph for graph in decoder_graphs(Checkpoint.open(checkpoint).load_vae())}


@pytest.mark.parametrize("file", ["first.onnx", "next.onnx"])
def test_the_exported_decoder_agrees_with_pytorch_at_several_sizes(graphs, repository, file):
    measured = parity(graphs[file], repository / "vae_decoder" / "1" / file, graphs[file])
    assert measured["max_difference"] < 1e-4 * measured["max_value"]


def test_a_graph_of_other_weights_is_found(checkpoint, repository):
    vae = Checkpoint.open(checkpoint).load_vae()
    with torch.no_grad():
        vae.decoder.conv1.weight.mul_(1.05)
    graph = decoder_graphs(vae)[0]
    with pytest.raises(GraphMismatch, match=r"first.onnx: differs from PyTorch by"):
        parity(graph, repository / "vae_decoder" / "1" / "first.onnx", graph)


def test_the_cache_of_the_next_step_is_the_output_of_the_step_before(graphs):
    first, after = graphs["first.onnx"], graphs["next.onnx"]
    assert first.outputs == after.outputs
    assert [name.removeprefix("NEXT_") for name in first.outputs[1:]] == after.inputs[1:]
    for k in range(2):
        produced = first.module(*first.sample(k))[1:]
        taken = after.sample(k)[1:]
        assert [tuple(t.shape) for t in produced] == [tuple(t.shape) for t in taken]


def test_the_exported_encoder_reproduces_pytorch_over_whole_videos(checkpoint, repository):
    vae = Checkpoint.open(checkpoint).load_vae()
    folder = repository / "vae_encoder" / "1"
    first, after = (
        onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"]) for file in (FIRST, NEXT)
    )
    for frames, height, width in ((1, 64, 64), (5, 32, 96), (9, 48, 80)):
        video = torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(frames)) * 2 - 1
        latents, *cache = first.run(None, {"FRAMES": video[:, :, :1].numpy()})
        chunks = [latents]
        for start in range(1, frames, 4):
            names = [value.name for value in after.get_inputs()]
            latents, *cache = after.run(
                None, dict(zip(names, [video[:, :, start : start + 4].numpy(), *cache], strict=True))
            )
            chunks.append(latents)
        assert np.abs(np.concatenate(chunks, axis=2) - vae.encode(video).numpy()).max() <= 1e-4
