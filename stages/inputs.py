"""Reads and checks the tensors of a request. An error names the tensor, its value and what is allowed.

Works on anything shaped like `pb_utils.InferenceRequest`, so it needs no Triton to be tested.
"""

import json
from collections.abc import Callable

import numpy as np

from contract.card import ModelCard
from contract.errors import InvalidRequest
from contract.parameters import TENSORS, GenerationRequest
from contract.tensors import NUMPY

MAX_JSON_CHARACTERS = 1 << 20  # ten times what the longest prompts make of it


def find(request, name: str) -> np.ndarray | None:
    """The tensor as a numpy array; None if the request does not carry it."""
    return next((tensor.as_numpy() for tensor in request.inputs() if tensor.name() == name), None)


def array(
    request, name: str, kind: str, dims: tuple[int, ...], check: Callable[[tuple], None] = lambda shape: None
) -> np.ndarray:
    """A tensor that must be there, with its type and shape; -1 in `dims` allows any length of at least 1.

    `check(shape)` may refuse the shape before anything as large as the tensor is made.
    """
    value = find(request, name)
    shown = f"{kind} {list(dims)}"
    if value is None:
        raise InvalidRequest(name, None, shown)
    fits = len(value.shape) == len(dims) and all(
        d == s or (d == -1 and s > 0) for d, s in zip(dims, value.shape, strict=True)
    )
    if value.dtype != NUMPY[kind] or not fits:
        raise InvalidRequest(name, f"{value.dtype} {list(value.shape)}", shown)
    check(value.shape)
    if kind.startswith("FP") and not np.isfinite(value).all():
        raise InvalidRequest(name, "NaN or infinity", "finite numbers")
    return value


def scalar(request, name: str, kind: str) -> int | float | str:
    """The single value of a tensor of shape [1], text decoded from UTF-8."""
    value = find(request, name)
    if value is None or value.shape != (1,) or value.dtype != NUMPY[kind]:
        given = None if value is None else f"{value.dtype} {list(value.shape)}"
        raise InvalidRequest(name, given, f"one {kind} value, shape [1]")
    item = value[0]
    if kind == "STRING":
        return text(name, item)
    if kind == "FP32":
        return float(str(item))  # the number that was meant: 0.1, not the 0.10000000149 that a float32 makes of it
    return item.item()


def text(name: str, value: bytes | str) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(name, value, f"UTF-8 text (byte {error.start} is 0x{value[error.start]:02x})") from None


def generation_request(request, card: ModelCard) -> tuple[GenerationRequest, bool]:
    """The validated request of the ensemble's inputs, and whether its seed was drawn here.

    Absent inputs take the checkpoint's defaults.
    """
    present = {tensor.name() for tensor in request.inputs()}
    given = {p.name: scalar(request, p.tensor_name, p.kind) for p in TENSORS if p.tensor_name in present}
    if "prompt" not in given:
        raise InvalidRequest("PROMPT", None, "UTF-8 text")
    try:
        return card.request(**given), "seed" not in given
    except InvalidRequest as error:
        raise InvalidRequest(error.field.upper(), error.value, error.allowed) from None


def parameter(request, name: str, default):
    """One of the request parameters that Triton passes to every step; they arrive as a JSON text."""
    values = request.parameters()
    return json_object("parameters", values, "a JSON object").get(name, default) if values else default


def json_object(name: str, text: str, what: str) -> dict:
    """A JSON object out of a request; anything else is refused as not being `what`."""
    if len(text) > MAX_JSON_CHARACTERS:
        raise InvalidRequest(name, f"{len(text)} characters", f"{what}, at most {MAX_JSON_CHARACTERS} characters")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest(name, text, what)
    return value


def flag(request, name: str) -> bool:
    value = parameter(request, name, False)
    if not isinstance(value, bool):
        raise InvalidRequest(f"parameter {name}", value, "true or false")
    return value
