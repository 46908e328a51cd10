"""Folds slices of weights into weights.

The first step of the VAE uses a third of each convolution kernel, since the past is zero. The exporter leaves the
slicing in the graph; TensorRT chooses its convolution kernels for constant weights.
"""

from pathlib import Path

import onnx
from onnx import numpy_helper

from export.atomic import replacing


def _slice(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> onnx.TensorProto:
    data, starts, ends, *rest = (numpy_helper.to_array(constants[name]) for name in node.input)
    axes = rest[0] if rest else range(len(starts))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[int(axis)] = slice(int(start), int(end), int(step))
    return numpy_helper.from_array(data[tuple(index)].copy(), node.output[0])


def fold_slices(model: onnx.ModelProto) -> int:
    """Replace every Slice whose inputs are all initializers by its result; returns how many there were."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    folded = [node for node in graph.node if node.op_type == "Slice" and all(name in constants for name in node.input)]
    graph.initializer.extend([_slice(node, constants) for node in folded])
    for node in folded:
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return len(folded)


def fold_file(path: Path) -> None:
    """Fold the slices of the graph at `path`, whose weights are in the same file."""
    model = onnx.load(path)
    if fold_slices(model):
        with replacing(path) as temporary:
            onnx.save(model, temporary)
