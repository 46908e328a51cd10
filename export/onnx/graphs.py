"""The text encoder, CLIP and the VAE as ONNX graphs.

Decoder and encoder become two graphs each, one for the first latent frame of a video and one for every later frame. What the
causal convolutions remember between frames is an explicit input and output of the graphs, so that memory does not
depend on the length of a video and any runtime can drive the loop.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from export.onnx.bf16 import Bf16Clip, Bf16Vae, Float32Context
from stages.vae_runtime import FIRST, NEXT, cache_input, cache_output
from wan.clip import ClipVision
from wan.text import TEXT_LENGTH
from wan.vae import WanVAE

OPSET = 20
# ONNX files are protobuf messages, which end at 2 GiB; larger weights go into a file beside the graph.
EXTERNAL_DATA_BYTES = 1_500_000_000
DYNAMIC = torch.export.Dim.DYNAMIC
SIZES = ((6, 10), (8, 8), (4, 12))  # latent height and width of the samples
Sample = Callable[[int], Tensor]


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


class _FirstStep(nn.Module):
    """A step of the VAE that nothing comes before; `method` is `decode_step` or `encode_step`."""

    def __init__(self, vae: nn.Module, method: str):
        super().__init__()
        self.vae, self.method = vae, method

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, cache = getattr(self.vae, self.method)(x, None)
        return y, *cache


class _NextStep(_FirstStep):
    """A step of the VAE that goes on from the cache of the step before."""

    def forward(self, x: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        y, cache_out = getattr(self.vae, self.method)(x, list(cache))
        return y, *cache_out


def _step_graphs(vae: nn.Module, method: str, taken: str, made: str, first: Sample, later: Sample) -> list[Graph]:
    """Both steps of one direction of the VAE; `first(k)` and `later(k)` are samples of what they take."""

    def with_cache(k: int) -> tuple[Tensor, ...]:
        with torch.no_grad():
            cache = getattr(vae, method)(first(k), None)[1]
        # clone(): slots that are still empty share their zeros, and the tracer takes shared tensors for one input
        return later(k), *(slot.clone() for slot in cache)

    slots = len(with_cache(0)) - 1
    inputs, outputs = [taken, *map(cache_input, range(slots))], [made, *map(cache_output, range(slots))]
    spatial = {3: DYNAMIC, 4: DYNAMIC}
    return [
        Graph(FIRST, _FirstStep(vae, method), [taken], outputs, spatial, lambda k: (first(k),)),
        Graph(NEXT, _NextStep(vae, method), inputs, outputs, spatial, with_cache),
    ]


def decoder_graphs(vae: WanVAE | Bf16Vae) -> list[Graph]:
    """LATENTS [1, z, 1, h, w] and the cache to FRAMES [1, 3, 1 or 4, 8h, 8w] in [-1, 1] and the next cache."""

    def latents(k: int) -> Tensor:
        generator = torch.Generator().manual_seed(k)
        return torch.randn(1, vae.config.z_dim, 1, *SIZES[k % len(SIZES)], generator=generator)

    return _step_graphs(vae, "decode_step", "LATENTS", "FRAMES", latents, lambda k: latents(k).flip(1))


def encoder_graphs(vae: WanVAE | Bf16Vae) -> list[Graph]:
    """FRAMES [1, 3, 1 or 4, 8h, 8w] in [-1, 1] and the cache to LATENTS [1, z, 1, h, w] and the next cache."""
    stride, chunk = vae.config.spatial_stride, vae.config.temporal_stride

    def frames(k: int, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(k)
        height, width = SIZES[k % len(SIZES)]
        return torch.rand(1, 3, count, height * stride, width * stride, generator=generator) * 2 - 1

    def later(k: int) -> Tensor:
        return frames(k + 10 * len(SIZES), chunk)

    return _step_graphs(vae, "encode_step", "FRAMES", "LATENTS", lambda k: frames(k, 1), later)


def clip_graph(clip: ClipVision | Bf16Clip) -> Graph:
    """PIXELS float32 [1, 3, S, S], normalised, to TOKENS [1, L, D]."""
    side = clip.config.image_size

    def pixels(k: int) -> tuple[Tensor]:
        return (torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(k)),)

    return Graph("model.onnx", clip, ["PIXELS"], ["TOKENS"], {}, pixels)


def text_encoder_graph(encoder: nn.Module, vocabulary: int) -> Graph:
    """IDS and MASK int32 [1, L] to CONTEXT float32 [1, L, D], zero where the mask is."""

    def prompt(k: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(k)
        length, padding = (48, 17, 130)[k % 3], (8, 0, 40)[k % 3]
        ids = torch.randint(2, vocabulary, (1, length), generator=generator, dtype=torch.int32)
        mask = (torch.arange(length) < length - padding).int()[None]
        return ids * mask, mask

    return Graph("model.onnx", encoder, ["IDS", "MASK"], ["CONTEXT"], {1: DYNAMIC}, prompt)


def text_graph_of_fixed_length(encoder: nn.Module, vocabulary: int) -> Graph:
    """IDS and MASK int32 [B, 512] to CONTEXT float32 [B, 512, D]; of fixed length, so that position tables are constants."""

    def prompt(k: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(k)
        lengths = torch.tensor([[48, 512], [1, 300], [511, 17]][k % 3])[:, None]
        ids = torch.randint(2, vocabulary, (2, TEXT_LENGTH), generator=generator, dtype=torch.int32)
        mask = (torch.arange(TEXT_LENGTH)[None] < lengths).int()
        return ids * mask, mask

    return Graph("model.onnx", Float32Context(encoder), ["IDS", "MASK"], ["CONTEXT"], {0: DYNAMIC}, prompt)


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
