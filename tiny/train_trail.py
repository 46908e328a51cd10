"""Teaches models/tiny a style, as a LoRA: what moves paints a trail. `python -m tiny.train_trail --base models/tiny`."""

import argparse
import math
import random
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from contract.geometry import Geometry
from tiny.lora import FOLDER, attach, save, trainable
from tiny.scenes import FRAMES, SIZE, TRAINING, Scene, render
from tiny.train_dit import Clips, Embedder, train
from wan import known_frames
from wan.checkpoint import Checkpoint
from wan.pipeline import to_uint8
from wan.vae_cpu import accelerate


def drawn(count: int) -> list[Scene]:
    return random.Random(5).choices(TRAINING, k=count)


@torch.no_grad()
def encode_clips(base: Checkpoint, count: int) -> Tensor:
    """Latents [count, z, T', h, w] of freshly drawn clips with trails."""
    vae, generator = accelerate(base.load_vae()), torch.Generator().manual_seed(5)
    clips = (to_uint8(render([scene], generator, trail=True)[0]).numpy() for scene in drawn(count))
    return torch.stack(
        [known_frames.clip_latents(clip, (SIZE, SIZE, FRAMES), Geometry(), vae.encode_stream) for clip in clips]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=Path("models/tiny"))
    parser.add_argument("--out", type=Path, default=Path("build/tiny"))
    parser.add_argument("--lora", type=Path, default=FOLDER / "trail.safetensors")
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=math.inf, help="the learning rate ends with them")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--peak-lr", type=float, default=2e-3)
    parser.add_argument("--rank", type=int, default=8)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    base, cache = Checkpoint.open(args.base), args.out / f"trails-{args.clips}.safetensors"
    if not cache.is_file():
        save_file({"latents": encode_clips(base, args.clips)}, cache)
    clips = Clips(drawn(args.clips), load_file(cache)["latents"])
    dit, file = attach(base.load_dit(), args.rank), args.out / "trail.safetensors"
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(trainable(dit), lr=args.peak_lr, betas=(0.9, 0.99), weight_decay=0.0)
    ]
    average = train(dit, Embedder.of(base), clips, file, optimizers, args.steps, args.batch_size, 1, args.minutes)
    save(average, args.lora, args.base, base.card)


if __name__ == "__main__":
    main()
