"""Random adapter files for a model, in the words of every family of trainers."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from contract.lora_keys import KOHYA
from wan.keys import dit_to_diffusers

Tensors = dict[str, Tensor]


def linears(weights: Mapping[str, tuple[int, ...]], part: str = "blocks.") -> list[str]:
    """Names of the linear layers inside the blocks."""
    return [n.removesuffix(".weight") for n, s in weights.items() if n.startswith(part) and len(s) == 2]


def pairs(weights: Mapping[str, tuple[int, ...]], rank: int = 4, seed: int = 0, size: float = 0.05) -> dict:
    """module -> (down, up) for every linear layer of the blocks."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name in linears(weights):
        out, width = weights[name + ".weight"]
        down = torch.randn(rank, width, generator=generator) / width**0.5
        made[name] = down, size * torch.randn(out, rank, generator=generator)
    return made


def _named(pair: str, name: Callable[[str], str], alpha: float | None = None) -> Callable[[dict], Tensors]:
    first, second = pair.split()

    def build(made: dict) -> Tensors:
        tensors = {}
        for module, (down, up) in made.items():
            tensors |= {name(module) + first: down, name(module) + second: up}
            tensors |= {} if alpha is None else {name(module) + ".alpha": torch.tensor(alpha)}
        return tensors

    return build


def _diffusers(module: str) -> str:
    return "transformer." + dit_to_diffusers(module + ".weight").removesuffix(".weight")


def _kohya(module: str) -> str:
    return KOHYA + module.replace(".", "_")


FAMILIES: dict[str, Callable[[dict], Tensors]] = {
    "PEFT, Diffusers": _named(".lora_A.weight .lora_B.weight", _diffusers),
    "PEFT, wrapped": _named(".lora_A.default.weight .lora_B.default.weight", "base_model.model.{}".format),
    "kohya, musubi": _named(".lora_down.weight .lora_up.weight", _kohya, alpha=2.0),
    "DiffSynth-Studio": _named(".lora_A.default.weight .lora_B.default.weight", "pipe.dit.{}".format),
    "LightX2V": _named(".lora_down.weight .lora_up.weight", "diffusion_model.{}".format, alpha=8.0),
    "bare": _named(".lora_A .lora_B", str),
}


def differences(weights: Mapping[str, tuple[int, ...]], seed: int = 3) -> Tensors:
    """What LightX2V's files have beside pairs: full-rank differences of norms, biases, modulation, head and embeddings."""
    generator = torch.Generator().manual_seed(seed)

    def small(name: str) -> Tensor:
        return 0.03 * torch.randn(weights[name], generator=generator)

    names = {
        "diff": ["blocks.0.norm3.weight", "blocks.1.self_attn.norm_q.weight", "head.head.weight", "patch_embedding.weight",
                 "blocks.0.cross_attn.v.weight"],
        "diff_b": ["blocks.0.norm3.bias", "blocks.0.self_attn.q.bias", "blocks.0.ffn.0.bias", "head.head.bias",
                   "time_projection.1.bias"],
        "diff_m": ["blocks.1.modulation", "head.modulation"],
    }  # fmt: skip
    return {
        f"diffusion_model.{name.rpartition('.')[0]}.{role}": small(name)
        for role, each in names.items()
        for name in each
    }
