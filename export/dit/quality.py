"""What a package costs: its error by layer, and PSNR and SSIM of its frames against those of the unquantised model."""

import json
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from export.atomic import replacing
from export.dit.formats import DitWeights
from export.dit.lora import Lora, merge
from wan.checkpoint import Checkpoint
from wan.dit import WanDiT
from wan.optimize import cast
from wan.pipeline import Pipeline, default_dtype, denoiser
from wan.text import Tokenizer

PROMPTS = ("a red circle moves to the right on a white background", "a blue square moves down on a black background")
WINDOW, SIGMA = 11, 1.5  # Wang et al., Image quality assessment: from error visibility to structural similarity, 2004
C1, C2 = 0.01**2, 0.03**2
# Above this a video takes too long without a GPU.
CPU_PARAMETERS = 100_000_000


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of frames uint8; infinite if they are equal."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Mean structural similarity of frames uint8 [T, H, W, 3] over an 11 x 11 Gaussian window."""
    x, y = (torch.from_numpy(frames).double().div(255).permute(0, 3, 1, 2).flatten(0, 1)[:, None] for frames in (a, b))
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    line = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    kernel = (line[:, None] * line[None] / line.sum() ** 2)[None, None]
    mean_x, mean_y, xx, yy, xy = (F.conv2d(t, kernel) for t in (x, y, x * x, y * y, x * y))
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    value = (2 * mean_x * mean_y + C1) * (2 * cov + C2) / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2))
    return float(value.mean())


def compare(
    reference: Pipeline, packaged: Sequence[WanDiT], prompts=PROMPTS, step: Callable[[str], None] = lambda text: None
) -> dict:
    """Mean PSNR and SSIM over `prompts`, same seeds; `packaged` are the DiTs that take the places of the reference's."""
    rows, lossy = [], reference.with_dits(packaged)
    for seed, prompt in enumerate(prompts):
        step(f"quality, prompt {seed + 1} of {len(prompts)}")
        expected, frames = (pipeline(prompt, seed=seed).frames for pipeline in (reference, lossy))
        rows.append((psnr(expected, frames), ssim(expected, frames)))
    return {
        "prompts": len(rows),
        "psnr_db": round(float(np.mean([min(p, 99.0) for p, _ in rows])), 3),
        "ssim": round(float(np.mean([s for _, s in rows])), 5),
    }


def merged_dit(checkpoint: Checkpoint, weights: DitWeights, loras: list[Lora], device=None) -> WanDiT:
    """The DiT in float32 as it is before quantisation: dequantised sources with the LoRAs merged."""
    with torch.device("meta"):
        dit = WanDiT(checkpoint.dit_config())
    for name in weights.names:
        owner, _, leaf = name.rpartition(".")
        tensor = merge(loras, name, weights.load(name)).to(device or "cpu")
        setattr(dit.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
    return dit.eval()


def measure(
    checkpoint: Checkpoint, weights: list[DitWeights], loras: list[Lora], package: Path, step: Callable[[str], None]
) -> dict:
    """PSNR and SSIM of the package's frames against those of its source; skipped where a video would take too long."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and sum(prod(each.shape(name)) for each in weights for name in each.names) > CPU_PARAMETERS:
        return {"skipped": f"more than {CPU_PARAMETERS} parameters and no GPU"}
    dtype = default_dtype(torch.device(device))
    merged = [cast(merged_dit(checkpoint, each, loras, device), dtype) for each in weights]
    pipeline = Pipeline(
        tokenizer=Tokenizer(checkpoint.tokenizer_directory),
        text_encoder=checkpoint.load_text_encoder(device, dtype),
        denoiser=denoiser(checkpoint, checkpoint.card.geometry, merged),
        vae=checkpoint.load_vae(device, torch.float32),
        card=checkpoint.card,
    )
    opened = Checkpoint.open(package)
    packaged = [opened.load_dit(device, dtype, expert) for expert in range(len(weights))]
    return compare(pipeline, packaged, step=step)


def plot_errors(report: Path, image: Path) -> None:
    """Read `fp8_errors.json`, write a PNG; one line for each kind of layer, one point for each block."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines: dict[str, list[tuple[int, float]]] = {}
    for layer in json.loads(report.read_text())["layers"]:
        _, block, kind = layer["layer"].split(".", 2)
        lines.setdefault(kind, []).append((int(block), 100 * layer["relative_error"]))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind, points in sorted(lines.items()):
        axes.plot(*zip(*sorted(points), strict=True), marker=".", linewidth=1, label=kind)
    axes.set(
        xlabel="block",
        ylabel="relative error of the weights, %",
        title="FP8 quantisation error by layer",
        ylim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    with replacing(image) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
