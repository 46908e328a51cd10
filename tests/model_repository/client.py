"""A small client of the ensemble for the tests."""

import json
import re
import urllib.request

import numpy as np
import tritonclient.grpc as grpcclient

from contract.parameters import TENSORS
from contract.tensors import NUMPY

TYPES = {p.tensor_name: (p.kind, NUMPY[p.kind]) for p in TENSORS if p.kind != "STRING"}
# The smallest video there is: one frame, one step.
SMALLEST = {"WIDTH": 16, "HEIGHT": 16, "NUM_FRAMES": 1, "STEPS": 1}


def tensors(**values) -> list[grpcclient.InferInput]:
    inputs = []
    for name, value in values.items():
        if isinstance(value, str | bytes):
            kind, array = "BYTES", np.array([value.encode() if isinstance(value, str) else value], np.object_)
        else:
            kind, dtype = TYPES.get(name, ("INT32", np.int32))
            array = np.array([value], dtype)
        tensor = grpcclient.InferInput(name, list(array.shape), kind)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def generate(url: str, *, request_id: str = "", parameters: dict | None = None, **values) -> tuple[np.ndarray, dict]:
    """Frames uint8 [T, H, W, 3] and INFO of one request."""
    with grpcclient.InferenceServerClient(url) as client:
        answer = client.infer("wan", tensors(**values), request_id=request_id, parameters=parameters)
        return answer.as_numpy("FRAMES"), json.loads(answer.as_numpy("INFO")[0])


def metric(triton, name: str, **labels: str) -> float:
    """The sum of all samples of a metric that carry the labels."""
    text = urllib.request.urlopen(triton.metrics_url, timeout=10).read().decode()
    samples = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(float(value) for found, value in samples if all(label in found for label in wanted))
