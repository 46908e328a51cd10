"""Merges LoRA files into the DiT's weights at export: W += strength * (alpha / rank) * up @ down."""

import math
from pathlib import Path

from torch import Tensor

from contract.lora_keys import LoraError, Shapes
from wan import lora


def parse_lora_argument(text: str) -> tuple[Path, float]:
    """`PATH` or `PATH=STRENGTH`; raises LoraError."""
    path, separator, strength = text.rpartition("=")
    if not separator:
        return Path(text), 1.0
    try:
        value = float(strength)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise LoraError(f"strength of the LoRA {path} is {strength!r}; allowed: a number, as in {path}=0.8")
    return Path(path), value


class Lora:
    """One file and its strength, matched to the parameters of a model with the names and shapes `weights`."""

    def __init__(self, path: Path, strength: float, weights: Shapes):
        self.path, self.strength = path, strength
        self._file = lora.Lora.load(path, weights)

    @property
    def parameters(self) -> set[str]:
        """The parameters that the file changes."""
        return self._file.parameters

    def add_to(self, name: str, tensor: Tensor) -> Tensor:
        """The float32 parameter `name` with this file's difference added."""
        return self._file.add_to(name, tensor, self.strength)


def merge(loras: list[Lora], name: str, tensor: Tensor) -> Tensor:
    """The parameter `name` with all files applied in order; computed in float32."""
    for each in loras:
        tensor = each.add_to(name, tensor)
    return tensor
