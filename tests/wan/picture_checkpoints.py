"""Small random checkpoints that are conditioned on pictures, written by diffusers and transformers, in both layouts."""

import json
import re
import shutil
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from wan import keys

CLIP_DIM, CLIP_SIDE, CLIP_PATCH = 160, 56, 14  # two heads of 80, as the official file's heads are counted
TOKENS = 1 + (CLIP_SIDE // CLIP_PATCH) ** 2
DIM = 96


def random_transformer(pictures: int, seed: int = 0) -> WanTransformer3DModel:
    """Of a model that looks at the tokens of so many pictures; 0: with mask and latents of known frames only."""
    torch.manual_seed(seed)
    with_clip = {"image_dim": CLIP_DIM, "added_kv_proj_dim": DIM} if pictures else {}
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=48, num_layers=3, ffn_dim=128, text_dim=128, freq_dim=64,
        in_channels=36, out_channels=16, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        pos_embed_seq_len=2 * TOKENS if pictures == 2 else None, **with_clip,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    return model


def random_clip(seed: int = 0) -> CLIPVisionModel:
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=CLIP_DIM, intermediate_size=192, num_hidden_layers=4, num_attention_heads=2, image_size=CLIP_SIDE,
        patch_size=CLIP_PATCH, hidden_act="gelu", projection_dim=32,
    )  # fmt: skip
    model = CLIPVisionModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def write_diffusers(root: Path, tiny: Path, pictures: int, variant: str | None = None) -> Path:
    """The tiny checkpoint's text encoder and VAE with a random DiT and CLIP."""
    for part in ("text_encoder", "tokenizer", "vae", "scheduler"):
        shutil.copytree(tiny / part, root / part)
    random_transformer(pictures).save_pretrained(root / "transformer")
    if pictures:
        random_clip().save_pretrained(root / "image_encoder")
    defaults = json.loads((tiny / "wan.json").read_text())["defaults"]
    said = {"defaults": defaults | {"cache_threshold": 0.0}} | ({"variant": variant} if variant else {})
    (root / "wan.json").write_text(json.dumps(said))
    return root


_TO_OFFICIAL = [
    (r"^(vision_model\.)?embeddings\.class_embedding$", "visual.cls_embedding"),
    (r"^(vision_model\.)?embeddings\.patch_embedding\.weight", "visual.patch_embedding.weight"),
    (r"^(vision_model\.)?embeddings\.position_embedding\.weight", "visual.pos_embedding"),
    (r"^(vision_model\.)?pre_layrnorm\.", "visual.pre_norm."),
    (r"^(vision_model\.)?post_layernorm\.", "visual.post_norm."),
    (r"^(vision_model\.)?encoder\.layers\.(\d+)\.layer_norm([12])\.", r"visual.transformer.\2.norm\3."),
    (r"^(vision_model\.)?encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"visual.transformer.\2.attn.proj."),
    (r"^(vision_model\.)?encoder\.layers\.(\d+)\.mlp\.fc1\.", r"visual.transformer.\2.mlp.0."),
    (r"^(vision_model\.)?encoder\.layers\.(\d+)\.mlp\.fc2\.", r"visual.transformer.\2.mlp.2."),
]


def official_clip(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tower as in the official file, with what else is in there: its head and a text tower."""
    found = {"log_scale": torch.zeros(()), "visual.head": torch.zeros(CLIP_DIM, 32)}
    found["textual.token_embedding.weight"] = torch.zeros(7, 5)
    for name, tensor in stored.items():
        if match := re.match(r"(?:vision_model\.)?encoder\.layers\.(\d+)\.self_attn\.q_proj\.(\w+)", name):
            joined = [stored[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            found[f"visual.transformer.{match[1]}.attn.to_qkv.{match[2]}"] = torch.cat(joined)
        elif not re.search(r"self_attn\.[kv]_proj", name):
            for pattern, replacement in _TO_OFFICIAL:
                name = re.sub(pattern, replacement, name)
            found[name] = tensor
    found["visual.cls_embedding"] = found["visual.cls_embedding"][None, None]
    found["visual.pos_embedding"] = found["visual.pos_embedding"][None]
    return found


def write_official(root: Path, diffusers: Path, text: dict[str, torch.Tensor] | None = None) -> Path:
    """DiT, VAE and CLIP of a checkpoint in the Diffusers layout, in the official one; no text encoder."""
    root.mkdir(parents=True, exist_ok=True)
    stored = load_file(diffusers / "transformer" / "diffusion_pytorch_model.safetensors")
    dit = {keys.dit_from_diffusers(name): tensor for name, tensor in stored.items()}
    save_file(dit, root / "diffusion_pytorch_model.safetensors")
    (root / "config.json").write_text(json.dumps({"num_heads": 2}))
    rename = keys.vae_from_diffusers(1)
    vae = load_file(diffusers / "vae" / "diffusion_pytorch_model.safetensors")
    torch.save({rename(name): tensor for name, tensor in vae.items()}, root / "Wan2.1_VAE.pth")
    if (diffusers / "image_encoder").is_dir():
        clip = official_clip(load_file(diffusers / "image_encoder" / "model.safetensors"))
        torch.save(clip, root / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth")
    return root
