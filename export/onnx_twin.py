"""A float32 twin of a BF16 graph that rounds every result to BF16, to run it where there are no BF16 kernels.

ONNX Runtime on a CPU lacks most of them. The twin computes each node in float32 and rounds its BF16 outputs, which is
what a tensor core does: BF16 operands, float32 accumulation, one rounding at the end.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BF16, FP32 = TensorProto.BFLOAT16, TensorProto.FLOAT
# Nodes that only move values: what was rounded stays rounded.
MOVING = {
    "Reshape",
    "Transpose",
    "Concat",
    "Slice",
    "Split",
    "Squeeze",
    "Unsqueeze",
    "Expand",
    "Gather",
    "Identity",
    "Pad",
    "Flatten",
}


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
