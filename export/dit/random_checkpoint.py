"""`python -m export.dit.random_checkpoint t2v-1.3b DIR`: a checkpoint of real size in the official layout, with random weights.

For trying out an export, its memory and its disk use without downloading a model. Tensors are written one by one, so
that memory stays at one tensor; umT5, whose file is a pickle, is held whole and can be given fewer layers than its 24
(`--text-layers`), which take 11 GB. `--small` writes the same structure in a size that runs anywhere.
"""

import argparse
import json
import re
import shutil
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from contract.variants import BY_NAME, VARIANTS, Sizes, Variant
from export.dit.stream import Slot, write_safetensors
from wan.checkpoint import EXPERT_FOLDERS, SETTINGS_FILE
from wan.config import VAE22_MEAN, VAE22_STD, ClipConfig, DiTConfig, TextConfig, VAEConfig
from wan.dit import WanDiT
from wan.sizes import build_umt5
from wan.vae22 import build_vae


@dataclass(frozen=True)
class Model:
    """The networks of a checkpoint; `clip` of one whose DiT takes picture tokens. `settings` go into its wan.json."""

    dit: DiTConfig
    clip: ClipConfig | None = None
    vae: VAEConfig = field(default_factory=VAEConfig)
    text: TextConfig = field(default_factory=TextConfig)
    experts: int = 1
    settings: dict = field(default_factory=dict)


WAN22_VAE = VAEConfig(
    dim=160, decoder_dim=256, z_dim=48, latents_mean=VAE22_MEAN, latents_std=VAE22_STD, patch=2
)  # fmt: skip


def _image(row: Variant, clip: ClipConfig | None) -> dict[str, Any]:
    if clip is None:
        return {}
    return {"image_dim": clip.dim, "image_positions": 2 * clip.tokens * ("emb_pos" in row.parts)}


def _of_row(row: Variant, sizes: Sizes) -> Model:
    clip = ClipConfig() if "img_emb" in row.parts else None
    channels: dict[str, Any] = {
        "in_channels": row.latent_channels + row.condition_channels,
        "out_channels": row.latent_channels,
    }
    vae = WAN22_VAE if row.latent_channels == WAN22_VAE.z_dim else VAEConfig()
    return Model(
        DiTConfig(**asdict(sizes), **channels, **_image(row, clip)),
        clip,
        vae,
        experts=row.experts,
        settings={} if row.name in ("t2v-1.3b", "t2v-14b") else {"variant": row.name},
    )


