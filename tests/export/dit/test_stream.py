import pytest
import torch
from safetensors import safe_open

from export.dit.stream import Slot, write_safetensors

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.tensor([7.0, -0.5]).bfloat16(),
    "c": torch.tensor([[1.0, 448.0]]).to(torch.float8_e4m3fn),
}


def test_the_library_reads_what_was_written_one_by_one(tmp_path):
    slots = [Slot(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()]
    write_safetensors(tmp_path / "x.safetensors", slots, iter(TENSORS.values()), {"recipe": "r"})
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == {"recipe": "r"}
        for name, tensor in TENSORS.items():
            read = file.get_tensor(name)
            assert read.dtype == tensor.dtype
            assert torch.equal(read.float(), tensor.float())


def test_a_tensor_other_than_announced_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="a is torch.float32"):
        write_safetensors(tmp_path / "x.safetensors", [Slot("a", torch.float32, (3, 2))], iter([TENSORS["a"]]), {})
    assert list(tmp_path.iterdir()) == []
