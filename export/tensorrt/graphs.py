"""The graphs that TensorRT takes: written, checked and recorded; kept beside the repository.

They are BF16 with float32 inputs and outputs. Each comes with the float32 graph of the same code to check it against.

They stay after the export, so that plans can be built again for another GPU or TensorRT without the checkpoint's
networks being traced again.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from export.atomic import Journal
from export.onnx.bf16 import BF16, Bf16Clip, Bf16Vae, use_float32_softmax
from export.onnx.checks import TWIN_BYTES, parity, validate
from export.onnx.graphs import (
    Graph,
    clip_graph,
    decoder_graphs,
    encoder_graphs,
    text_graph_of_fixed_length,
    write,
)
from export.onnx.rewrite import fold_file
from export.tensorrt.support import unsupported
from stages.vae_runtime import FIRST, NEXT
from wan.checkpoint import Checkpoint
from wan.errors import WanError

BF16_OPSET = 22  # the first whose Conv takes BF16; TensorRT reads up to 24
Step = Callable[[str], None]
Once = Callable[[str, Path, Callable[[], dict]], dict]
VAE_GRAPHS = [(model, file) for model in ("vae_decoder", "vae_encoder") for file in (FIRST, NEXT)]
TEXT_GRAPH = ("text_encoder", "model.onnx")
CLIP_GRAPH = ("image_encoder", "model.onnx")


class UnsupportedGraph(WanError):
    """A graph has nodes that TensorRT does not take."""


@dataclass(frozen=True)
class Pair:
    """A graph as TensorRT takes it, and the float32 graph of the same network to compare it with, if that fits."""

    model: str
    bf16: Graph
    float32: Graph | None


def parameters(tensors) -> int:
    """How many parameters a component of a checkpoint has."""
    return sum(prod(tensors.shape(name)) for name in tensors.names)


def _export(pair: Pair, folder: Path, step: Step) -> dict:
    name = f"{pair.model}/{pair.bf16.file}"
    step(name)
    path = write(pair.bf16, folder, BF16_OPSET)
    if (pair.model, pair.bf16.file) in VAE_GRAPHS:
        fold_file(path)
    step(f"{name}: rules, types and TensorRT's operators")
    model = validate(path)
    if problems := unsupported(model):
        raise UnsupportedGraph(
            f"{path}: TensorRT does not take {len(problems)} nodes:\n  " + "\n  ".join(problems[:20])
        )
    step(f"{name} against PyTorch")
    return {"nodes": len(model.graph.node), "parity": parity(pair.bf16, path, pair.float32)}


def _vae(checkpoint: Checkpoint) -> Iterator[Pair]:
    """Decoder and encoder, first and next step each."""
    vae = checkpoint.load_vae()
    narrow = Bf16Vae(vae)
    for model, make in (("vae_decoder", decoder_graphs), ("vae_encoder", encoder_graphs)):
        yield from (Pair(model, bf16, float32) for bf16, float32 in zip(make(narrow), make(vae), strict=True))


def _clip(checkpoint: Checkpoint) -> Iterator[Pair]:
    clip = checkpoint.load_clip()
    yield Pair("image_encoder", clip_graph(Bf16Clip(clip)), clip_graph(clip))


def _text(checkpoint: Checkpoint) -> Iterator[Pair]:
    """The text encoder; one too large to be held in float32 as well has no reference."""
    large = parameters(checkpoint.text_tensors()) * 4 > TWIN_BYTES
    encoder = checkpoint.load_text_encoder(dtype=BF16 if large else None)
    vocabulary = checkpoint.text_config().vocab_size
    narrow = use_float32_softmax(encoder if large else copy.deepcopy(encoder).to(BF16))
    reference = None if large else text_graph_of_fixed_length(encoder, vocabulary)
    yield Pair("text_encoder", text_graph_of_fixed_length(narrow, vocabulary), reference)


def _each_time(model: str, path: Path, make: Callable[[], dict]) -> dict:
    return make()


def export_graphs(checkpoint: Checkpoint, graphs: Path, key: str, step: Step, once: Once = _each_time) -> dict:
    """Write the graphs to `graphs`, except those that an earlier run with the same `key` finished.

    `once` may have a model's graph from another checkpoint of the same weights. Returns for each graph its number of
    nodes and its parity. Raises GraphMismatch and UnsupportedGraph.
    """
    graphs.mkdir(parents=True, exist_ok=True)
    journal = Journal(graphs / "journal.json", key)
    results = {}
    clip = [([CLIP_GRAPH], _clip)] if checkpoint.dit_config().image_dim else []
    for names, pairs_of in (([TEXT_GRAPH], _text), (VAE_GRAPHS, _vae), *clip):
        pairs: dict[tuple[str, str], Pair] = {}
        for model, file in names:
            path = graphs / model / file

            def run(model=model, file=file, path=path, pairs=pairs, pairs_of=pairs_of):
                if not pairs:
                    pairs |= {(pair.model, pair.bf16.file): pair for pair in pairs_of(checkpoint)}
                return _export(pairs[model, file], path.parent, step)

            def found(model=model, path=path, run=run):
                path.parent.mkdir(exist_ok=True)
                return once(model, path, run)

            results[f"{model}/{file}"] = journal.step(f"{model}/{file}", [path], found)
    return results
