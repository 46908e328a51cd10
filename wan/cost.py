"""What a request costs in seconds of the machine, fitted from measured times. `python -m wan.cost CHECKPOINT`.

    seconds = overhead + sum over the steps of step(branches) + per_pixel * T * H * W
    computed step = per_step + branches * (per_token * S + per_token_squared * S^2)
    skipped step  = per_skipped_step + branches * per_skipped_token * S

S is the length of the DiT's sequence; the square stands for self-attention; branches is 2 while guidance is on. Which
steps are computed is known before the run (`wan.denoise.computed_steps`), so a cache is priced exactly.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from wan import samplers
from wan.denoise import denoise, guided_steps
from wan.pipeline import Pipeline
from wan.request import GenerationRequest

Size = tuple[int, int, int]  # width, height, frames


def tokens(width: int, height: int, frames: int) -> int:
    """Length of the DiT's sequence."""
    return ((frames - 1) // 4 + 1) * (height // 16) * (width // 16)


@dataclass(frozen=True)
class CostModel:
    """Coefficients in seconds; see the module."""

    overhead: float
    per_step: float
    per_token: float
    per_token_squared: float
    per_skipped_step: float
    per_skipped_token: float
    per_pixel: float

    def step(self, length: int, branches: int, computed: bool) -> float:
        """Seconds of one step over `length` tokens."""
        if not computed:
            return self.per_skipped_step + branches * self.per_skipped_token * length
        return self.per_step + branches * (self.per_token * length + self.per_token_squared * length**2)

    def predict(
        self, width: int, height: int, frames: int, steps: int, guidance: bool | int, plan: Sequence[bool] | None = None
    ) -> float:
        """Seconds of a whole request. `guidance`: whether, or for how many first steps; `plan`: the computed steps, all if None."""
        plan = plan or (True,) * steps
        guided = steps * guidance if isinstance(guidance, bool) else guidance
        length = tokens(width, height, frames)
        denoising = sum(self.step(length, 2 if i < guided else 1, computed) for i, computed in enumerate(plan))
        return self.overhead + denoising + self.per_pixel * width * height * frames

    def predict_request(self, request: GenerationRequest, plan: Sequence[bool] | None = None) -> float:
        """`predict` for a request; its plan comes from `wan.denoise.computed_steps`."""
        size = (request.width, request.height, request.num_frames)
        return self.predict(*size, request.steps, guided_steps(request), plan)


@dataclass(frozen=True)
class Measurement:
    """Median seconds of a computed and of a skipped step, of decoding and of encoding the texts."""

    size: Size
    branches: int
    computed: float
    skipped: float
    decode: float
    encode: float


class _EveryThird:
    """A plan of which two steps in three are skipped."""

    def plan(self, time: Tensor, modulation: Tensor, threshold: float) -> tuple[bool, ...]:
        return tuple(i % 3 == 0 for i in range(time.shape[0]))


def measure(pipeline: Pipeline, size: Size, branches: int, repeats: int = 3) -> Measurement:
    """Time the parts of a request of `size` on this machine; the first step of each kind only warms up."""
    width, height, frames = size
    request = GenerationRequest.create(
        pipeline.defaults, "a cat", width=width, height=height, num_frames=frames, seed=0, cache_threshold=1.0,
        steps=3 * (repeats + 1), guidance_scale=float(1 + branches),
        guidance_end=1.0 if branches == 2 else 0.0,
    )  # fmt: skip
    began = time.perf_counter()
    context, negative = pipeline.encode([request.prompt, request.negative_prompt])
    encoded = time.perf_counter()
    latents, info = denoise(pipeline.dit, context, negative, request, grid=pipeline.grid, cache_model=_EveryThird())
    denoised = time.perf_counter()
    pipeline.decode(latents)
    decode = time.perf_counter() - denoised
    computed, skipped = info.step_seconds[3::3], [*info.step_seconds[4::3], *info.step_seconds[5::3]]
    return Measurement(size, branches, median(computed), median(skipped), decode, encoded - began)


def _nonnegative(columns: list[list[float]], seconds: list[float]) -> list[float]:
    """Least squares of the relative error; terms that would come out negative are dropped."""
    y = torch.tensor(seconds, dtype=torch.float64)
    a = torch.tensor(columns, dtype=torch.float64).T / y[:, None]
    kept = list(range(a.shape[1]))
    while kept:
        scale = a[:, kept].norm(dim=0)
        found = (
            torch.linalg.lstsq(a[:, kept] / scale, torch.ones_like(y)[:, None], driver="gelsd").solution[:, 0] / scale
        )
        if (found >= 0).all():
            break
        kept.pop(int(found.argmin()))
    result = [0.0] * a.shape[1]
    for i, index in enumerate(kept):
        result[index] = found[i].item()
    return result


def fit(measured: Sequence[Measurement]) -> CostModel:
    """The coefficients that reproduce `measured` with the least relative error."""
    lengths = [tokens(*m.size) for m in measured]
    work = [m.branches * s for m, s in zip(measured, lengths, strict=True)]
    squares = [m.branches * s**2 for m, s in zip(measured, lengths, strict=True)]
    ones = [1.0] * len(work)
    per_step, per_token, per_square = _nonnegative([ones, work, squares], [m.computed for m in measured])
    per_skip, per_skipped_token = _nonnegative([ones, work], [m.skipped for m in measured])
    pixels = [float(m.size[0] * m.size[1] * m.size[2]) for m in measured]
    base, per_pixel = _nonnegative([ones, pixels], [m.decode for m in measured])
    overhead = base + median(m.encode for m in measured)
    return CostModel(overhead, per_step, per_token, per_square, per_skip, per_skipped_token, per_pixel)


def errors(model: CostModel, held_out: Sequence[Measurement]) -> list[float]:
    """Relative errors of the predicted computed step."""
    return [abs(model.step(tokens(*m.size), m.branches, True) / m.computed - 1) for m in held_out]


def computed_shares(pipeline: Pipeline, thresholds: Sequence[float]) -> dict[str, list[list[float]]]:
    """For each calibrated cache, [threshold, share of the default steps that it computes], for pricing without the model."""
    d = pipeline.defaults
    schedule = samplers.schedule(d.sampler, d.steps, d.flow_shift, pipeline.grid)
    timesteps = torch.tensor(schedule.timesteps, dtype=torch.float64, device=pipeline.dit.device)
    embeddings = pipeline.dit.time_embeddings(timesteps)
    return {
        name: [[t, sum(cache.plan(*embeddings, t)) / d.steps if t else 1.0] for t in thresholds]
        for name, cache in pipeline.caches.items()
    }


def default_sizes(pipeline: Pipeline) -> tuple[list[Size], list[Size]]:
    """Sizes to fit and sizes to check on: around the default, in each direction."""
    d = pipeline.defaults
    w, h, t = d.width, d.height, d.num_frames
    half = max(1, (t - 1) // 8) * 4 + 1
    fitted = [(w, h, half), (w, h, t), (w, 2 * h, t), (2 * w, 2 * h, half), (2 * w, 2 * h, t)]
    held_out = [(2 * w, h, t), (2 * w, h, half), ((3 * w // 2) // 16 * 16, (3 * h // 2) // 16 * 16, t)]
    return fitted, held_out


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m wan.cost", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/cost.json"))
    parser.add_argument("--sizes", nargs="+", metavar="WxHxT", help="fit these; every third is held out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)
    pipeline = Pipeline.from_checkpoint(given.checkpoint, device=given.device)
    fitted, held_out = default_sizes(pipeline)
    if given.sizes:
        sizes = [tuple(map(int, text.split("x"))) for text in given.sizes]
        held_out, fitted = sizes[2::3], [s for i, s in enumerate(sizes) if i % 3 != 2]
    measured = [measure(pipeline, size, branches) for size in fitted for branches in (1, 2)]
    checks = [measure(pipeline, size, branches) for size in held_out for branches in (1, 2)]
    model = fit(measured)
    worst = max(errors(model, checks), default=float("nan"))
    shares = computed_shares(pipeline, (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"_": f"Seconds; measured by python -m wan.cost {given.checkpoint} on {given.device}"}
    content |= asdict(model) | {"computed_share": shares, "held_out_error": worst}
    given.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"{given.out}: largest error on {len(checks)} held-out measurements {100 * worst:.1f} %")
    return 0 if worst <= 0.10 else 1


if __name__ == "__main__":
    raise SystemExit(main())
