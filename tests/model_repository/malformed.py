"""Malformed requests of many kinds: what is wrong, the tensor that the error must name, and the tensors to send."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

KINDS = {"PROMPT": "BYTES", "NEGATIVE_PROMPT": "BYTES", "WIDTH": "INT32", "HEIGHT": "INT32", "NUM_FRAMES": "INT32",
         "STEPS": "INT32", "GUIDANCE_SCALE": "FP32", "FLOW_SHIFT": "FP32", "SEED": "INT64", "SAMPLER": "BYTES",
         "CACHE": "BYTES", "CACHE_THRESHOLD": "FP32", "GUIDANCE_END": "FP32"}  # fmt: skip
DTYPES = {"BYTES": np.object_, "INT32": np.int32, "INT64": np.int64, "FP32": np.float32, "FP64": np.float64}
SAMPLES = {"PROMPT": b"a red circle", "NEGATIVE_PROMPT": b"blurred", "WIDTH": 32, "HEIGHT": 32, "NUM_FRAMES": 1, "STEPS": 1,
           "GUIDANCE_SCALE": 2.0, "FLOW_SHIFT": 3.0, "SEED": 1, "SAMPLER": b"euler",
           "CACHE": b"magcache", "CACHE_THRESHOLD": 0.0, "GUIDANCE_END": 0.5}  # fmt: skip
BAD_TEXT = {"bytes above 0xf5": b"\xff\xfe", "lone continuation": b"a\x80", "surrogate": b"\xed\xa0\x80", "cut off": b"\xe4\xb8",
            "overlong": b"\xc0\xaf"}  # fmt: skip
BAD_VALUES = {
    "WIDTH": [-1, 0, 8, 17, 2064, 2**31 - 1],
    "HEIGHT": [-16, 0, 15, 33, 4096],
    "NUM_FRAMES": [-3, 0, 2, 16, 18, 261],
    "STEPS": [-1, 0, 1001, 2**31 - 1],
    "GUIDANCE_SCALE": [float("nan"), float("inf"), -1.0, 0.5, 1e6],
    "FLOW_SHIFT": [float("nan"), float("-inf"), 0.0, -3.0, 31.0],
    "CACHE_THRESHOLD": [float("nan"), float("inf"), -0.1, 11.0],
    "GUIDANCE_END": [float("nan"), float("inf"), -0.1, 1.01],
    "SEED": [-1, -(2**63)],
    "SAMPLER": [b"", b"ddim", b"UNIPC", b"unipc\0", b"x" * 5000],
    "CACHE": [b"", b"none", b"TeaCache", b"teacache\0", b"x" * 5000],
    "PROMPT": [b"", b"   ", b"\n\t", "\u3000".encode(), b"a" * 9000, b"one two " * 500],
    "NEGATIVE_PROMPT": [b"b" * 9000, b"three four " * 500],
}


@dataclass(frozen=True)
class Malformed:
    """`named` must occur in the error; `inputs` are (name, Triton type, values)."""

    what: str
    named: str
    inputs: list[tuple[str, str, np.ndarray]]
    request_id: str = ""


def _tensor(name: str, value, shape=(1,), kind: str | None = None) -> tuple[str, str, np.ndarray]:
    kind = kind or KINDS[name]
    array = np.empty(shape, DTYPES[kind])
    array[...] = value
    return name, kind, array


def _with(what: str, name: str, tensor) -> Malformed:
    others = [
        _tensor(other, SAMPLES[other])
        for other in ("PROMPT", "WIDTH", "HEIGHT", "NUM_FRAMES", "STEPS")
        if other != name
    ]
    return Malformed(what, name, [*others, tensor])


def _values() -> Iterator[Malformed]:
    for name, values in BAD_VALUES.items():
        for value in values:
            shown = value if len(repr(value)) < 40 else f"{repr(value)[:40]}..."
            yield _with(f"{name}={shown}", name, _tensor(name, value))
    for name in ("PROMPT", "NEGATIVE_PROMPT", "SAMPLER", "CACHE"):
        for what, text in BAD_TEXT.items():
            yield _with(f"{name} is not UTF-8: {what}", name, _tensor(name, text))


def _forms() -> Iterator[Malformed]:
    for name, kind in KINDS.items():
        for shape in ((2,), (0,), (1, 1)):
            yield _with(f"{name} of shape {shape}", name, _tensor(name, SAMPLES[name], shape))
        wrong = "FP64" if kind != "BYTES" else "INT32"
        yield _with(f"{name} of type {wrong}", name, _tensor(name, 1, kind=wrong))


def _requests() -> Iterator[Malformed]:
    yield Malformed("nothing", "PROMPT", [])
    yield Malformed("no prompt", "PROMPT", [_tensor("WIDTH", 32)])
    yield Malformed("only a negative prompt", "PROMPT", [_tensor("NEGATIVE_PROMPT", b"x")])
    yield _with("an unknown input", "COLOUR", _tensor("COLOUR", 1, kind="INT32"))
    sizes = [_tensor("WIDTH", 2048), _tensor("HEIGHT", 2048), _tensor("NUM_FRAMES", 257)]
    yield Malformed("a video too large", "WIDTH x HEIGHT x NUM_FRAMES", [_tensor("PROMPT", b"x"), *sizes])
    for request_id in ("../escape", "a/b", "a b", "ü", "x" * 65, "."):
        yield Malformed(f"request id {request_id}", "request id", [_tensor("PROMPT", b"x")], request_id)


CASES = [*_values(), *_forms(), *_requests()]
