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
from collections.abc import Callable
from dataclasses import dataclass
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
from wan.checkpoint import Checkpoint
from wan.config import DiTConfig, TextConfig, VAEConfig
from wan.dit import WanDiT
from wan.samplers import shifted
from wan.sizes import build_umt5
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

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, encoder: nn.Module):
        self.processor, self.encoder = processor, encoder.eval()

    @classmethod
    def trained(cls, out: Path) -> "Embedder":
        processor = sentencepiece.SentencePieceProcessor(model_file=str(out / "spiece.model"))
        encoder = build_umt5(TextConfig(vocab_size=processor.vocab_size(), **TEXT))
        encoder.load_state_dict(load_file(out / "text.safetensors"), strict=False)
        return cls(processor, encoder)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Embedder":
        processor = sentencepiece.SentencePieceProcessor(
            model_file=str(checkpoint.tokenizer_directory / "spiece.model")
        )
        return cls(processor, checkpoint.load_text_encoder().encoder)

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> Tensor:
        return self.embed(prompts)

    def embed(self, prompts: list[str]) -> Tensor:
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


@dataclass(frozen=True)
class Clips:
    """What is trained on: scenes, their latents [N, z, T', h, w], and what the model is given of each besides text."""

    scenes: list[Scene]
    latents: Tensor
    given: tuple[Tensor, ...] = ()


def train(
    model: nn.Module,
    embed: Embedder,
    clips: Clips,
    file: Path,
    optimizers: list[torch.optim.Optimizer],
    steps: int,
    batch_size: int,
    seed: int,
    minutes: float = math.inf,
) -> nn.Module:
    """Train `model(latents, timesteps, context, *given)` by flow matching, see `optimise`."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    return optimise(
        model, lambda: _loss(model, embed, clips, batch_size, rng, generator), file, optimizers, steps, minutes
    )


def optimise(
    model: nn.Module,
    loss_of_batch: Callable[[], Tensor],
    file: Path,
    optimizers: list[torch.optim.Optimizer],
    steps: int,
    minutes: float = math.inf,
) -> nn.Module:
    """Lower the loss of fresh batches for `steps`, or fewer if the `minutes` are over before.

    Returns the moving average of the weights, which is also written to `file` every 200 steps.
    """
    average = copy.deepcopy(model).requires_grad_(False)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    started, losses, step, done = time.time(), [], 0, 0.0
    while done < 1:
        loss = loss_of_batch()
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        share = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done))
        for optimizer, lrs in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = share * peak
            optimizer.step()
        decay = min(EMA, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        losses.append(loss.item())
        step += 1
        done = min(1.0, max(step / steps, (time.time() - started) / (60 * minutes)))
        if step % 100 == 0:
            recent = sum(losses[-100:]) / 100
            print(f"{file.stem} step {step}/{steps} loss {recent:.4f} {time.time() - started:.0f} s", flush=True)
        if step % 200 == 0 or done == 1:
            save_file(average.state_dict(), file)
    return average


def _loss(
    model: nn.Module, embed: Embedder, clips: Clips, batch_size: int, rng: random.Random, generator: torch.Generator
) -> Tensor:
    index = torch.randint(len(clips.scenes), (batch_size,), generator=generator)
    prompts = ["" if rng.random() < EMPTY_PROMPTS else clips.scenes[i].random_prompt(rng) for i in index.tolist()]
    x0 = clips.latents[index]
    noise = torch.randn(x0.shape, generator=generator)
    sigma: Any = shifted(torch.rand(batch_size, generator=generator), FLOW_SHIFT)  # type: ignore[arg-type]
    mixed = torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1, 1))
    velocity = model(mixed, 1000 * sigma, embed(prompts), *(part[index] for part in clips.given))
    return F.mse_loss(velocity, noise - x0)


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
    embed, file = Embedder.trained(args.out), args.out / "dit.safetensors"
    optimizers = _optimizers(dit, args.peak_lr)
    train(dit, embed, Clips(scenes, latents), file, optimizers, args.steps, args.batch_size, args.seed)


if __name__ == "__main__":
    main()
