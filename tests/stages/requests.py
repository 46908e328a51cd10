"""Requests as a Python stub hands them to a model, without Triton."""

import json
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Tensor:
    label: str
    array: np.ndarray

    def name(self) -> str:
        return self.label

    def is_cpu(self) -> bool:
        return True

    def as_numpy(self) -> np.ndarray:
        return self.array


@dataclass
class Request:
    tensors: dict[str, np.ndarray]
    id: str = ""
    values: dict = field(default_factory=dict)
    gone: bool = False  # the caller no longer waits

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, array) for name, array in self.tensors.items()]

    def request_id(self) -> str:
        return self.id

    def is_cancelled(self) -> bool:
        return self.gone

    def parameters(self) -> str:
        return json.dumps(self.values)


def text(*values: str | bytes) -> np.ndarray:
    return np.array([v.encode() if isinstance(v, str) else v for v in values], np.object_)
