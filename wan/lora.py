"""The tensors of a LoRA file, matched to a model: to be merged into its weights, or to run beside them (`wan.adapted`)."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from contract import lora_keys
from contract.lora_keys import LoraError, Shapes


class Lora:
    """One file, matched to the parameters of a model with the names and shapes `weights`. Raises LoraError.

    `config`: PEFT's adapter_config.json, where there is one; else what the file's `metadata` has of it.
    """

    def __init__(
        self, source: str, tensors: dict[str, Tensor], weights: Shapes, metadata: Mapping[str, str] | None = None,
        config: str | None = None, expert: int = 0, experts: int = 1,
    ):  # fmt: skip
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        self._modules = lora_keys.matched(source, shapes, weights, expert, experts)
        self._tensors = tensors
        self._alpha = lora_keys.adapter_alpha(source, config or (metadata or {}).get("lora_adapter_metadata"))

    @classmethod
    def load(cls, path: Path, weights: Shapes) -> "Lora":
        """That of a file on disk, with the configuration beside it."""
        try:
            with safe_open(path, framework="pt") as handle:
                metadata = dict(handle.metadata() or {})
                tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a mapping)
        except Exception as error:
            raise LoraError(f"{path} is not a readable safetensors file: {error}") from error
        beside = path.with_name("adapter_config.json")
        return cls(str(path), tensors, weights, metadata, beside.read_text() if beside.is_file() else None)

    @property
    def parameters(self) -> set[str]:
        """The parameters that the file changes."""
        named = {module + suffix for module, entry in self._modules.items() for suffix in entry.added}
        return named | {m + ".weight" for m, entry in self._modules.items() if entry.down is not None or entry.factors}

    @property
    def modules(self) -> set[str]:
        """The modules whose parameters these are."""
        return set(self._modules)

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def pair(self, module: str) -> tuple[Tensor, Tensor, float] | None:
        """down [r, in], up [out, r] and what their product is scaled by, of the module's weight; None where there is no pair.

        A LoHa is one: the product of two matrices of ranks r and s, element by element, has the rank r s.
        """
        entry = self._modules.get(module)
        if entry is None or (entry.down is None and lora_keys.LOHA[0] not in entry.factors):
            return None
        if entry.down is None or entry.up is None:
            of = {role: self._tensors[key].float() for role, key in entry.factors.items()}
            up = (of["hada_w1_a"][:, :, None] * of["hada_w2_a"][:, None, :]).flatten(1)
            down = (of["hada_w1_b"][:, None] * of["hada_w2_b"][None]).flatten(0, 1)
            return down, up, self._scale(entry, of["hada_w1_b"].shape[0])
        down, up = self._tensors[entry.down].flatten(1), self._tensors[entry.up].flatten(1)
        return down, up, self._scale(entry, down.shape[0])

    def kron(self, module: str) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """A LoKr: left [a, b] ⊗ (up [c, r] down [r, d]), or without an up left ⊗ down [c, d]; scaled. None where there is none."""
        entry = self._modules.get(module)
        if entry is None or not entry.factors or lora_keys.LOHA[0] in entry.factors:
            return None
        of = {role.removeprefix("lokr_"): self._tensors[key].float() for role, key in entry.factors.items()}
        left = of["w1"] if "w1" in of else of["w1_a"] @ of["w1_b"]
        down, up = (of["w2"], None) if "w2" in of else (of["w2_b"], of["w2_a"])
        divides = next((of[side].shape[0] for side in ("w2_b", "w1_b") if side in of), None)
        return left if divides is None else self._scale(entry, divides) * left, down, up

    def _scale(self, entry: lora_keys.Module, rank: int) -> float:
        if entry.alpha is not None:
            return float(self._tensors[entry.alpha]) / rank
        if self._alpha is not None:
            alpha, by_root = self._alpha
            return alpha / (math.sqrt(rank) if by_root else rank)
        return 1.0

    def difference(self, name: str) -> Tensor | None:
        """What is added to the parameter `name` in full rank, flat or in its shape."""
        module, _, leaf = name.rpartition(".")
        key = self._modules[module].added.get("." + leaf) if module in self._modules else None
        return None if key is None else self._tensors[key]

    def add_to(self, name: str, tensor: Tensor, strength: float) -> Tensor:
        """The float32 parameter `name` with this file's difference added."""
        difference = self.difference(name)
        if difference is not None:
            tensor = tensor + strength * difference.to(tensor.device).float().reshape(tensor.shape)
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and (pair := self.pair(module)) is not None:
            down, up, scale = pair
            delta = torch.mm(up.float(), down.float()).reshape(tensor.shape)
            tensor = tensor + strength * scale * delta.to(tensor.device)
        if leaf == "weight" and (kron := self.kron(module)) is not None:
            left, low, high = kron
            delta = torch.kron(left.contiguous(), low if high is None else high @ low)
            tensor = tensor + strength * delta.to(tensor.device)
        return tensor
