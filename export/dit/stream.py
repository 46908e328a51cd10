"""Writes a safetensors file one tensor at a time; the library wants all of them at once, and copies them.

Format (huggingface/safetensors): the length of the header, 8 bytes, little-endian; the header, JSON padded with spaces to
a multiple of 8; the tensors, one after another.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from export.atomic import replacing

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float8_e4m3fn: "F8_E4M3"}


@dataclass(frozen=True)
class Slot:
    """One tensor of a file, known before its values are."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def _header(slots: list[Slot], metadata: dict[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for slot in slots:
        place = [offset, offset + slot.bytes]
        header[slot.name] = {"dtype": NAMES[slot.dtype], "shape": list(slot.shape), "data_offsets": place}
        offset += slot.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_safetensors(path: Path, slots: list[Slot], tensors: Iterator[Tensor], metadata: dict[str, str]) -> None:
    """Write `tensors`, which come in the order of `slots`; the file appears when it is complete.

    Raises ValueError for a tensor that is not what its slot says.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(_header(slots, metadata))
        for slot, tensor in zip(slots, tensors, strict=True):
            if (tensor.dtype, tuple(tensor.shape)) != (slot.dtype, slot.shape):
                raise ValueError(f"{slot.name} is {tensor.dtype} {list(tensor.shape)}, announced as {slot}")
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
