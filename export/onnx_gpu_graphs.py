"""The graphs that a GPU needs: BF16 with float32 inputs and outputs, the encoder of the VAE among them.

Each comes with the float32 graph of the same code, against which it is checked and which ONNX Runtime can run.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.onnx_bf16 import BF16, Bf16Vae, Float32Context, use_float32_softmax
from export.onnx_graphs import DYNAMIC, Graph, decoder_graphs
from stages.vae_runtime import FIRST, NEXT, cache_input, cache_output
from wan.text import TEXT_LENGTH, TextEncoder
from wan.vae import WanVAE


@dataclass(frozen=True)
class Pair:
    """A graph as TensorRT takes it, and the float32 graph of the same network to compare it with, if that fits."""

    model: str
    bf16: Graph
    float32: Graph | None


class _FirstChunk(nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        latents, cache = self.vae.encode_step(frames, None)
        return latents, *cache


class _NextChunk(nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, frames: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        latents, cache_out = self.vae.encode_step(frames, list(cache))
        return latents, *cache_out


def encoder_graphs(vae: WanVAE | Bf16Vae) -> list[Graph]:
    """FRAMES [1, 3, 1 or 4, 8h, 8w] in [-1, 1] and the cache to LATENTS [1, z, 1, h, w] and the next cache."""
    sizes, stride = [(6, 10), (8, 8), (4, 12)], vae.config.spatial_stride

    def frames(k: int, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(k)
        height, width = sizes[k % len(sizes)]
        return torch.rand(1, 3, count, height * stride, width * stride, generator=generator) * 2 - 1

    def with_cache(k: int) -> tuple[Tensor, ...]:
        with torch.no_grad():
            cache = vae.encode_step(frames(k, 1), None)[1]
        return frames(k + 10 * len(sizes), vae.config.temporal_stride), *(slot.clone() for slot in cache)

    slots = len(with_cache(0)) - 1
    outputs = ["LATENTS", *(cache_output(i) for i in range(slots))]
    inputs = ["FRAMES", *(cache_input(i) for i in range(slots))]
    spatial = {3: DYNAMIC, 4: DYNAMIC}
    return [
        Graph(FIRST, _FirstChunk(vae), ["FRAMES"], outputs, spatial, lambda k: (frames(k, 1),)),
        Graph(NEXT, _NextChunk(vae), inputs, outputs, spatial, with_cache),
    ]


def text_graph(encoder: nn.Module, vocabulary: int) -> Graph:
    """IDS and MASK int32 [B, 512] to CONTEXT float32 [B, 512, D]; of fixed length, so that position tables are constants."""

    def prompt(k: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(k)
        lengths = torch.tensor([[48, 512], [1, 300], [511, 17]][k % 3])[:, None]
        ids = torch.randint(2, vocabulary, (2, TEXT_LENGTH), generator=generator, dtype=torch.int32)
        mask = (torch.arange(TEXT_LENGTH)[None] < lengths).int()
        return ids * mask, mask

    return Graph("model.onnx", Float32Context(encoder), ["IDS", "MASK"], ["CONTEXT"], {0: DYNAMIC}, prompt)


def vae_pairs(vae: WanVAE) -> list[Pair]:
    """Decoder and encoder, first and next step each."""
    narrow = Bf16Vae(vae)
    pairs = []
    for model, make in (("vae_decoder", decoder_graphs), ("vae_encoder", encoder_graphs)):
        pairs += [Pair(model, bf16, float32) for bf16, float32 in zip(make(narrow), make(vae), strict=True)]
    return pairs


def text_pair(encoder: TextEncoder, vocabulary: int) -> Pair:
    """The text encoder. One that comes in BF16 is too large to be held in float32 as well, and has no reference."""
    if next(encoder.parameters()).dtype == BF16:
        return Pair("text_encoder", text_graph(use_float32_softmax(encoder), vocabulary), None)
    narrow = use_float32_softmax(copy.deepcopy(encoder).to(BF16))
    return Pair("text_encoder", text_graph(narrow, vocabulary), text_graph(encoder, vocabulary))
