"""The graphs step of the GPU target: write, check and record every ONNX graph; kept beside the repository.

They stay after the export, so that plans can be built again for another GPU or TensorRT without the checkpoint's
networks being traced again.
"""

from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

from export import onnx_graphs
from export.atomic import Journal
from export.onnx_checks import TWIN_BYTES, parity, validate
from export.onnx_fold import fold_file
from export.onnx_gpu_graphs import BF16, Pair, text_pair, vae_pairs
from export.trt_support import unsupported
from stages.vae_runtime import FIRST, NEXT
from wan.checkpoint import Checkpoint
from wan.errors import WanError

BF16_OPSET = 22  # the first whose Conv takes BF16; TensorRT reads up to 24
Step = Callable[[str], None]
VAE_GRAPHS = [(model, file) for model in ("vae_decoder", "vae_encoder") for file in (FIRST, NEXT)]
TEXT_GRAPH = ("text_encoder", "model.onnx")


class UnsupportedGraph(WanError):
    """A graph has nodes that TensorRT does not take."""


def parameters(tensors) -> int:
    """How many parameters a component of a checkpoint has."""
    return sum(prod(tensors.shape(name)) for name in tensors.names)


def _export(pair: Pair, folder: Path, step: Step) -> dict:
    name = f"{pair.model}/{pair.bf16.file}"
    step(name)
    path = onnx_graphs.write(pair.bf16, folder, BF16_OPSET)
    if pair.model != TEXT_GRAPH[0]:
        fold_file(path)
    step(f"{name}: rules, types and TensorRT's operators")
    model = validate(path)
    if problems := unsupported(model):
        raise UnsupportedGraph(
            f"{path}: TensorRT does not take {len(problems)} nodes:\n  " + "\n  ".join(problems[:20])
        )
    step(f"{name} against PyTorch")
    return {"nodes": len(model.graph.node), "parity": parity(pair.bf16, path, pair.float32)}


def _text(checkpoint: Checkpoint) -> Iterator[Pair]:
    large = parameters(checkpoint.text_tensors()) * 4 > TWIN_BYTES
    encoder = checkpoint.load_text_encoder(dtype=BF16 if large else None)
    yield text_pair(encoder, checkpoint.text_config().vocab_size)


def export_graphs(checkpoint: Checkpoint, graphs: Path, key: str, step: Step) -> dict:
    """Write the graphs to `graphs`, except those that an earlier run with the same `key` finished.

    Returns for each graph its number of nodes and its parity. Raises GraphMismatch and UnsupportedGraph.
    """
    graphs.mkdir(parents=True, exist_ok=True)
    journal = Journal(graphs / "journal.json", key)
    results = {}
    for names, pairs_of in (
        ([TEXT_GRAPH], _text),
        (VAE_GRAPHS, lambda checkpoint: vae_pairs(checkpoint.load_vae())),
    ):
        pairs: dict[tuple[str, str], Pair] = {}
        for model, file in names:
            path = graphs / model / file

            def run(model=model, file=file, path=path, pairs=pairs, pairs_of=pairs_of):
                if not pairs:
                    pairs |= {(pair.model, pair.bf16.file): pair for pair in pairs_of(checkpoint)}
                path.parent.mkdir(exist_ok=True)
                return _export(pairs[model, file], path.parent, step)

            results[f"{model}/{file}"] = journal.step(f"{model}/{file}", [path], run)
    return results
