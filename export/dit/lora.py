"""Merges LoRA files into the DiT's weights at export: W += strength * (alpha / rank) * up @ down.

Four families of names are read: DiffSynth-Studio (`P.lora_A.default.weight`), Diffusers/PEFT (`transformer.blocks.0.
attn1.to_q.lora_A.weight`), LightX2V/ComfyUI (`diffusion_model.P.lora_down.weight`, with full-rank `.diff`, `.diff_b`,
`.diff_m`) and kohya/musubi (`lora_unet_blocks_0_self_attn_q.lora_down.weight`). Every key of a file must be
understood and must fit a tensor of the model; anything else is an error, since a LoRA merged in part looks like a bad LoRA.
"""

import json
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from wan import keys
from wan.errors import WanError

PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", "model.", "unet.")
OTHER_EXPERT = "transformer_2."
KOHYA = "lora_unet_"
# Suffix of a key -> what it is. Longer ones first: ".lora_A" is also the beginning of others.
ROLES = {
    ".lora_A.default.weight": "down", ".lora_B.default.weight": "up", ".lora_B.default.bias": "bias",
    ".lora_A.weight": "down", ".lora_B.weight": "up", ".lora_B.bias": "bias",
    ".lora_down.weight": "down", ".lora_up.weight": "up",
    ".lora.down.weight": "down", ".lora.up.weight": "up",
    "_lora.down.weight": "down", "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",
    ".lora_A": "down", ".lora_B": "up",
    ".alpha": "alpha", ".diff_b": "diff_b", ".diff_m": "diff_m", ".diff": "diff",
}  # fmt: skip
TARGETS = {"diff": ".weight", "diff_b": ".bias", "diff_m": ".modulation"}


class LoraError(WanError):
    """A LoRA file is unreadable, or a key in it does not fit the model."""


