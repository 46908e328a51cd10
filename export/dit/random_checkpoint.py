"""`python -m export.dit.random_checkpoint t2v-1.3b DIR`: a checkpoint of real size in the official layout, with random weights.

For trying out an export, its memory and its disk use without downloading a model. Tensors are written one by one, so
that memory stays at one tensor; umT5, whose file is a pickle, is held whole and can be given fewer layers than its 24
(`--text-layers`), which take 11 GB.
"""

import argparse
import json
import re
import shutil
from dataclasses import asdict
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from contract.variants import VARIANTS
from export.dit.stream import Slot, write_safetensors
from wan.config import DiTConfig, TextConfig, VAEConfig
from wan.dit import WanDiT
from wan.structure import build_umt5
from wan.vae import WanVAE

MODELS = {row.name: DiTConfig(**asdict(row.sizes)) for row in VARIANTS if row.sizes and not row.missing}
# transformers' names to those of the official file; the inverse of wan.keys.umt5_from_official.
UMT5_NAMES = [
    (r"^shared\.", "token_embedding."),
    (r"^encoder\.final_layer_norm\.", "norm."),
    (r"\.layer\.0\.layer_norm\.", ".norm1."),
    (r"\.layer\.1\.layer_norm\.", ".norm2."),
    (r"\.layer\.0\.SelfAttention\.relative_attention_bias\.", ".pos_embedding.embedding."),
    (r"\.layer\.0\.SelfAttention\.", ".attn."),
    (r"\.layer\.1\.DenseReluDense\.wi_0\.", ".ffn.gate.0."),
    (r"\.layer\.1\.DenseReluDense\.wi_1\.", ".ffn.fc1."),
    (r"\.layer\.1\.DenseReluDense\.wo\.", ".ffn.fc2."),
    (r"^encoder\.block\.", "blocks."),
]


def _parameters(make) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        module: nn.Module = make()
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def official_umt5(name: str) -> str:
    """`encoder.block.0.layer.0.SelfAttention.q.weight` -> `blocks.0.attn.q.weight`."""
    for pattern, replacement in UMT5_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _values(
    name: str, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Weights at the scale that keeps activations near 1, gains of 1, other vectors near 0."""
    if name.endswith(("gamma", "norm_q.weight", "norm_k.weight", "norm3.weight", "layer_norm.weight", "norm.weight")):
        return torch.ones(shape, dtype=dtype)
    fan_in = prod(shape[1:]) if len(shape) > 1 else prod(shape)
    scale = 0.02 if len(shape) == 1 or "modulation" in name else fan_in**-0.5
    return torch.randn(shape, generator=generator, dtype=dtype).mul_(scale)


def _tokenizer(source: Path | None, target: Path) -> None:
    if source is None:
        raise SystemExit("--tokenizer is needed: the directory of a umT5 tokenizer, such as models/tiny/tokenizer")
    shutil.copytree(source, target, dirs_exist_ok=True)


def write_checkpoint(model: str, out: Path, text_layers: int, tokenizer: Path | None, seed: int = 0) -> None:
    """Write DiT, VAE, umT5 and tokenizer to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    _tokenizer(tokenizer, out / "google" / "umt5-xxl")
    config, generator = MODELS[model], torch.Generator().manual_seed(seed)
    shapes = _parameters(lambda: WanDiT(config))
    slots = [Slot(name, torch.float32, shape) for name, shape in shapes.items()]
    random = (_values(name, shape, generator) for name, shape in tqdm(shapes.items(), desc="DiT"))
    write_safetensors(out / "diffusion_pytorch_model.safetensors", slots, random, {})
    stored = {
        "_class_name": "WanModel",
        "dim": config.dim,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
    }
    (out / "config.json").write_text(json.dumps(stored | {"ffn_dim": config.ffn_dim, "model_type": "t2v"}, indent=1))
    vae = _parameters(lambda: WanVAE(VAEConfig()))
    torch.save({name: _values(name, shape, generator) for name, shape in vae.items()}, out / "Wan2.1_VAE.pth")
    text = _parameters(lambda: build_umt5(TextConfig(num_layers=text_layers)))
    state = {}
    for name, shape in tqdm(text.items(), desc="umT5"):
        if name != "encoder.embed_tokens.weight":
            state[official_umt5(name)] = _values(name, shape, generator, torch.bfloat16)
    torch.save(state, out / "models_t5_umt5-xxl-enc-bf16.pth")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export.dit.random_checkpoint", description=__doc__.split("\n")[0])
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--text-layers", type=int, default=24, help="layers of umT5 (default: all 24)")
    parser.add_argument("--tokenizer", type=Path, default=None, help="directory of a umT5 tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_checkpoint(options.model, options.out, options.text_layers, options.tokenizer, options.seed)


if __name__ == "__main__":
    main()
