"""Fits the colours of latent channels, so that a preview needs no VAE."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wan.vae import WanVAE

CLIPS, FRAMES, SIDE = 48, 5, 64
BATCH = 4
RIDGE = 1e-3
COLOURED = 2.0  # additional weight of a pixel in a pure colour: a wrong hue is seen before a wrong shade


@torch.inference_mode()
def fit_projection(vae: WanVAE) -> dict[str, list]:
    """Least squares from latents to the colours that the VAE itself decodes from them: `factors` [z][3] and `bias` [3].

    Fitted on simple moving scenes, because the latents of a still picture are not those of the frames that follow.
    """
    latents, colours = zip(*(_pairs(vae, clips) for clips in moving_shapes().split(BATCH)), strict=True)
    x, y = (torch.cat(parts).movedim(1, -1).flatten(0, 3).double() for parts in (latents, colours))
    x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    weighted = x * (1 + COLOURED * (y.amax(1) - y.amin(1)))[:, None]
    ridge = RIDGE * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(weighted.T @ x + ridge, weighted.T @ y)
    rounded = [[round(value, 5) for value in row] for row in solution.tolist()]
    return {"factors": rounded[:-1], "bias": rounded[-1]}


def _pairs(vae: WanVAE, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Latents [B, z, T', h, w] and the mean colour [B, 3, T', h, w] of what each latent pixel decodes to."""
    latents = vae.encode(clips)
    space, time = vae.config.spatial_stride, vae.config.temporal_stride
    decoded = F.avg_pool3d(vae.decode(latents), (1, space, space))
    later = decoded[:, :, 1:].unflatten(2, (-1, time)).mean(3)  # a latent frame after the first stands for several
    return latents, torch.cat([decoded[:, :, :1], later], dim=2)


def moving_shapes() -> Tensor:
    """One or two discs or squares that move over a plain background, [B, 3, T, H, W] in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    clips = torch.empty(CLIPS, 3, FRAMES, SIDE, SIDE)
    time = torch.arange(FRAMES)[:, None, None]
    for number, clip in enumerate(clips):
        background = _colour(random, gray=number % 4 == 0)
        clip[:] = background[:, None, None, None]
        for _ in range(1 + number % 3 // 2):
            place, speed, radius = random(2), (random(2) - 0.5) * 0.06, 0.1 + 0.15 * random(1)
            grid = (torch.arange(SIDE) + 0.5) / SIDE
            dx = grid[None, None, :] - place[0] - speed[0] * time
            dy = grid[None, :, None] - place[1] - speed[1] * time
            distance = torch.hypot(dx, dy) if number % 4 < 2 else torch.maximum(dx.abs(), dy.abs())
            covered = ((radius - distance) * SIDE + 0.5).clamp(0, 1)  # [T, H, W]
            clip += covered * (_colour(random)[:, None, None, None] - clip)
    return clips


def _colour(random, gray: bool = False) -> Tensor:
    """Of three kinds: any, gray, or a corner of the colour cube, so that strong colours are not rare; [3] in [-1, 1]."""
    if gray:
        return (random(1) * 2 - 1).expand(3)
    return random(3) * 2 - 1 if random(1) < 0.5 else (random(3) > 0.5) * 2.0 - 1