@dataclass
class _Module:
    """What one LoRA file says about one module."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None
    added: dict[str, Tensor] = field(default_factory=dict)  # parameter suffix -> full-rank difference


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
    """One file, matched to the parameters of a model with the names `parameters`."""

    def __init__(self, path: Path, strength: float, shapes: dict[str, tuple[int, ...]]):
        self.path, self.strength, self._shapes = path, strength, shapes
        modules = {name.rpartition(".")[0] for name in shapes}
        self._kohya = {module.replace(".", "_"): module for module in modules}
        self._modules: dict[str, _Module] = defaultdict(_Module)
        tensors, metadata = self._read()
        for key in sorted(tensors):
            self._take(key, tensors[key])
        self._alpha_of_adapter(metadata)
        for module, entry in self._modules.items():
            self._check(module, entry)

    def _read(self) -> tuple[dict[str, Tensor], dict]:
        try:
            with safe_open(self.path, framework="pt") as handle:
                metadata = dict(handle.metadata() or {})
                tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a mapping)
        except Exception as error:
            raise LoraError(f"{self.path} is not a readable safetensors file: {error}") from error
        if not tensors:
            raise LoraError(f"{self.path} holds no tensors")
        beside = self.path.with_name("adapter_config.json")
        if beside.is_file():
            metadata["adapter_config"] = beside.read_text()
        return tensors, metadata

    def _take(self, key: str, tensor: Tensor) -> None:
        suffix = next((s for s in ROLES if key.endswith(s)), None)
        if suffix is None:
            raise LoraError(f"{self.path}: key {key} is of no known kind; known endings: {', '.join(ROLES)}")
        role, entry = ROLES[suffix], self._modules[self._module(key, key.removesuffix(suffix))]
        if role in ("down", "up"):
            setattr(entry, role, tensor.flatten(1) if tensor.dim() > 2 else tensor)  # 1x1 convolutions
        elif role == "alpha":
            entry.alpha = float(tensor)
        elif role == "bias":
            entry.added[".bias"] = tensor
        else:
            entry.added[TARGETS[role]] = tensor

    def _module(self, key: str, module: str) -> str:
        """The official name of the module that a key is about."""
        if module.startswith(OTHER_EXPERT):
            raise LoraError(f"{self.path}: key {key} is for the second expert of Wan 2.2; this model has one")
        if module.startswith(KOHYA):
            module = self._kohya.get(module.removeprefix(KOHYA), module)
        for prefix in PREFIXES:
            module = module.removeprefix(prefix)
        module = keys.dit_from_diffusers(module + ".").removesuffix(".")
        if not any(module + leaf in self._shapes for leaf in (".weight", ".bias", ".modulation")):
            raise LoraError(f"{self.path}: key {key} fits no tensor of the model")
        return module

    def _alpha_of_adapter(self, metadata: dict) -> None:
        """PEFT keeps alpha outside the tensors: in adapter_config.json or in the file's metadata."""
        config = json.loads(metadata.get("adapter_config") or metadata.get("lora_adapter_metadata") or "{}")
        config = {key.removeprefix("transformer."): value for key, value in config.items()}
        if unsupported := [k for k in ("alpha_pattern", "rank_pattern", "use_dora") if config.get(k)]:
            raise LoraError(
                f"{self.path}: the adapter uses {unsupported[0]} = {config[unsupported[0]]}, which is not supported"
            )
        if "lora_alpha" not in config:
            return
        for entry in self._modules.values():
            if entry.down is not None and entry.alpha is None:
                rank = entry.down.shape[0]
                entry.alpha = config["lora_alpha"] * (math.sqrt(rank) if config.get("use_rslora") else 1.0)

    def _check(self, module: str, entry: _Module) -> None:
        weight = self._shapes.get(module + ".weight")
        if (entry.down is None) != (entry.up is None):
            missing = "up (B)" if entry.up is None else "down (A)"
            raise LoraError(f"{self.path}: {module} has no {missing} matrix")
        if entry.down is None and entry.alpha is not None:
            raise LoraError(f"{self.path}: {module} has an alpha but no matrices")
        if entry.down is not None and entry.up is not None:
            shape = (entry.up.shape[0], entry.down.shape[1])
            if (
                entry.up.shape[1] != entry.down.shape[0]
                or weight is None
                or shape != (weight[0], math.prod(weight[1:]))
            ):
                shown = f"{list(entry.up.shape)} @ {list(entry.down.shape)}"
                raise LoraError(f"{self.path}: {module} is {shown}, the weight is {list(weight or ())}")
        for suffix, tensor in entry.added.items():
            expected = self._shapes.get(module + suffix)
            if expected is None:
                raise LoraError(
                    f"{self.path}: {module} has a difference for {suffix[1:]}, which the model does not have"
                )
            if tensor.numel() != math.prod(expected):
                raise LoraError(
                    f"{self.path}: {module}{suffix} differs by {list(tensor.shape)}, the tensor is {list(expected)}"
                )

    @property
    def parameters(self) -> set[str]:
        """The parameters that the file changes."""
        named = {module + suffix for module, entry in self._modules.items() for suffix in entry.added}
        return named | {module + ".weight" for module, entry in self._modules.items() if entry.down is not None}

    def add_to(self, name: str, tensor: Tensor) -> Tensor:
        """The float32 parameter `name` with this file's difference added."""
        module, _, leaf = name.rpartition(".")
        entry = self._modules.get(module)
        if entry is None:
            return tensor
        if "." + leaf in entry.added:
            tensor = tensor + self.strength * entry.added["." + leaf].float().reshape(tensor.shape)
        if leaf == "weight" and entry.down is not None and entry.up is not None:
            scale = 1.0 if entry.alpha is None else entry.alpha / entry.down.shape[0]
            delta = torch.mm(entry.up.float(), entry.down.float()).reshape(tensor.shape)
            tensor = tensor + self.strength * scale * delta
        return tensor


def merge(loras: list[Lora], name: str, tensor: Tensor) -> Tensor:
    """The parameter `name` with all files applied in order; computed in float32."""
    for lora in loras:
        tensor = lora.add_to(name, tensor)
    return tensor
