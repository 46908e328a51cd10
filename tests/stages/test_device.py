import numpy as np
import pytest
import torch

from stages.device import device_tensor, on_device
from tests.stages.requests import Request
from wan.errors import InvalidRequest


class OnGpu:
    """A tensor as the Python backend hands it over when it lies on a GPU; here the memory is the host's."""

    def __init__(self, name: str, tensor: torch.Tensor):
        self._name, self._tensor = name, tensor

    def name(self) -> str:
        return self._name

    def is_cpu(self) -> bool:
        return False

    def to_dlpack(self):
        return self._tensor.__dlpack__()

    def as_numpy(self):
        raise AssertionError("a tensor on a GPU must not be copied to the host")


class GpuRequest(Request):
    def inputs(self):
        return [OnGpu(name, tensor) for name, tensor in self.tensors.items()]


def test_a_tensor_on_the_gpu_is_taken_where_it_is():
    tensor = torch.rand(1, 4, 3)
    taken = device_tensor(GpuRequest({"CONTEXT": tensor}), "CONTEXT", (1, -1, 3))
    assert taken.data_ptr() == tensor.data_ptr()


def test_a_tensor_on_the_host_is_taken_without_a_copy():
    array = np.ones((2, 3), np.float32)
    assert device_tensor(Request({"X": array}), "X", (2, 3)).data_ptr() == array.__array_interface__["data"][0]


@pytest.mark.parametrize(("tensor", "message"), [
    (torch.zeros(1, 4, 2), r"CONTEXT is 'torch.float32 \[1, 4, 2\]'; allowed: FP32 \[1, -1, 3\]"),
    (torch.zeros(1, 4, 3).half(), r"CONTEXT is 'torch.float16"),
    (torch.full((1, 4, 3), float("nan")), "CONTEXT is 'NaN or infinity'"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_on_the_gpu_as_on_the_host(tensor, message):
    with pytest.raises(InvalidRequest, match=message):
        device_tensor(GpuRequest({"CONTEXT": tensor}), "CONTEXT", (1, -1, 3))


def test_a_missing_tensor_is_named():
    with pytest.raises(InvalidRequest, match="CONTEXT is None"):
        device_tensor(Request({}), "CONTEXT", (1,))


def test_a_stage_on_a_gpu_makes_it_the_current_one_and_a_stage_on_a_cpu_touches_none():
    assert on_device(torch.device("cuda:1")).idx == 1
    assert not isinstance(on_device(torch.device("cpu")), torch.cuda.device)
