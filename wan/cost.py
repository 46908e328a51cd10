"""What a request costs in seconds of the machine, fitted from measured times. `python -m wan.cost CHECKPOINT`.

    seconds = overhead + sum over the steps of step(branches) + decoding
    decoding = per_latent_frame * ((T - 1) / 4 + 1) + T * (per_pixel * H * W + per_pixel_squared * (H * W)^2)
    computed step = per_step + branches * (per_token * S + per_token_squared * S^2)
    skipped step  = per_skipped_step + branches * per_skipped_token * S

S is the length of the DiT's sequence; the squares stand for attention; branches is 2 while guidance is on. Which
steps are computed is known before the run (`wan.denoise.computed_steps`), so a cache is priced exactly. The file also
holds the plans of both caches, so that a service can price a request without the model.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from wan import samplers
from wan.config import Defaults
from wan.denoise import denoise, guided_steps, schedule_of
from wan.pipeline import Pipeline
from wan.request import GenerationRequest

Size = tuple[int, int, int]  # width, height, frames
PLANNED_STEPS = (*range(1, 11), 12, 15, 16, 18, 20, 24, 25, 28, 30, 35, 40, 45, 50, 60)
_FINE, _MIDDLE, _COARSE = range(5, 50, 5), range(50, 500, 10), range(500, 1001, 50)  # thousandths
THRESHOLDS = tuple(i / 1000 for i in (*_FINE, *_MIDDLE, *_COARSE, 2000, 5000, 10000))
LARGEST_TOKENS = 512  # below it the constant part of a step hides what a token costs
REPEATS = 11  # enough beside other work; an idle machine needs fewer


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
    per_pixel_squared: float = 0.0
    per_latent_frame: float = 0.0

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
        return self.overhead + denoising + self.decoding(width, height, frames)

    def decoding(self, width: int, height: int, frames: int) -> float:
        """Seconds of the VAE."""
        area = width * height
        pixels = frames * (self.per_pixel * area + self.per_pixel_squared * area**2)
        return self.per_latent_frame * ((frames - 1) // 4 + 1) + pixels

    def predict_request(self, request: GenerationRequest, plan: Sequence[bool] | None = None) -> float:
        """`predict` for a request; its plan comes from `wan.denoise.computed_steps`."""
        size = (request.width, request.height, request.num_frames)
        return self.predict(*size, request.steps, guided_steps(request, request.steps), plan)


@dataclass(frozen=True)
class Measurement:
    """Median seconds of a computed and of a skipped step, of decoding and of encoding the texts."""

    size: Size
    branches: int
    computed: float
    skipped: float
    decode: float
    encode: float

    def request(self, steps: int, computed: int) -> float:
        """Seconds of a whole request of so many steps."""
        return self.encode + computed * self.computed + (steps - computed) * self.skipped + self.decode


class _EveryThird:
    """A plan of which every third step is skipped."""

    def plan(self, time: Tensor, modulation: Tensor, threshold: float) -> tuple[bool, ...]:
        return tuple(i % 3 != 2 for i in range(time.shape[0]))


class _Probe:
    """A short request of one size, first half with guidance, that is run and timed again and again."""

    def __init__(self, pipeline: Pipeline, size: Size):
        self.pipeline, self.size = pipeline, size
        width, height, frames = size
        self._request = GenerationRequest.create(
            pipeline.defaults, "a cat", width=width, height=height, num_frames=frames, seed=0, cache_threshold=1.0,
            steps=12, guidance_scale=2.0, guidance_end=0.5,
        )  # fmt: skip
        self._steps: dict[tuple[bool, int], list[float]] = defaultdict(list)  # (computed, branches) -> seconds
        self._encode: list[float] = []
        self._decode: list[float] = []

    def _now(self) -> float:
        if self.pipeline.dit.device.type == "cuda":
            torch.cuda.synchronize(self.pipeline.dit.device)
        return time.perf_counter()

    def run(self) -> None:
        """Time one run after another that is not timed: the memory that another size left behind costs time."""
        self._once()
        encode, decode, steps = self._once()
        self._encode.append(encode)
        self._decode.append(decode)
        for kind, seconds in steps:
            self._steps[kind].append(seconds)

    def _once(self) -> tuple[float, float, list[tuple[tuple[bool, int], float]]]:
        """Seconds of encoding, of decoding, and of each step with its kind."""
        began = self._now()
        context, negative = self.pipeline.encode([self._request.prompt, self._request.negative_prompt])
        encode = self._now() - began
        marks: list[float] = []
        schedule = schedule_of(self._request, self.pipeline.grid)
        latents, info = denoise(
            self.pipeline.dit, context, negative, self._request, schedule=schedule, cache_model=_EveryThird(),
            on_step=lambda _: marks.append(self._now()),
        )  # fmt: skip
        guided = guided_steps(self._request, len(info.plan))
        steps = [  # step 0 also sets up the loop
            ((info.plan[i], 2 if i < guided else 1), after - before)
            for i, (before, after) in enumerate(pairwise(marks), start=1)
        ]
        began = self._now()
        self.pipeline.decode(latents)
        return encode, self._now() - began, steps

    def results(self) -> list[Measurement]:
        """Without and with guidance."""
        common = median(self._decode), median(self._encode)
        steps = {kind: median(seconds) for kind, seconds in self._steps.items()}
        return [Measurement(self.size, n, steps[True, n], steps[False, n], *common) for n in (1, 2)]


def measure(pipeline: Pipeline, sizes: Sequence[Size], repeats: int = REPEATS) -> list[Measurement]:
    """Time the parts of requests on this machine, for each size without and with guidance.

    The sizes take turns, so that a machine that is slower for a while is so for all of them.
    """
    probes = [_Probe(pipeline, size) for size in sizes]
    for _ in range(repeats):
        for probe in probes:
            probe.run()
    return [measurement for probe in probes for measurement in probe.results()]


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
    areas = [float(m.size[0] ** 2 * m.size[1] ** 2 * m.size[2]) for m in measured]
    latents = [float((m.size[2] - 1) // 4 + 1) for m in measured]
    per_latent, per_pixel, per_area = _nonnegative([latents, pixels, areas], [m.decode for m in measured])
    overhead = median(m.encode for m in measured)
    return CostModel(
        overhead, per_step, per_token, per_square, per_skip, per_skipped_token, per_pixel, per_area, per_latent
    )


def errors(model: CostModel, held_out: Sequence[Measurement], steps: int) -> list[float]:
    """Relative errors of predicted requests of `steps` steps, each with all and with half of them computed."""
    found = []
    for m in held_out:
        for computed in (steps, (steps + 1) // 2):
            plan = (True,) * computed + (False,) * (steps - computed)
            predicted = model.predict(*m.size, steps, m.branches == 2, plan)
            found.append(abs(predicted / m.request(steps, computed) - 1))
    return found


def plan_table(
    pipeline: Pipeline, step_counts: Sequence[int] = PLANNED_STEPS, thresholds: Sequence[float] = THRESHOLDS
) -> dict[str, dict[str, dict[str, str]]]:
    """For each calibrated cache and number of steps, the plan from each threshold on at which it changes, "1" for computed.

    With the default sampler and flow shift. A threshold below the first computes every step.
    """
    d = pipeline.defaults
    table: dict[str, dict[str, dict[str, str]]] = {name: {} for name in pipeline.caches}
    for steps in sorted({*step_counts, d.steps}):
        schedule = samplers.schedule(d.sampler, steps, d.flow_shift, pipeline.grid)
        embeddings = pipeline.dit.time_embeddings(schedule.timesteps)
        for name, cache in pipeline.caches.items():
            changes, last = {}, "1" * steps
            for threshold in thresholds:
                plan = "".join("01"[computed] for computed in cache.plan(*embeddings, threshold))
                if plan != last:
                    changes[str(threshold)] = last = plan
            table[name][str(steps)] = changes
    return table


def default_sizes(d: Defaults) -> tuple[list[Size], list[Size]]:
    """Sizes to fit and sizes to check on: from the default downwards, or upwards where that is small."""
    scale = 1
    while tokens(scale * d.width, scale * d.height, d.num_frames) < LARGEST_TOKENS:
        scale += 1

    def sized(width: float, height: float, frames: float) -> Size:
        sides = (
            max(16, round(share * scale * side / 16) * 16) for share, side in ((width, d.width), (height, d.height))
        )
        return *sides, max(1, round(frames * (d.num_frames - 1) / 4) * 4 + 1)

    fitted = [
        sized(*shares)
        for shares in ((1, 1, 1), (1, 1, 0.5), (0.5, 1, 1), (0.5, 0.5, 1), (0.25, 0.5, 1), (0.25, 0.25, 1))
    ]
    held_out = [sized(*shares) for shares in ((0.75, 0.75, 1), (1, 0.5, 0.5), (0.5, 0.25, 1), (0.4, 0.4, 0.75))]
    return fitted, held_out


def write(path: Path, model: CostModel, plans: dict, about: dict) -> None:
    """The file that the service reads (WAN_COST_FILE); `about` goes first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = about | asdict(model) | {"plans": plans}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m wan.cost", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/cost.json"), help="for WAN_COST_FILE")
    parser.add_argument("--sizes", nargs="+", metavar="WxHxT", help="measure these; every third is held out")
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, help="fewer do on an idle machine; default: %(default)s"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    given = _arguments(arguments)
    pipeline = Pipeline.from_checkpoint(given.checkpoint, device=given.device)
    fitted, held_out = default_sizes(pipeline.defaults)
    if given.sizes:
        sizes = [tuple(map(int, text.split("x"))) for text in given.sizes]
        held_out, fitted = sizes[2::3], [s for i, s in enumerate(sizes) if i % 3 != 2]
    measured = measure(pipeline, [*fitted, *held_out], given.repeats)
    model = fit([m for m in measured if m.size in fitted])
    checks = [m for m in measured if m.size in held_out]
    worst = max(errors(model, checks, pipeline.defaults.steps), default=float("nan"))
    about = f"Seconds; measured by python -m wan.cost {given.checkpoint} on {given.device}"
    write(given.out, model, plan_table(pipeline), {"_": about, "held_out_error": round(worst, 4)})
    print(f"{given.out}: largest error on {len(checks)} held-out measurements {100 * worst:.1f} %")
    return 0 if worst <= 0.10 else 1


if __name__ == "__main__":
    raise SystemExit(main())
