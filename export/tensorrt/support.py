"""Whether TensorRT can take a graph: every node against the published table of operators and types.

The table is `operators.json`, which names its source. It finds before a GPU is at hand what the parser would
refuse on one.
"""

import json
from functools import lru_cache
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from export.onnx.rewrite import tensor_types

TABLE = Path(__file__).with_name("operators.json")
TYPES: dict[int, str] = {
    TensorProto.FLOAT: "FP32", TensorProto.FLOAT16: "FP16", TensorProto.BFLOAT16: "BF16", TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64", TensorProto.BOOL: "BOOL", TensorProto.UINT8: "UINT8", TensorProto.INT8: "INT8",
}  # fmt: skip
# Their outputs are BOOL whatever the table says of their inputs.
COMPARISONS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf"}
# Inputs that say where or how many rather than what: integers for every operator.
INDEX_INPUTS = {
    "Expand": {1}, "Gather": {1}, "GatherElements": {1}, "GatherND": {1}, "Pad": {1, 3}, "Reshape": {1}, "Slice": {1, 2, 3, 4},
    "Split": {1}, "Squeeze": {1}, "Tile": {1}, "Unsqueeze": {1}, "ConstantOfShape": {0}, "CumSum": {1}, "TopK": {1},
    "ReduceMean": {1}, "ReduceSum": {1}, "ReduceMax": {1}, "ReduceMin": {1}, "ReduceL2": {1}, "ReduceSumSquare": {1},
    "Trilu": {1}, "Where": {0}, "Resize": {3}, "ScatterND": {1}, "ScatterElements": {1},
}  # fmt: skip


@lru_cache(maxsize=1)
def table() -> dict:
    return json.loads(TABLE.read_text())


def unsupported(model: onnx.ModelProto) -> list[str]:
    """One line for each node that the table does not allow; empty for a graph that TensorRT should take.

    `model` has gone through shape inference.
    """
    problems = []
    low, high = table()["opset"]
    for opset in model.opset_import:
        if opset.domain not in ("", "ai.onnx"):
            problems.append(f"operators of the domain {opset.domain!r} are used")
        elif not low <= opset.version <= high:
            problems.append(f"opset is {opset.version}; allowed: {low} to {high}")
    types = tensor_types(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    for node in model.graph.node:
        problems += [f"{node.op_type} {node.name}: {problem}" for problem in _problems(node, types, constants)]
    return problems


def _problems(node: onnx.NodeProto, types: dict[str, int], constants: set[str]) -> list[str]:
    allowed = table()["operators"].get(node.op_type)
    if allowed is None:
        return ["operator is not supported"]
    return [
        *_type_problems(node, types, set(allowed.split())),
        *_attribute_problems(node),
        *(
            f"input {i} ({node.input[i]}) must be a constant"
            for i in table()["constant_inputs"].get(node.op_type, [])
            if i < len(node.input) and node.input[i] and node.input[i] not in constants
        ),
    ]


def _type_problems(node: onnx.NodeProto, types: dict[str, int], allowed: set[str]) -> list[str]:
    problems = []
    skipped = INDEX_INPUTS.get(node.op_type, set())
    tensors = [name for i, name in enumerate(node.input) if name and i not in skipped]
    if node.op_type not in COMPARISONS:
        tensors += [name for name in node.output if name]
    for name in tensors:
        if name not in types:
            problems.append(f"type of {name} is unknown")
        elif (kind := TYPES.get(types[name], str(types[name]))) not in allowed:
            problems.append(f"{name} is {kind}; allowed: {' '.join(sorted(allowed))}")
    return problems


def _attribute_problems(node: onnx.NodeProto) -> list[str]:
    limits = table()["attributes"].get(node.op_type, {})
    problems = []
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        value = value.decode() if isinstance(value, bytes) else value
        if attribute.name in limits and value not in limits[attribute.name]:
            problems.append(f"{attribute.name} is {value!r}; allowed: {', '.join(map(str, limits[attribute.name]))}")
    return problems
