"""Writes the trained parts as a checkpoint in the Diffusers layout. `python -m tiny.assemble --parts DIR --out models/tiny`."""

import argparse
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tokenizers.normalizers import Lowercase
from torch import Tensor
from transformers import T5Tokenizer

from contract import Defaults
from tiny.scenes import FRAMES, SIZE
from tiny.train_dit import ARCHITECTURE as DIT
from tiny.train_dit import FLOW_SHIFT
from tiny.train_i2v import CLIP
from tiny.train_text import ARCHITECTURE as TEXT
from tiny.train_vae import ARCHITECTURE as VAE
from tiny.train_vae import LATENTS_FILE
from wan.config import ClipConfig
from wan.keys import dit_to_diffusers, vae_to_diffusers

DEFAULTS = Defaults(
    width=SIZE,
    height=SIZE,
    num_frames=FRAMES,
    steps=20,
    guidance_scale=3.0,
    flow_shift=FLOW_SHIFT,
    negative_prompt="",
    fps=16,
)
# the picture says what is seen, and more guidance takes the frames away from it
I2V_DEFAULTS = replace(DEFAULTS, guidance_scale=1.5)
VERSION = "0.42.1"  # of diffusers, whose file formats these are


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _save(state: dict[str, Tensor], path: Path) -> None:
    """Store as bfloat16: half the size, and a trained weight needs no more."""
    save_file({k: v.to(torch.bfloat16).contiguous() for k, v in state.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes for the owner alone


def write_transformer(state: dict[str, Tensor], out: Path) -> None:
    image_dim = state["img_emb.proj.0.weight"].shape[0] if "img_emb.proj.0.weight" in state else None
    config = {
        "_class_name": "WanTransformer3DModel", "_diffusers_version": VERSION, "patch_size": [1, 2, 2],
        "num_attention_heads": DIT["num_heads"], "attention_head_dim": DIT["dim"] // DIT["num_heads"],
        "in_channels": state["patch_embedding.weight"].shape[1], "out_channels": VAE["z_dim"], "text_dim": DIT["text_dim"], "freq_dim": 256,
        "ffn_dim": DIT["ffn_dim"], "num_layers": DIT["num_layers"], "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads", "eps": 1e-6, "image_dim": image_dim,
        "added_kv_proj_dim": DIT["dim"] if image_dim else None,
        "rope_max_seq_len": 1024,
    }  # fmt: skip
    _write_json(out / "config.json", config)
    _save({dit_to_diffusers(k): v for k, v in state.items()}, out / "diffusion_pytorch_model.safetensors")


def write_vae(state: dict[str, Tensor], statistics: dict[str, list[float]], out: Path) -> None:
    config = {
        "_class_name": "AutoencoderKLWan", "_diffusers_version": VERSION, "base_dim": VAE["dim"], "z_dim": VAE["z_dim"],
        "dim_mult": [1, 2, 4, 4], "num_res_blocks": VAE["num_res_blocks"], "attn_scales": [],
        "temperal_downsample": [False, True, True], "dropout": 0.0, **statistics,
    }  # fmt: skip
    _write_json(out / "config.json", config)
    rename = vae_to_diffusers(VAE["num_res_blocks"])
    _save({rename(k): v for k, v in state.items()}, out / "diffusion_pytorch_model.safetensors")


def write_text_encoder(state: dict[str, Tensor], out: Path) -> None:
    config = {
        "architectures": ["UMT5EncoderModel"], "model_type": "umt5", "vocab_size": state["shared.weight"].shape[0], **TEXT,
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": True, "layer_norm_epsilon": 1e-6,
        "pad_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    _write_json(out / "config.json", config)
    _save(state, out / "model.safetensors")


def write_image_encoder(state: dict[str, Tensor], config: ClipConfig, out: Path) -> None:
    """As transformers has it: with a last layer and a norm after it, which nobody computes here."""
    stored = {
        "architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model", "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim, "num_hidden_layers": config.num_layers + 1, "hidden_act": "gelu",
        "num_attention_heads": config.num_heads, "image_size": config.image_size, "patch_size": config.patch,
        "projection_dim": config.dim, "layer_norm_eps": 1e-5, "torch_dtype": "bfloat16",
    }  # fmt: skip
    _write_json(out / "config.json", stored)
    last, unused = f"encoder.layers.{config.num_layers - 1}.", f"encoder.layers.{config.num_layers}."
    zeros = {k.replace(last, unused): torch.zeros_like(v) for k, v in state.items() if k.startswith(last)}
    norm = {f"post_layernorm.{name}": torch.zeros(config.dim) for name in ("weight", "bias")}
    _save(state | zeros | norm, out / "model.safetensors")


def write_tokenizer(spiece: Path, out: Path, small_letters: bool = False) -> None:
    """The SentencePiece model and its conversion to the format that transformers loads without sentencepiece."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(spiece, out / "spiece.model")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(spiece))
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.vocab_size())]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0)
    if small_letters:
        tokenizer.backend_tokenizer.normalizer = Lowercase()
    tokenizer.save_pretrained(out)
    if small_letters:  # T5's class would make another normaliser, the general one takes that of the file
        config = json.loads((out / "tokenizer_config.json").read_text())
        _write_json(out / "tokenizer_config.json", config | {"tokenizer_class": "PreTrainedTokenizerFast"})


def assemble(parts: Path, out: Path) -> None:
    write_transformer(load_file(parts / "dit.safetensors"), out / "transformer")
    write_vae(load_file(parts / "vae.safetensors"), json.loads((parts / LATENTS_FILE).read_text()), out / "vae")
    write_text_encoder(load_file(parts / "text.safetensors"), out / "text_encoder")
    write_tokenizer(parts / "spiece.model", out / "tokenizer")
    _write_json(
        out / "scheduler" / "scheduler_config.json",
        {
            "_class_name": "UniPCMultistepScheduler", "_diffusers_version": VERSION, "num_train_timesteps": 1000,
            "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": FLOW_SHIFT, "solver_order": 2,
            "solver_type": "bh2", "predict_x0": True, "lower_order_final": True, "final_sigmas_type": "zero",
        },
    )  # fmt: skip
    _write_json(
        out / "model_index.json",
        {
            "_class_name": "WanPipeline", "_diffusers_version": VERSION,
            "scheduler": ["diffusers", "UniPCMultistepScheduler"], "text_encoder": ["transformers", "UMT5EncoderModel"],
            "tokenizer": ["transformers", "PreTrainedTokenizerFast"], "transformer": ["diffusers", "WanTransformer3DModel"],
            "transformer_2": [None, None], "boundary_ratio": None, "vae": ["diffusers", "AutoencoderKLWan"],
        },
    )  # fmt: skip
    _write_json(out / "wan.json", {"defaults": asdict(DEFAULTS)})


def assemble_i2v(parts: Path, out: Path) -> None:
    """Beside models/tiny, from which everything else is read."""
    state = load_file(parts / "i2v.safetensors")
    dit, clip = (
        {k.removeprefix(part): v for k, v in state.items() if k.startswith(part)} for part in ("dit.", "clip.")
    )
    write_transformer(dit, out / "transformer")
    write_image_encoder(clip, CLIP, out / "image_encoder")
    _write_json(out / "wan.json", {"base": "../tiny", "variant": "i2v", "defaults": asdict(I2V_DEFAULTS)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS, nargs="?", default="tiny")
    parser.add_argument("--parts", type=Path, default=Path("build/tiny"))
    parser.add_argument("--out", type=Path, help="default: models/MODEL")
    args = parser.parse_args()
    args.out = args.out or Path("models") / args.model
    MODELS[args.model](args.parts, args.out)
    size = sum(f.stat().st_size for f in args.out.rglob("*") if f.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


MODELS = {"tiny": assemble, "tiny-i2v": assemble_i2v}

if __name__ == "__main__":
    main()
