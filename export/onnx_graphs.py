"""The text encoder and the VAE decoder as ONNX graphs, and the proof that they compute what PyTorch computes.

The decoder becomes two graphs, one for the first latent frame of a video and one for every later frame. What the
causal convolutions remember between frames is an explicit input and output of the graphs, so that memory does not
depend on the length of a video and any runtime can drive the loop.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from stages.vae_runtime import cache_input, cache_output
from wan.vae import WanVAE

OPSET = 20
# ONNX files are protobuf messages, which end at 2 GiB; larger weights go into a file beside the graph.
EXTERNAL_DATA_BYTES = 1_500_000_000
DYNAMIC = torch.export.Dim.DYNAMIC
# Relative to the largest value. Measured on float32 graphs of every size: under 1e-5; a wrong graph is off by 1e-1.
TOLERANCE = 1e-3


class GraphMismatch(Exception):
    """A graph does not compute what the PyTorch module computes."""


@dataclass(frozen=True)
class Graph:
    """One ONNX file: a module, its named inputs and outputs, and inputs to trace and to check it with.

    `sample(k)` returns the inputs of check number k; shapes differ between numbers where the graph is dynamic.
    """

    file: str
    module: nn.Module
    inputs: list[str]
    outputs: list[str]
    dynamic_axes: dict[int, object]  # of every input
    sample: Callable[[int], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Parity:
    """The largest difference between ONNX Runtime and PyTorch, and the largest value of the outputs it is about."""

    max_difference: float
    max_value: float

    @property
    def relative(self) -> float:
        return self.max_difference / max(self.max_value, 1e-12)


class _FirstFrame(nn.Module):
    def __init__(self, vae: WanVAE):
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        frames, cache = self.vae.decode_step(latents, None)
        return frames, *cache


class _NextFrame(nn.Module):
    def __init__(self, vae: WanVAE):
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        frames, cache_out = self.vae.decode_step(latents, list(cache))
        return frames, *cache_out


def decoder_graphs(vae: WanVAE) -> list[Graph]:
    """LATENTS [1, z, 1, h, w] and the cache to FRAMES [1, 3, 1 or 4, 8h, 8w] in [-1, 1] and the next cache."""
    sizes = [(6, 10), (8, 8), (4, 12)]

    def latents(k: int) -> Tensor:
        generator = torch.Generator().manual_seed(k)
        return torch.randn(1, vae.config.z_dim, 1, *sizes[k % len(sizes)], generator=generator)

    def with_cache(k: int) -> tuple[Tensor, ...]:
        with torch.no_grad():
            cache = vae.decode_step(latents(k), None)[1]
        # clone(): slots that are still empty share their zeros, and the tracer takes shared tensors for one input
        return latents(k).flip(1), *(slot.clone() for slot in cache)

    slots = len(with_cache(0)) - 1
    spatial = {3: DYNAMIC, 4: DYNAMIC}
    cache_out = [cache_output(i) for i in range(slots)]
    cache_in = [cache_input(i) for i in range(slots)]
    return [
        Graph("first.onnx", _FirstFrame(vae), ["LATENTS"], ["FRAMES", *cache_out], spatial, lambda k: (latents(k),)),
        Graph("next.onnx", _NextFrame(vae), ["LATENTS", *cache_in], ["FRAMES", *cache_out], spatial, with_cache),
    ]


def text_encoder_graph(encoder: nn.Module, vocabulary: int) -> Graph:
    """IDS and MASK int32 [1, L] to CONTEXT float32 [1, L, D], zero where the mask is."""

    def prompt(k: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(k)
        length, padding = (48, 17, 130)[k % 3], (8, 0, 40)[k % 3]
        ids = torch.randint(2, vocabulary, (1, length), generator=generator, dtype=torch.int32)
        mask = (torch.arange(length) < length - padding).int()[None]
        return ids * mask, mask

    return Graph("model.onnx", encoder, ["IDS", "MASK"], ["CONTEXT"], {1: DYNAMIC}, prompt)


def write(graph: Graph, folder: Path, opset: int = OPSET) -> Path:
    """Trace the module and write its ONNX file; returns the path."""
    path = folder / graph.file
    weights = sum(p.numel() * p.element_size() for p in graph.module.parameters())
    sample = graph.sample(0)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations inside the exporter itself
        torch.onnx.export(
            graph.module.eval(),
            sample,
            path,
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_shapes=_dynamic_shapes(graph, len(sample)),
            opset_version=opset,
            external_data=weights > EXTERNAL_DATA_BYTES,
            dynamo=True,
            verbose=False,
        )
    return path


def _dynamic_shapes(graph: Graph, count: int):
    """One entry for each parameter of `forward`; a variadic one takes all that is left."""
    code = type(graph.module).forward.__code__
    named = code.co_argcount - 1  # without self
    return *(graph.dynamic_axes,) * named, *([(graph.dynamic_axes,) * (count - named)] if count > named else [])


def check(graph: Graph, path: Path, samples: int = 3) -> Parity:
    """Run the written file and the module on the same inputs; raises GraphMismatch beyond TOLERANCE."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    difference = largest = 0.0
    for k in range(samples):
        inputs = graph.sample(k)
        with torch.no_grad():
            expected = graph.module(*inputs)
        expected = expected if isinstance(expected, tuple) else (expected,)
        feed = {name: tensor.numpy() for name, tensor in zip(graph.inputs, inputs, strict=True)}
        for name, ours, theirs in zip(graph.outputs, session.run(graph.outputs, feed), expected, strict=True):
            if ours.shape != tuple(theirs.shape):
                raise GraphMismatch(
                    f"{path}: output {name} has shape {ours.shape}, PyTorch's has {tuple(theirs.shape)}"
                )
            if ours.size:
                difference = max(difference, float(np.abs(ours - theirs.numpy()).max()))
                largest = max(largest, float(theirs.abs().max()))
    parity = Parity(difference, largest)
    if not parity.relative <= TOLERANCE:
        raise GraphMismatch(
            f"{path}: differs from PyTorch by {difference:.3g} of {largest:.3g}; allowed: {TOLERANCE:g} of it"
        )
    return parity
