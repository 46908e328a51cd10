"""Teaches the tiny DiT to begin with a picture. `python -m tiny.train_i2v --base models/tiny --out DIR`.

It starts from the DiT of `--base`, whose VAE and text encoder it keeps; the input channels of known frames and the
values of the picture's tokens start at zero, so that the first step computes what the base does. A small CLIP tower
learns along. The clips mostly begin in the middle, where the first frame does not say which way the object goes.
"""

import argparse
import math
import multiprocessing
import os
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from contract.geometry import Geometry
from tiny.scenes import FRAMES, SIZE, TRAINING, Scene, render
from tiny.train_dit import Clips, Embedder, train
from wan import known_frames
from wan.checkpoint import Checkpoint
from wan.clip import ClipVision
from wan.config import ClipConfig
from wan.dit import WanDiT
from wan.pictures import clip_pixels
from wan.pipeline import to_uint8
from wan.vae_cpu import accelerate

CLIP = ClipConfig(dim=64, num_layers=2, num_heads=4, ffn_dim=128, patch=16, image_size=SIZE)
FROM_MIDDLE = 0.7  # share of the clips
# Which frames are known, and how often: the first one, the first and the last, the end of a clip that is continued.
KNOWN = ((0,), (0, FRAMES - 1), tuple(range(known_frames.continued(Geometry()))))
OFTEN = (6, 3, 1)
SHARD = 200  # clips that are encoded and kept together


class PictureModel(nn.Module):
    """DiT and CLIP tower, trained as one."""

    def __init__(self, dit: WanDiT, clip: ClipVision):
        super().__init__()
        self.dit, self.clip = dit, clip

    def forward(self, latents: Tensor, timesteps: Tensor, context: Tensor, channels: Tensor, pixels: Tensor) -> Tensor:
        """Velocity of latents [B, z, T', h, w], given the channels of the known frames and the first one's pixels."""
        return self.dit(torch.cat([latents, channels], dim=1), timesteps, context, self.clip(pixels))


def from_base(base: WanDiT) -> PictureModel:
    """The base's DiT with inputs for pictures that change nothing yet."""
    geometry, config = Geometry(), base.config
    channels = config.out_channels + geometry.temporal_stride + geometry.latent_channels
    dit, clip = WanDiT(replace(config, in_channels=channels, image_dim=CLIP.dim)), ClipVision(CLIP)
    state = base.state_dict()
    added = channels - config.in_channels
    state["patch_embedding.weight"] = nn.functional.pad(state["patch_embedding.weight"], (0,) * 7 + (added,))
    missing, unexpected = dit.load_state_dict(state, strict=False)
    if unexpected or not all("_img" in name or name.startswith("img_emb.") for name in missing):
        raise ValueError(f"the base does not fit: {missing} are missing, {unexpected} are unknown")
    for name, parameter in dit.named_parameters():
        if ".v_img." in name:
            nn.init.zeros_(parameter)
    nn.init.normal_(clip.embeddings.class_embedding, std=0.02)
    nn.init.normal_(clip.embeddings.position_embedding.weight, std=0.02)
    return PictureModel(dit, clip).requires_grad_(True)


@torch.no_grad()
def encode_clips(checkpoint: Path, count: int, seed: int) -> dict[str, Tensor]:
    """Of freshly drawn clips, as the pipeline makes them: latents, channels of known frames, pixels of the first frame."""
    torch.set_num_threads(1)
    vae, size, geometry = accelerate(Checkpoint.open(checkpoint).load_vae()), (SIZE, SIZE, FRAMES), Geometry()
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    parts: dict[str, list[Tensor]] = {"latents": [], "channels": [], "pixels": []}
    for scene in drawn(count, seed):
        video = render([scene], generator, from_middle=rng.random() < FROM_MIDDLE)[0]
        frames = to_uint8(video).numpy()
        known = {i: frames[i] for i in rng.choices(KNOWN, OFTEN)[0]}
        parts["latents"].append(known_frames.clip_latents(frames, size, geometry, vae.encode_stream))
        parts["channels"].append(known_frames.channels(known, size, geometry, vae.encode_stream))
        parts["pixels"].append(clip_pixels(frames[0], CLIP.image_size))
    return {name: torch.stack(tensors) for name, tensors in parts.items()}


def drawn(count: int, seed: int) -> list[Scene]:
    return random.Random(-1 - seed).choices(TRAINING, k=count)


def cached_clips(checkpoint: Path, out: Path, count: int, seed: int) -> dict[str, Tensor]:
    """As `encode_clips`; kept in a file for a later run."""
    file = out / f"i2v-clips-{count}-{seed}.safetensors"
    if not file.is_file():
        save_file(encode_clips(checkpoint, count, seed), file)
        print(f"encoded {file}", flush=True)
    return load_file(file)


def load_clips(checkpoint: Path, out: Path, shards: int) -> Clips:
    """Many clips, encoded by as many processes as there are CPUs."""
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        return joined(list(pool.map(partial(cached_clips, checkpoint, out, SHARD), range(shards))), SHARD)


def joined(shards: list[dict[str, Tensor]], count: int) -> Clips:
    """Shards of `encode_clips` with `count` clips each, in the order of their seeds."""
    latents, channels, pixels = (
        torch.cat([shard[name] for shard in shards]) for name in ("latents", "channels", "pixels")
    )
    return Clips([scene for seed in range(len(shards)) for scene in drawn(count, seed)], latents, (channels, pixels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=Path("models/tiny"))
    parser.add_argument("--out", type=Path, default=Path("build/tiny"))
    parser.add_argument("--start", type=Path, help="the i2v.safetensors of an earlier run, to go on from")
    parser.add_argument("--clips", type=int, default=2400, help=f"a multiple of {SHARD}")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="the learning rate ends with them")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--peak-lr", type=float, default=8e-4)
    parser.add_argument("--seed", type=int, default=1, help="of the order of clips, prompts and noise")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    base = Checkpoint.open(args.base)
    clips = load_clips(args.base, args.out, args.clips // SHARD)
    embed, model, file = Embedder.of(base), from_base(base.load_dit()), args.out / "i2v.safetensors"
    if args.start:
        model.load_state_dict(load_file(args.start))
    # Muon would take longer than the rest of the step: without a GPU it emulates bfloat16.
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(model.parameters(), lr=args.peak_lr, betas=(0.9, 0.99), weight_decay=0.01)
    ]
    train(model, embed, clips, file, optimizers, args.steps, args.batch_size, args.seed, args.minutes)


if __name__ == "__main__":
    main()
