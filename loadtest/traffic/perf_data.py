"""Input data for perf_analyzer: real tensors of the ensemble and of each of its stages, as JSON.

The stages' inputs are made by running the ensemble's steps one by one, exactly as its configuration maps them, so each
stage is measured with what it would really get.
"""

import base64
import json
import secrets
import struct
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import tritonclient.grpc as grpc_client
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype

from contract.tensors import arrays
from loadtest.base.inputs import TargetUnavailable
from loadtest.traffic.profile import Order, Target

Tensor = tuple[str, tuple[int, ...], bytes]  # (Triton dtype, shape, raw content as it goes over the wire)


def write_input_data(target: Target, orders: list[Order], folder: Path) -> dict[str, Path]:
    """One data file for the ensemble and one for each composing model; {model name: file}."""
    try:
        with grpc_client.InferenceServerClient(urlsplit(target.url).netloc) as client:
            config = client.get_model_config(target.model, as_json=True)["config"]
            items: dict[str, list[dict]] = {target.model: []}
            for order in orders:
                inputs = {name: from_numpy(array) for name, array in arrays(order.request).items()}
                items[target.model].append(entry(inputs))
                for model, given in walk(client, config, inputs):
                    items.setdefault(model, []).append(entry(given))
            for model in filter(lambda name: is_cached(client, name), items):
                items[model] = [entry(unseen(client, config, order, model)) for order in orders]
    except InferenceServerException as error:
        raise TargetUnavailable(f"{target.url}: {error}") from error
    files = {}
    for model, data in items.items():
        files[model] = folder / f"{model}.input.json"
        files[model].write_text(json.dumps({"data": data}), encoding="utf-8")
    return files


def is_cached(client, model: str) -> bool:
    """Whether Triton's response cache answers requests to the model that it has seen before."""
    return client.get_model_config(model, as_json=True)["config"].get("response_cache", {}).get("enable", False)


def unseen(client, config: dict, order: Order, model: str) -> dict[str, Tensor]:
    """Inputs of a cached model that it has never had: of a prompt of their own, on which the model is not run here."""
    fresh = replace(order, prompt=f"{order.prompt}, take {secrets.token_hex(4)}")
    inputs = {name: from_numpy(array) for name, array in arrays(fresh.request).items()}
    return next(given for name, given in walk(client, config, inputs) if name == model)


def walk(client, config: dict, inputs: dict[str, Tensor]):
    """Run an ensemble's steps in order by direct calls, yielding (model, inputs) before each call."""
    pool = dict(inputs)  # ensemble tensor name -> tensor
    for step in config.get("ensemble_scheduling", {}).get("step", []):
        given = {mine: pool[theirs] for mine, theirs in step["input_map"].items() if theirs in pool}
        yield step["model_name"], given
        outputs = step["output_map"]
        answer = client.infer(
            step["model_name"],
            [_infer_input(name, tensor) for name, tensor in given.items()],
            outputs=[grpc_client.InferRequestedOutput(name) for name in outputs],
        )
        raw = answer.get_response()
        for meta, content in zip(raw.outputs, raw.raw_output_contents, strict=True):
            pool[outputs[meta.name]] = (meta.datatype, tuple(meta.shape), content)


def _infer_input(name: str, tensor: Tensor) -> grpc_client.InferInput:
    dtype, shape, content = tensor
    made = grpc_client.InferInput(name, list(shape), dtype)
    made._raw_content = content  # BF16 has no numpy type: the bytes go on as they came
    return made


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor as it goes over the wire; strings get their 4-byte length."""
    if array.dtype == object:
        return "BYTES", array.shape, b"".join(struct.pack("<I", len(text)) + text for text in array.ravel())
    return np_to_triton_dtype(array.dtype), array.shape, array.tobytes()


def entry(tensors: dict[str, Tensor]) -> dict:
    """One request in perf_analyzer's JSON: short numbers readable, everything else base64."""
    made = {}
    for name, (dtype, shape, content) in tensors.items():
        plain = triton_to_np_dtype(dtype) if dtype not in ("BYTES", "BF16") else None
        if plain is not None and len(content) <= 64:
            made[name] = {"content": np.frombuffer(content, plain).tolist(), "shape": list(shape)}
        else:
            made[name] = {"b64": base64.b64encode(content).decode(), "shape": list(shape)}
    return made
