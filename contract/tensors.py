"""Requests as tensors of the KServe v2 protocol, for everybody who calls or reads the ensemble."""

import json
from collections.abc import Mapping

import numpy as np

from contract.media import BY_NAME as MEDIA
from contract.parameters import TENSORS, Parameter

ENSEMBLE = "wan"
NUMPY = {
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
    "FP64": np.float64,
    "UINT8": np.uint8,
    "STRING": np.object_,
}


def array(parameter: Parameter, value) -> np.ndarray:
    """One value as the tensor of shape [1] that Triton takes; a list as JSON."""
    if isinstance(value, list | tuple):
        value = json.dumps(value)
    return np.array([value.encode() if isinstance(value, str) else value], dtype=NUMPY[parameter.kind])


def arrays(request: Mapping) -> dict[str, np.ndarray]:
    """The ensemble's inputs of a request; what is absent or None takes the checkpoint's default, and so does an empty list."""
    return {p.tensor_name: array(p, request[p.name]) for p in TENSORS if request.get(p.name) not in (None, [], ())}


def infer_inputs(types, request: Mapping, media: Mapping[str, bytes] | None = None) -> list:
    """`arrays` and the encoded files of `media` as InferInput of `types`: tritonclient.grpc or tritonclient.http."""
    inputs = []
    kinds = {p.tensor_name: "BYTES" if p.kind == "STRING" else p.kind for p in TENSORS}
    files = {MEDIA[name].tensor_name: np.array([data], dtype=np.object_) for name, data in (media or {}).items()}
    for name, value in (arrays(request) | files).items():
        tensor = types.InferInput(name, [1], kinds.get(name, "BYTES"))
        tensor.set_data_from_numpy(value)
        inputs.append(tensor)
    return inputs
