"""Calibrates the step caches of a checkpoint. `python -m wan.calibrate CHECKPOINT` writes its wan.json.

Complete runs without a cache show how much the blocks' residual, which is what a skipped step reuses, changes from
step to step, for each expert by itself. TeaCache gets the polynomial that maps the change of the timestep embedding to that of the residual,
fitted over several schedules so that it holds for other step counts; MagCache gets the ratios of magnitudes.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from contract.parameters import CACHES, LOSSLESS
from wan import teacache
from wan.checkpoint import SETTINGS_FILE
from wan.dit import WanDiT
from wan.errors import CheckpointError
from wan.magcache import MAX_SKIPS, RETENTION, MagCacheModel, magnitude_ratio
from wan.pipeline import Media, Pipeline
from wan.teacache import StepCache, TeaCacheModel

PROMPTS = ("a red circle moves left on a white background", "一个蓝色的方块在黑色背景上向下移动")
STEP_FACTORS = (1.0, 0.5, 1.5)  # schedules for the fit, relative to the default step count


@dataclass
class Record:
    """Change of the residual from each step to the next of one run: relative L1 and ratio of magnitudes."""

    changes: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    _previous: dict[int, Tensor] = field(default_factory=dict)

    def add(self, branch: int, residual: Tensor) -> None:
        previous = self._previous.get(branch)
        if previous is not None and branch == 0:  # the conditional branch stands for both, as in the reference
            difference = (residual - previous).abs().mean(dtype=torch.float64)
            self.changes.append((difference / previous.abs().mean(dtype=torch.float64)).item())
            self.ratios.append(magnitude_ratio(residual, previous))
        self._previous[branch] = residual


@contextmanager
def recording(dit: WanDiT) -> Iterator[Record]:
    """Watch the blocks of `dit`; calls for the unconditional branch alone are told apart by their text."""
    record, run_blocks = Record(), dit.run_blocks
    conditionals: list = []

    def watched(x, modulation, rotary, conditioning, still=0):
        out = run_blocks(x, modulation, rotary, conditioning, still)
        if not any(conditioning is c for c in conditionals):
            conditionals.append(conditioning)
        branch = next(i for i, c in enumerate(conditionals) if c is conditioning)
        record.add(branch, (out - x)[:1].float())
        return out

    dit.run_blocks = watched  # type: ignore[method-assign]  # for as long as it is watched
    try:
        yield record
    finally:
        del dit.run_blocks


@dataclass(frozen=True)
class Observations:
    """Per step of all runs: embedding change in both modes, residual change; and the ratios of the default schedule."""

    time: list[float]
    modulation: list[float]
    residual: list[float]
    ratios: list[float]

    def add(self, signals: tuple[Tensor, Tensor], records: list[Record], default: bool) -> None:
        """Take in the runs of one schedule, whose time embeddings are `signals`."""
        if len(signals[0]) < 2:
            return
        self.time.extend(teacache.relative_changes(signals[0]))
        self.modulation.extend(teacache.relative_changes(signals[1]))
        self.residual.extend(_mean([record.changes for record in records]))
        if default:
            self.ratios.extend(_mean([record.ratios for record in records]))


def observe(
    pipeline: Pipeline, prompts: tuple[str, ...] = PROMPTS, factors: tuple[float, ...] = STEP_FACTORS
) -> list[Observations]:
    """Run every prompt under every schedule; the residual changes of a schedule are averaged over the prompts.

    Each expert is seen by itself, in the steps that it takes. Raises CheckpointError if one takes fewer than two.
    """
    seen = [Observations([], [], [], []) for _ in pipeline.denoiser.experts]
    for factor in factors:
        steps = max(2, round(pipeline.card.defaults.steps * factor))
        records: list[list[Record]] = [[] for _ in seen]
        for seed, prompt in enumerate(prompts):
            request = pipeline.card.request(prompt=prompt, steps=steps, seed=seed, **LOSSLESS)
            conditioning = pipeline.condition(request, Media.grey(pipeline.card, request))
            with ExitStack() as stack:
                watched = [stack.enter_context(recording(expert.dit)) for expert in pipeline.denoiser.experts]
                pipeline.denoise(conditioning, request)
            for known, record in zip(records, watched, strict=True):
                known.append(record)
        timesteps = pipeline.denoiser.timesteps(pipeline.denoiser.schedule(request))
        for expert, own, known, each in zip(pipeline.denoiser.experts, timesteps, records, seen, strict=True):
            each.add(expert.dit.time_embeddings(own), known, default=factor == 1.0)
    if not all(each.ratios for each in seen):
        raise CheckpointError(
            f"{pipeline.card.defaults.steps} steps give an expert fewer than two; calibrate with more"
        )
    return seen


def _mean(rows: list[list[float]]) -> list[float]:
    return torch.tensor(rows, dtype=torch.float64).mean(0).tolist()


def fit_teacache(seen: Observations, retention: bool, degree: int) -> tuple[TeaCacheModel, float]:
    """The polynomial and the share of the residual changes' variance that it explains."""
    x = seen.modulation if retention else seen.time
    model = TeaCacheModel(teacache.fit(x, seen.residual, degree), retention)
    y = torch.tensor(seen.residual, dtype=torch.float64)
    fitted = torch.tensor([teacache.polynomial(model.coefficients, v) for v in x], dtype=torch.float64)
    return model, 1 - ((fitted - y).square().sum() / (y - y.mean()).square().sum()).item()


