"""Rewrites of written graphs: slices of weights folded into weights, and a float32 twin of a BF16 graph.

Fold: the first step of the VAE uses a third of each convolution kernel, since the past is zero. The exporter leaves the
slicing in the graph; TensorRT chooses its convolution kernels for constant weights.

Twin: ONNX Runtime on a CPU lacks most BF16 kernels. The twin computes each node in float32 and rounds its BF16 outputs,
which is what a tensor core does: BF16 operands, float32 accumulation, one rounding at the end.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.atomic import replacing

BF16, FP32 = TensorProto.BFLOAT16, TensorProto.FLOAT
# Nodes that only move values: what was rounded stays rounded.
MOVING = {
    "Reshape", "Transpose", "Concat", "Slice", "Split", "Squeeze", "Unsqueeze", "Expand", "Gather", "Identity", "Pad", "Flatten",
}  # fmt: skip


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


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor of the main graph, by name; the model must have gone through shape inference."""
    graph = model.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: kind for name, kind in types.items() if kind}


def _widen(tensor: TensorProto) -> TensorProto:
    if tensor.data_type != BF16:
        return tensor
    values = numpy_helper.to_array(tensor).astype(np.float32)
    return numpy_helper.from_array(values, tensor.name)


def _widen_attributes(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == BF16:
            attribute.t.CopyFrom(_widen(attribute.t))


def _rounded(node: onnx.NodeProto, types: dict[str, int]) -> list[onnx.NodeProto]:
    """The node in float32, followed by a round trip through BF16 for each of its BF16 outputs."""
    _widen_attributes(node)
    if node.op_type == "Cast":
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == BF16:
                attribute.i = FP32
    nodes = [node]
    if node.op_type in MOVING or node.op_type == "Constant":
        return nodes
    for i, name in enumerate(node.output):
        if types.get(name) == BF16:
            node.output[i] = f"{name}/exact"
            nodes.append(helper.make_node("Cast", [f"{name}/exact"], [f"{name}/bf16"], to=BF16))
            nodes.append(helper.make_node("Cast", [f"{name}/bf16"], [name], to=FP32))
    return nodes


def twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float32 twin of a strongly typed BF16 model; inputs, outputs and shapes keep their names."""
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    types = tensor_types(model)
    graph = model.graph
    nodes = [new for node in graph.node for new in _rounded(node, types)]
    weights = [_widen(tensor) for tensor in graph.initializer]
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == BF16:
            value.type.tensor_type.elem_type = FP32
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
    return model
