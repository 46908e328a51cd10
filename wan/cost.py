"""Measures what requests cost on this machine: `python -m wan.cost CHECKPOINT --out FILE`.

The formula is that of `contract.cost`. Its coefficients are fitted to measured steps; the file also holds the plans of the
caches, so that a service can price a request without the model, and the `engine` that was measured, as INFO has it.
`python -m stages.cost` measures an exported repository.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from contract.card import ModelCard
from contract.cost import CostModel, Plans
from contract.geometry import Geometry
from contract.parallel import Degrees
from contract.parameters import LOSSLESS
from wan.attention import BACKENDS, CHOICES
from wan.optimize import LINEAR, Options
from wan.pipeline import Media, Pipeline

Size = tuple[int, int, int]  # width, height, frames
PLANNED_STEPS = (*range(1, 11), 12, 15, 16, 18, 20, 24, 25, 28, 30, 35, 40, 45, 50, 60)
_FINE, _MIDDLE, _COARSE = range(5, 50, 5), range(50, 500, 10), range(500, 1001, 50)  # thousandths
THRESHOLDS = tuple(i / 1000 for i in (*_FINE, *_MIDDLE, *_COARSE, 2000, 5000, 10000))
LARGEST_TOKENS = 512  # below it the constant part of a step hides what a token costs
REPEATS = 11  # enough beside other work; an idle machine needs fewer


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
    """A short request of one size, with and without guidance, that is run and timed again and again."""

    def __init__(self, pipeline: Pipeline, size: Size):
        self.pipeline, self.size = pipeline, size
        experts = tuple(replace(e, caches={"teacache": _EveryThird()}) for e in pipeline.denoiser.experts)
        self._denoiser = replace(pipeline.denoiser, experts=experts)
        width, height, frames = size
        guided = pipeline.card.request(
            prompt="a cat", width=width, height=height, num_frames=frames, seed=0, steps=7, guidance_scale=2.0,
            **LOSSLESS | {"cache": "teacache", "cache_threshold": 1.0},
        )  # fmt: skip
        self._requests = (guided, guided.unguided())
        self._steps: dict[tuple[bool, int], list[float]] = defaultdict(list)  # (computed, branches) -> seconds
        self._encode: list[float] = []
        self._decode: list[float] = []

    def _now(self) -> float:
        if self._denoiser.device.type == "cuda":
            torch.cuda.synchronize(self._denoiser.device)
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
        conditioning = self.pipeline.condition(self._requests[0], Media.grey(self.pipeline.card, self._requests[0]))
        encode, steps = self._now() - began, []
        for request in self._requests:
            marks: list[float] = []

            def note(_, to: list[float] = marks) -> None:
                to.append(self._now())

            latents, info = self._denoiser.run(conditioning, request, on_step=note)
            for (before, step), (start, end) in zip(pairwise(info.plan), pairwise(marks), strict=True):
                if step.expert == before.expert:  # an expert's first step also sets it up
                    steps.append(((step.computed, step.branches), end - start))
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


def fit(measured: Sequence[Measurement], geometry: Geometry, cfg: int = 1) -> CostModel:
    """The coefficients that reproduce `measured`, with `cfg` branches at a time, with the least relative error."""
    lengths = [geometry.tokens(*m.size) for m in measured]
    rounds = [-(-m.branches // cfg) for m in measured]
    work = [float(n * s) for n, s in zip(rounds, lengths, strict=True)]
    squares = [float(n * s**2) for n, s in zip(rounds, lengths, strict=True)]
    ones = [1.0] * len(work)
    per_step, per_token, per_square = _nonnegative([ones, work, squares], [m.computed for m in measured])
    per_skip, per_skipped_token = _nonnegative([ones, work], [m.skipped for m in measured])
    pixels = [float(m.size[0] * m.size[1] * m.size[2]) for m in measured]
    areas = [float(m.size[0] ** 2 * m.size[1] ** 2 * m.size[2]) for m in measured]
    latents = [float(geometry.latent_frames(m.size[2])) for m in measured]
    per_latent, per_pixel, per_area = _nonnegative([latents, pixels, areas], [m.decode for m in measured])
    return CostModel(
        overhead=median(m.encode for m in measured), per_step=per_step, per_token=per_token, per_token_squared=per_square,
        per_skipped_step=per_skip, per_skipped_token=per_skipped_token, per_pixel=per_pixel, per_pixel_squared=per_area,
        per_latent_frame=per_latent, cfg=cfg,
    )  # fmt: skip


def errors(model: CostModel, held_out: Sequence[Measurement], steps: int, geometry: Geometry) -> list[float]:
    """Relative errors of predicted requests of `steps` steps, each with all and with half of them computed."""
    found = []
    for m in held_out:
        for computed in (steps, (steps + 1) // 2):
            plan = [(i < computed, m.branches) for i in range(steps)]
            found.append(abs(model.seconds(m.size, plan, geometry) / m.request(steps, computed) - 1))
    return found


def plan_table(
    pipeline: Pipeline, step_counts: Sequence[int] = PLANNED_STEPS, thresholds: Sequence[float] = THRESHOLDS
) -> Plans:
    """For each calibrated cache and number of steps, the plan from each threshold on at which it changes, "1" for computed.

    With the default sampler and flow shift. A threshold below the first computes every step.
    """
    experts = pipeline.denoiser.experts
    table: Plans = {name: {} for name in experts[0].caches if all(name in expert.caches for expert in experts)}
    for steps in _planned(pipeline, step_counts):
        parts = [
            (expert.caches, expert.dit.time_embeddings(own))
            for expert, own in zip(experts, _timesteps(pipeline, steps), strict=True)
            if own
        ]
        for name in table:
            changes, last = {}, "1" * steps
            for threshold in thresholds:
                plans = [caches[name].plan(*signals, threshold) for caches, signals in parts]
                plan = "".join("01"[computed] for part in plans for computed in part)
                if plan != last:
                    changes[threshold] = last = plan
            table[name][steps] = changes
    return table


def _planned(pipeline: Pipeline, step_counts: Sequence[int]) -> list[int]:
    return sorted({*step_counts, pipeline.card.defaults.steps})


def _timesteps(pipeline: Pipeline, steps: int) -> list[list[float]]:
    """Those of each expert with the default sampler and flow shift."""
    request = pipeline.card.request(prompt="x", seed=0, steps=steps)
    return pipeline.denoiser.timesteps(pipeline.denoiser.schedule(request))


def switch_table(pipeline: Pipeline, step_counts: Sequence[int] = PLANNED_STEPS) -> dict[int, int]:
    """For each number of steps those of the first expert; empty for a model of one."""
    if len(pipeline.denoiser.experts) == 1:
        return {}
    return {steps: len(_timesteps(pipeline, steps)[0]) for steps in _planned(pipeline, step_counts)}


def default_sizes(card: ModelCard) -> tuple[list[Size], list[Size]]:
    """Sizes to fit and sizes to check on: from the default downwards, or upwards where that is small."""
    d, geometry, scale = card.defaults, card.geometry, 1
    while geometry.tokens(scale * d.width, scale * d.height, d.num_frames) < LARGEST_TOKENS:
        scale += 1

    def sized(width: float, height: float, frames: float) -> Size:
        width, height = (
            geometry.nearest_side(share * scale * side) for share, side in ((width, d.width), (height, d.height))
        )
        return width, height, geometry.nearest_frames(1 + frames * (d.num_frames - 1))

    fitted = [
        sized(*shares)
        for shares in ((1, 1, 1), (1, 1, 0.5), (0.5, 1, 1), (0.5, 0.5, 1), (0.25, 0.5, 1), (0.25, 0.25, 1))
    ]
    held_out = [sized(*shares) for shares in ((0.75, 0.75, 1), (1, 0.5, 0.5), (0.5, 0.25, 1), (0.4, 0.4, 0.75))]
    return fitted, held_out


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every measurement may be told, whatever it measures."""
    parser.add_argument("--out", type=Path, default=Path("build/cost.json"), help="for WAN_COST_FILE")
    parser.add_argument("--sizes", nargs="+", metavar="WxHxT", help="measure these; every third is held out")
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, help="fewer do on an idle machine; default: %(default)s"
    )


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m wan.cost", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dit", type=Path, help="a checkpoint whose DiT is taken instead, such as an FP8 package")
    parser.add_argument("--linear", choices=LINEAR, default="auto")
    parser.add_argument("--attention", choices=(*CHOICES, *BACKENDS), default="auto")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add_options(parser)
    return parser.parse_args(arguments)


