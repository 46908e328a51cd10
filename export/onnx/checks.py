"""Checks of a written graph: ONNX's own rules, inferred types, and parity with PyTorch at several shapes."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from export.onnx.graphs import Graph, GraphMismatch
from export.onnx.rewrite import twin

# A twin of a graph holds its weights in float32 in this process.
TWIN_BYTES = 1_000_000_000
# Root mean square of the difference, relative to that of the expected values. A BF16 rounding is 2^-9 = 0.2 %; some
# dozens of layers add up to 1 to 2 %. A wrong weight or a missing cache is off by 30 % and more.
BF16_TOLERANCE = 0.06
FP32_TOLERANCE = 1e-4


@dataclass(frozen=True)
class ShapeParity:
    """Parity at one shape: the largest difference and value, and the root mean square relative to the expected values'."""

    shape: list[int]  # of the first input
    max_difference: float
    max_value: float
    relative_rms: float


def validate(path: Path) -> onnx.ModelProto:
    """Run onnx.checker with full shape inference on the file; returns the model with inferred types, without large weights.

    Raises GraphMismatch naming the file. Works on the path, as weights over 2 GB lie beside the graph.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path, load_external_data=False)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphMismatch(f"{path}: {error}") from error


def _session(source, optimise: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    if not optimise:  # an optimiser may take the twin's round trips through BF16 for waste
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _numpy(tensor: Tensor) -> np.ndarray:
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _compare(path: Path, session, graph: Graph, expected_of: Graph, k: int) -> ShapeParity:
    inputs = graph.sample(k)
    with torch.no_grad():
        expected = expected_of.module(*expected_of.sample(k))
    expected = expected if isinstance(expected, tuple) else (expected,)
    outputs = session.run(graph.outputs, {name: _numpy(t) for name, t in zip(graph.inputs, inputs, strict=True)})
    difference = largest = value = squares = 0.0
    for name, ours, tensor in zip(graph.outputs, outputs, expected, strict=True):
        theirs = _numpy(tensor)
        if ours.shape != theirs.shape:
            raise GraphMismatch(
                f"{path}: output {name} has shape {list(ours.shape)}, PyTorch's has {list(theirs.shape)}"
            )
        delta = ours.astype(np.float64) - theirs
        difference += float((delta**2).sum())
        squares += float((theirs.astype(np.float64) ** 2).sum())
        largest = max(largest, float(np.abs(delta).max(initial=0.0)))
        value = max(value, float(np.abs(theirs).max(initial=0.0)))
    return ShapeParity(list(inputs[0].shape), largest, value, (difference / max(squares, 1e-30)) ** 0.5)


def parity(graph: Graph, path: Path, reference: Graph | None, samples: int = 3) -> dict:
    """Parity of the file with the float32 `reference` in PyTorch, at `samples` shapes; returns the manifest's entry.

    A graph that is its own reference is float32; any other is BF16 and runs as its rounding twin. Without a reference,
    or with more weights than the twin may hold, nothing is compared. Raises GraphMismatch beyond the tolerance.
    """
    is_bf16 = graph is not reference
    if reference is None or (is_bf16 and path.stat().st_size + _external_bytes(path) > TWIN_BYTES):
        return {"skipped": f"the graph has more than {TWIN_BYTES} bytes of weights"}
    if is_bf16:
        session = _session(twin(onnx.load(path)).SerializeToString(), optimise=False)
    else:
        session = _session(path, optimise=True)
    rows = [_compare(path, session, graph, reference, k) for k in range(samples)]
    allowed = BF16_TOLERANCE if is_bf16 else FP32_TOLERANCE
    worst = max(rows, key=lambda row: row.relative_rms)
    if not worst.relative_rms <= allowed:
        raise GraphMismatch(
            f"{path}: differs from PyTorch by {worst.relative_rms:.3g} at {worst.shape}; allowed: {allowed:g}"
        )
    return {
        "against": "float32 PyTorch",
        "precision": "bf16" if is_bf16 else "float32",
        "max_difference": max(row.max_difference for row in rows),
        "max_value": max(row.max_value for row in rows),
        "shapes": [asdict(row) for row in rows],
    }


def _external_bytes(path: Path) -> int:
    data = path.with_name(path.name + ".data")
    return data.stat().st_size if data.is_file() else 0