SMALL_CLIP = ClipConfig(dim=160, num_layers=3, num_heads=2, ffn_dim=192, image_size=56)
SMALL_DIT: dict[str, Any] = {"dim": 96, "num_layers": 2, "num_heads": 4, "ffn_dim": 192, "text_dim": 64, "freq_dim": 64}
SMALL_VAE: dict[str, Any] = {"dim": 8, "num_res_blocks": 1}
SMALL_TEXT = TextConfig(vocab_size=4096, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
SMALL_VIDEO = {"width": 64, "height": 64, "num_frames": 9, "steps": 6, "negative_prompt": ""}


def _small(model: Model, row: Variant) -> Model:
    """The same structure in a size that runs anywhere."""
    clip = SMALL_CLIP if model.clip else None
    return replace(
        model,
        dit=replace(model.dit, **SMALL_DIT, **_image(row, clip)),
        clip=clip,
        vae=replace(model.vae, **SMALL_VAE, decoder_dim=SMALL_VAE["dim"] if model.vae.decoder_dim else None),
        text=SMALL_TEXT,
        settings={"defaults": SMALL_VIDEO},
    )


# rows of a size of their own; those of Wan 2.2 are told apart by their structure alone
A14B = Sizes(dim=5120, num_layers=40, num_heads=40, ffn_dim=13824)
SIZES = {row.name: row.sizes for row in VARIANTS if row.sizes and not row.missing} | {
    "t2v-a14b": A14B,
    "i2v-a14b": A14B,
    "ti2v-5b": Sizes(dim=3072, num_layers=30, num_heads=24, ffn_dim=14336),
}
MODELS = {name: _of_row(BY_NAME[name], sizes) for name, sizes in SIZES.items()}
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


IMAGE_GAINS = ("norm1.weight", "norm2.weight", "norm_k_img.weight", "img_emb.proj.0.weight", "img_emb.proj.4.weight")


def shapes_of(make) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of the network that `make()` builds."""
    with torch.device("meta"):
        module: nn.Module = make()
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def official_umt5(name: str) -> str:
    """`encoder.block.0.layer.0.SelfAttention.q.weight` -> `blocks.0.attn.q.weight`."""
    for pattern, replacement in UMT5_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def official_clip(config: ClipConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the image tower as the official file has it, the last block included."""
    dim, block = config.dim, {"norm1": (1,), "norm2": (1,), "attn.to_qkv": (3, 1), "attn.proj": (1, 1)}
    shapes: dict[str, tuple[int, ...]] = {"cls_embedding": (1, 1, dim), "pos_embedding": (1, config.tokens, dim)}
    shapes["patch_embedding.weight"] = (dim, 3, config.patch, config.patch)
    layers: dict[str, tuple[int, ...]] = {name: tuple(dim * size for size in sizes) for name, sizes in block.items()}
    layers |= {"mlp.0": (config.ffn_dim, dim), "mlp.2": (dim, config.ffn_dim)}
    every = {f"transformer.{i}.{name}": shape for i in range(config.num_layers + 1) for name, shape in layers.items()}
    for name, shape in (every | {"pre_norm": (dim,), "post_norm": (dim,)}).items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {f"visual.{name}": shape for name, shape in shapes.items()}


def _values(
    name: str, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Weights at the scale that keeps activations near 1, gains of 1, other vectors near 0."""
    if name.endswith(
        ("gamma", "norm_q.weight", "norm_k.weight", "norm3.weight", "layer_norm.weight", "norm.weight") + IMAGE_GAINS
    ):
        return torch.ones(shape, dtype=dtype)
    fan_in = prod(shape[1:]) if len(shape) > 1 else prod(shape)
    scale = 0.02 if len(shape) == 1 or "modulation" in name else fan_in**-0.5
    return torch.randn(shape, generator=generator, dtype=dtype).mul_(scale)


def _tokenizer(source: Path | None, target: Path) -> None:
    if source is None:
        raise SystemExit("--tokenizer is needed: the directory of a umT5 tokenizer, such as models/tiny/tokenizer")
    shutil.copytree(source, target, dirs_exist_ok=True)


def write_checkpoint(
    model: str, out: Path, text_layers: int, tokenizer: Path | None, seed: int = 0, small: bool = False
) -> None:
    """Write every DiT, VAE, umT5 and tokenizer to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    _tokenizer(tokenizer, out / "google" / "umt5-xxl")
    made, generator = MODELS[model], torch.Generator().manual_seed(seed)
    made = _small(made, BY_NAME[model]) if small else replace(made, text=replace(made.text, num_layers=text_layers))
    if made.settings:
        (out / SETTINGS_FILE).write_text(json.dumps(made.settings, indent=1))
    for folder in EXPERT_FOLDERS if made.experts > 1 else ("",):
        _write_dit(made, out / folder, generator)
    if made.clip:
        clip = {name: _values(name, shape, generator) for name, shape in official_clip(made.clip).items()}
        torch.save(clip, out / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth")
    vae = shapes_of(lambda: build_vae(made.vae))
    name = "Wan2.2_VAE.pth" if made.vae.patch > 1 else "Wan2.1_VAE.pth"
    torch.save({name: _values(name, shape, generator) for name, shape in vae.items()}, out / name)
    _write_text(made.text, out, generator)


def _write_dit(model: Model, folder: Path, generator: torch.Generator) -> None:
    folder.mkdir(exist_ok=True)
    config = model.dit
    shapes = shapes_of(lambda: WanDiT(config))
    slots = [Slot(name, torch.float32, shape) for name, shape in shapes.items()]
    random = (_values(name, shape, generator) for name, shape in tqdm(shapes.items(), desc="DiT", disable=None))
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", slots, random, {})
    names = ("dim", "num_heads", "num_layers", "ffn_dim")
    kind = "i2v" if config.in_channels > config.out_channels else "t2v"
    stored = {"_class_name": "WanModel", "model_type": kind} | {name: getattr(config, name) for name in names}
    (folder / "config.json").write_text(json.dumps(stored, indent=1))


def _write_text(config: TextConfig, out: Path, generator: torch.Generator) -> None:
    text = shapes_of(lambda: build_umt5(config))
    state = {}
    for name, shape in tqdm(text.items(), desc="umT5", disable=None):
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
    parser.add_argument("--small", action="store_true", help="the same structure in a size that runs anywhere")
    options = parser.parse_args()
    write_checkpoint(options.model, options.out, options.text_layers, options.tokenizer, options.seed, options.small)


if __name__ == "__main__":
    main()