def default_threshold(plan, speed_up: float, step: float = 0.005) -> float:
    """The smallest threshold, a multiple of `step`, at which at least `speed_up` times fewer steps are computed."""
    for i in range(1, int(10 / step)):
        computed = plan(i * step)
        if len(computed) >= speed_up * sum(computed):
            return round(i * step, 6)
    raise ValueError(f"no threshold up to 10 gives {speed_up} times fewer steps")


def calibrate(seen: Observations, retention: bool = False, degree: int = 4) -> tuple[dict, float]:
    """The entries of wan.json for one expert, and the share of variance that the TeaCache polynomial explains."""
    tea, explained = fit_teacache(seen, retention, degree)
    mag = MagCacheModel((1.0, *seen.ratios), RETENTION, MAX_SKIPS)
    entries = {
        "teacache": {"coefficients": list(tea.coefficients), "retention": tea.retention},
        "magcache": {
            "ratios": [round(r, 6) for r in mag.ratios],
            "retention": mag.retention,
            "max_skips": mag.max_skips,
        },
    }
    return entries, explained


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m wan.calibrate", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--prompts", type=Path, help="text file, one prompt a line; two built-in ones without it")
    parser.add_argument(
        "--retention", action="store_true", help="TeaCache's ret-steps mode: the first 5 steps are computed"
    )
    parser.add_argument("--degree", type=int, default=4, help="degree of the polynomial")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--default-cache", choices=CACHES, default="teacache")
    parser.add_argument(
        "--speed-up", type=float, help="also make the cache the default, computing so many times fewer steps"
    )
    given = parser.parse_args(arguments)
    pipeline = Pipeline.from_checkpoint(given.checkpoint, device=given.device)
    prompts = tuple(given.prompts.read_text(encoding="utf-8").split("\n")) if given.prompts else PROMPTS
    seen = observe(pipeline, tuple(p for p in prompts if p.strip()))
    fitted = [calibrate(each, given.retention, given.degree) for each in seen]
    explained = min(share for _, share in fitted)
    entries = {name: _one_or_list([found[name] for found, _ in fitted]) for name in CACHES}
    path = given.checkpoint / SETTINGS_FILE
    settings = (json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}) | entries
    if given.speed_up:
        kind = {"teacache": TeaCacheModel, "magcache": MagCacheModel}[given.default_cache]
        models = [kind(**found[given.default_cache]) for found, _ in fitted]
        threshold = default_threshold(lambda value: _plan(pipeline, models, value), given.speed_up)
        settings["defaults"] = asdict(pipeline.card.defaults) | {
            "cache": given.default_cache,
            "cache_threshold": threshold,
        }
        print(f"default: {given.default_cache} {threshold}, {sum(_plan(pipeline, models, threshold))} steps computed")
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(
        f"{path}: TeaCache polynomial explains {100 * explained:.1f} % of the change; "
        f"{' and '.join(str(len(each.ratios) + 1) for each in seen)} MagCache ratios"
    )


def _one_or_list(entries: list[dict]) -> dict | list[dict]:
    return entries[0] if len(entries) == 1 else entries


def _plan(pipeline: Pipeline, models: list[StepCache], threshold: float) -> list[bool]:
    """The plans of all experts, one after the other."""
    timesteps = pipeline.denoiser.timesteps(pipeline.denoiser.schedule(pipeline.card.request(prompt="x", seed=0)))
    experts = zip(pipeline.denoiser.experts, models, timesteps, strict=True)
    return [c for e, model, own in experts if own for c in model.plan(*e.dit.time_embeddings(own), threshold)]


if __name__ == "__main__":
    main()
