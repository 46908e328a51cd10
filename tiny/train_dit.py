"""Trains the tiny DiT by flow matching on encoded clips. `python -m tiny.train_dit --out DIR`.

Needs what tiny.train_vae and tiny.train_text wrote to DIR. Targets: v = noise - x0 at sigma drawn with the shift of
inference; one prompt in ten is empty, for guidance.
"""

import argparse
import copy
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tiny.scenes import TRAINING, Scene, render
from tiny.train_text import ARCHITECTURE as TEXT
from tiny.train_text import tokenize
from tiny.train_vae import ARCHITECTURE as VAE
from tiny.train_vae import LATENTS_FILE
from wan.config import DiTConfig, TextConfig, VAEConfig
from wan.dit import WanDiT
from wan.samplers import shifted
from wan.structure import build_umt5
from wan.text import TEXT_LENGTH
from wan.vae import FeatureCache, WanVAE

ARCHITECTURE: dict[str, Any] = dict(dim=192, num_layers=6, num_heads=4, ffn_dim=512, text_dim=TEXT["d_model"])
FLOW_SHIFT = 3.0
EMPTY_PROMPTS = 0.1
EMA = 0.997


@torch.no_grad()
def encode_clips(out: Path, count: int) -> tuple[list[Scene], Tensor]:
    """Scenes and normalised latents [count, z, 5, 8, 8] of freshly drawn clips; kept in a file for a later run."""
    cache = out / f"latents-{count}.safetensors"
    rng, generator = random.Random(7), torch.Generator().manual_seed(7)
    scenes = [rng.choice(TRAINING) for _ in range(count)]
    if cache.is_file():
        return scenes, load_file(cache)["latents"]
    statistics = json.loads((out / LATENTS_FILE).read_text())
    config: dict[str, Any] = VAE | {k: tuple(v) for k, v in statistics.items()}
    vae = WanVAE(VAEConfig(**config)).channels_last()
    vae.load_state_dict(load_file(out / "vae.safetensors"))
    mean, std = vae._statistics(torch.zeros(1))
    latents = []
    for start in range(0, count, 16):
        clips = render(scenes[start : start + 16], generator).contiguous(memory_format=torch.channels_last_3d)
        latents.append((vae.encode_moments(clips, FeatureCache(None))[0] - mean) / std)
        if start % 1600 == 0:
            print(f"encoded {start} of {count} clips", flush=True)
    joined = torch.cat(latents).contiguous()
    save_file({"latents": joined}, cache)
    return scenes, joined


class Embedder:
    """Prompts to embeddings [B, 512, text_dim] by the frozen encoder."""

    def __init__(self, out: Path):
        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(out / "spiece.model"))
        self.encoder = build_umt5(TextConfig(vocab_size=self.processor.vocab_size(), **TEXT)).eval()
        self.encoder.load_state_dict(load_file(out / "text.safetensors"), strict=False)

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> Tensor:
        ids, mask = tokenize(self.processor, prompts)
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
        return F.pad(hidden, (0, 0, 0, TEXT_LENGTH - ids.shape[1]))


def initialise(dit: WanDiT) -> None:
    """Xavier for linear layers, small embeddings, and a head that starts at zero."""
    for module in dit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(dit.patch_embedding.weight.flatten(1))
    for layer in (dit.text_embedding, dit.time_embedding):
        for linear in layer.children():
            if isinstance(linear, nn.Linear):
                nn.init.normal_(linear.weight, std=0.02)
    for part in (*dit.blocks, dit.head):
        nn.init.normal_(part.modulation, std=dit.config.dim**-0.5)
    nn.init.zeros_(dit.head.head.weight)


def _optimizers(dit: WanDiT, peak_lr: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan 2024) for the blocks' matrices, AdamW for the rest; on this model it halves the steps needed."""
    matrices = [p for p in dit.blocks.parameters() if p.ndim == 2]
    others = [p for name, p in dit.named_parameters() if not (name.startswith("blocks.") and p.ndim == 2)]
    return [
        torch.optim.Muon(matrices, lr=2 * peak_lr, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=peak_lr, betas=(0.9, 0.99), weight_decay=0.01),
    ]


def train(
    dit: WanDiT, out: Path, scenes: list[Scene], latents: Tensor, steps: int, batch_size: int, peak_lr: float, seed: int
) -> WanDiT:
    """Train for `steps`; returns the moving average of the weights, which is also written every 500 steps."""
    embed, rng, generator = Embedder(out), random.Random(seed), torch.Generator().manual_seed(seed)
    average = copy.deepcopy(dit).requires_grad_(False)
    optimizers = _optimizers(dit, peak_lr)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda s: min(1.0, (s + 1) / 100) * 0.5 * (1 + math.cos(math.pi * min(1.0, s / steps)))
        )
        for optimizer in optimizers
    ]
    started, losses = time.time(), []
    for step in range(steps):
        index = torch.randint(len(scenes), (batch_size,), generator=generator)
        prompts = ["" if rng.random() < EMPTY_PROMPTS else scenes[i].random_prompt(rng) for i in index.tolist()]
        x0 = latents[index]
        noise = torch.randn(x0.shape, generator=generator)
        sigma: Any = shifted(torch.rand(batch_size, generator=generator), FLOW_SHIFT)  # type: ignore[arg-type]
        mixed = torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1, 1))
        loss = F.mse_loss(dit(mixed, 1000 * sigma, embed(prompts)), noise - x0)
        dit.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(dit.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        decay = min(EMA, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(dit.parameters()), 1 - decay)
        losses.append(loss.item())
        if step % 100 == 99:
            print(
                f"dit step {step + 1}/{steps} loss {sum(losses[-100:]) / 100:.4f} {time.time() - started:.0f} s",
                flush=True,
            )
        if step % 500 == 499 or step == steps - 1:
            save_file(average.state_dict(), out / "dit.safetensors")
    return average


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/tiny"))
    parser.add_argument("--clips", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--peak-lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=1, help="of the order of clips, prompts and noise")
    parser.add_argument("--resume", action="store_true", help="start from OUT/dit.safetensors")
    args = parser.parse_args()
    torch.manual_seed(0)
    scenes, latents = encode_clips(args.out, args.clips)
    dit = WanDiT(DiTConfig(**ARCHITECTURE))
    initialise(dit)
    if args.resume:
        dit.load_state_dict(load_file(args.out / "dit.safetensors"))
    train(dit, args.out, scenes, latents, args.steps, args.batch_size, args.peak_lr, args.seed)


if __name__ == "__main__":
    main()
