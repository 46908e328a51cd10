"""Trains the tiny VAE: on single frames, on short clips, then only the decoder on whole clips.

`python -m tiny.train_vae --out DIR`. Once the encoder stands still the DiT can be trained beside the decoder.

The loss is L1 + 10 MSE, with the few pixels of the object weighted up. Latents get a little fixed noise instead of a
learned variance: with the usual reparametrisation colour and shape drown in noise for thousands of steps. The noise
makes the decoder tolerant of the small errors of the denoiser.
"""

import argparse
import copy
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tiny.scenes import TRAINING, render
from wan.config import VAEConfig
from wan.vae import AttentionBlock, CausalConv3d, Downsample, FeatureCache, ResidualBlock, Upsample, WanVAE

ARCHITECTURE: dict[str, Any] = dict(dim=16, z_dim=16, num_res_blocks=1)
EMA = 0.995
OBJECT_WEIGHT = 6.0
USUAL_CONTRAST = 1.7  # of object and background, colours in -1..1
LATENT_NOISE = 0.05
LATENT_PENALTY = 1e-4  # keeps the latents near unit scale, relative to which the noise is small
STAGES = ("frames", "clips", "decoder")
LATENTS_FILE = "vae_statistics.json"


def reconstruction_loss(vae: WanVAE, video: Tensor) -> tuple[Tensor, float]:
    """Training loss of a batch [B, 3, T, H, W] and the plain mean squared error of its reconstruction."""
    mean, _ = vae.encode_moments(video, FeatureCache(None))
    cache = FeatureCache(None)
    output = vae.decoder(vae.conv2(mean + LATENT_NOISE * torch.randn_like(mean), cache), cache)
    difference = (video - video[..., :1, :1]).norm(dim=1, keepdim=True)
    contrast = difference.amax(dim=(1, 2, 3, 4), keepdim=True)
    # Else the shape of what hardly stands out, green on gray say, costs next to nothing.
    weight = 1 + (OBJECT_WEIGHT - 1) * (difference > 0.1) * (USUAL_CONTRAST / contrast).square()
    error = output - video
    loss = (weight * (error.abs() + 10 * error**2)).mean() + LATENT_PENALTY * (mean**2).mean()
    return loss, F.mse_loss(output, video).item()


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


@torch.no_grad()
def initialise(vae: WanVAE) -> None:
    """Start as a plain image model: residual branches add nothing, temporal operations copy the newest frame.

    Zero residual branches let colour and position through from the first step on; copying in time lets clips start
    where single frames ended.
    """
    for module in vae.modules():
        if isinstance(module, CausalConv3d) and module.past_frames:
            module.weight[:, :, :-1].zero_()
        if isinstance(module, ResidualBlock):
            _zero(module.residual[6])
        if isinstance(module, AttentionBlock):
            module.proj.weight.zero_()
        if isinstance(module, Downsample | Upsample) and module.time_conv is not None:
            weight = module.time_conv.weight  # [C or 2C, C, 3, 1, 1]
            copies = weight.shape[0] // weight.shape[1]
            _zero(module.time_conv)
            weight[:, :, -1, 0, 0] = torch.eye(weight.shape[1]).repeat(copies, 1)


def batch(size: int, frames: int, generator: torch.Generator, rng: random.Random) -> Tensor:
    """Training clips [size, 3, frames, 64, 64], each a random cut of a whole one."""
    clips = render(rng.choices(TRAINING, k=size), generator)
    start = rng.randint(0, clips.shape[2] - frames)
    return clips[:, :, start : start + frames]


def train(vae: WanVAE, stage: str, steps: int, frames: int, batch_size: int, peak_lr: float, out: Path) -> None:
    """One stage with warm-up and cosine decay; leaves the moving average of the weights in `vae` and in a file."""
    generator, rng = torch.Generator().manual_seed(len(stage)), random.Random(len(stage))
    parameters = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=peak_lr, betas=(0.9, 0.99), weight_decay=0.0)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.02 * peak_lr)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=100)
    average = copy.deepcopy(vae.state_dict())
    started, errors = time.time(), []
    for step in range(1, steps + 1):
        video = batch(batch_size, frames, generator, rng).contiguous(memory_format=torch.channels_last_3d)
        loss, mse = reconstruction_loss(vae, video)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay.step()
        warm_up.step()
        rate = max(1 - EMA, 1 / (step + 1))
        torch._foreach_lerp_(list(average.values()), list(vae.state_dict().values()), rate)
        errors.append(mse)
        if step % 100 == 0 or step == steps:
            psnr = 10 * math.log10(4 / (sum(errors[-100:]) / len(errors[-100:])))
            print(f"{stage} step {step}/{steps} psnr {psnr:.2f} dB {time.time() - started:.0f} s", flush=True)
            save_file({k: v.contiguous() for k, v in average.items()}, out / "vae.safetensors")
    vae.load_state_dict(average)


@torch.no_grad()
def latent_statistics(vae: WanVAE, clips: int = 512) -> dict[str, list[float]]:
    """Mean and standard deviation per latent channel over training clips.

    A channel that the VAE hardly uses would be blown up to unit variance; its deviation is bounded below instead.
    """
    generator, rng = torch.Generator().manual_seed(1), random.Random(1)
    means = [vae.encode_moments(batch(16, 17, generator, rng), FeatureCache(None))[0] for _ in range(clips // 16)]
    latents = torch.cat(means).transpose(0, 1).flatten(1)
    std = latents.std(dim=1)
    std = std.clamp(min=0.25 * std.max().item())
    return {"latents_mean": latents.mean(dim=1).tolist(), "latents_std": std.tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/tiny"))
    parser.add_argument("--frame-steps", type=int, default=2500)
    parser.add_argument("--clip-steps", type=int, default=800)
    parser.add_argument("--decoder-steps", type=int, default=2000)
    parser.add_argument(
        "--start", choices=STAGES, default=STAGES[0], help="a later stage goes on with OUT/vae.safetensors"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    vae = WanVAE(VAEConfig(**ARCHITECTURE)).channels_last()
    stages = STAGES[STAGES.index(args.start) :]
    if "frames" in stages:
        initialise(vae)
        train(vae, "frames", args.frame_steps, frames=1, batch_size=12, peak_lr=6e-4, out=args.out)
    else:
        vae.load_state_dict(load_file(args.out / "vae.safetensors"))
    if "clips" in stages:
        train(vae, "clips", args.clip_steps, frames=9, batch_size=4, peak_lr=4e-4, out=args.out)
        (args.out / LATENTS_FILE).write_text(json.dumps(latent_statistics(vae)))
    vae.encoder.requires_grad_(False)
    vae.conv1.requires_grad_(False)
    train(vae, "decoder", args.decoder_steps, frames=17, batch_size=4, peak_lr=2e-4, out=args.out)


if __name__ == "__main__":
    main()
