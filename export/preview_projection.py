"""Fits the colours of latent channels, so that a preview needs no VAE."""

import torch
import torch.nn.functional as F

from wan.vae import WanVAE

IMAGES, SIDE = 24, 64
RIDGE = 1e-3


@torch.inference_mode()
def fit_projection(vae: WanVAE) -> dict[str, list]:
    """Least squares from the latents of random smooth pictures to their colours: `factors` [z][3] and `bias` [3]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(IMAGES, 3, 4, 4, generator=generator) * 2 - 1
    coarse[: IMAGES // 3] = coarse[: IMAGES // 3, :, :1, :1]  # a third in one colour
    images = F.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(-1, 1)
    latents = vae.encode(images[:, :, None])[:, :, 0]  # [N, z, h, w]
    colours = F.avg_pool2d(images, vae.config.spatial_stride)  # [N, 3, h, w]
    x = latents.movedim(1, -1).flatten(0, 2).double()
    x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    y = colours.movedim(1, -1).flatten(0, 2).double()
    solution = torch.linalg.solve(x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=torch.float64), x.T @ y)
    rounded = [[round(value, 5) for value in row] for row in solution.tolist()]
    return {"factors": rounded[:-1], "bias": rounded[-1]}