def _size(text: str) -> tuple[int, int, int]:
    width, height, frames = map(int, text.split("x"))
    return width, height, frames


def write(pipeline: Pipeline, given: argparse.Namespace, command: str) -> int:
    """Measure, fit, check, and write what `add_options` says; returns the exit status."""
    fitted, held_out = default_sizes(pipeline.card)
    if given.sizes:
        sizes = [_size(text) for text in given.sizes]
        held_out, fitted = sizes[2::3], [s for i, s in enumerate(sizes) if i % 3 != 2]
    measured = measure(pipeline, [*fitted, *held_out], given.repeats)
    geometry, steps = pipeline.card.geometry, pipeline.card.defaults.steps
    parallel = pipeline.denoiser.engine.get("parallel")
    model = fit([m for m in measured if m.size in fitted], geometry, Degrees.parse(parallel).cfg if parallel else 1)
    checks = [m for m in measured if m.size in held_out]
    worst = max(errors(model, checks, steps, geometry), default=float("nan"))
    about = {"_": f"Seconds; measured by {command}", "engine": pipeline.denoiser.engine}
    replace(model, plans=plan_table(pipeline), switches=switch_table(pipeline)).write(
        given.out, about | {"held_out_error": round(worst, 4)}
    )
    print(f"{given.out}: largest error on {len(checks)} held-out measurements {100 * worst:.1f} %")
    return 0 if worst <= 0.10 else 1


def main(arguments: list[str] | None = None) -> int:
    given = _arguments(arguments)
    options = Options(given.linear, given.attention, given.compile)
    pipeline = Pipeline.from_checkpoint(given.checkpoint, given.device, options=options, dit=given.dit)
    return write(pipeline, given, f"python -m wan.cost {given.checkpoint} on {given.device}")


if __name__ == "__main__":
    raise SystemExit(main())
