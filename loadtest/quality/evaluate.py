"""Runs sets of options on the same prompts and seeds and compares the videos with the baseline's."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean

import numpy as np
import torch

from export.dit.quality import psnr, ssim
from loadtest.quality import perceptual
from loadtest.quality.settings import BASELINE, Setting
from tiny.lora import bundled
from tiny.obedience import check, held_out_prompts
from tiny.scenes import Scene
from wan.checkpoint import Checkpoint
from wan.optimize import optimized
from wan.pipeline import Pipeline, Video, default_dtype

IDENTICAL_PSNR = 99.0  # dB, in place of infinity, which JSON does not have


@dataclass(frozen=True)
class Case:
    """A prompt with its seed, and the scene it asks for where the obedience check knows it."""

    prompt: str
    seed: int
    scene: Scene | None = None


def scene_cases(count: int) -> list[Case]:
    """Prompts of the tiny model's world that it was not trained on."""
    return [Case(prompt, seed, scene) for seed, (scene, prompt) in enumerate(held_out_prompts(count))]


@dataclass
class Row:
    """Results of one set of options, means over the cases; `obeyed` counts of `checked`."""

    name: str
    method: str
    psnr: float = 0.0
    ssim: float = 0.0
    vmaf: float | None = None  # None: not measured, see `perceptual`
    ms_ssim: float | None = None
    xpsnr: float | None = None
    obeyed: int = 0
    checked: int = 0
    seconds: float = 0.0
    speed_up: float = 0.0
    steps_computed: float = 0.0
    steps_skipped: float = 0.0
    forwards: float = 0.0
    engine: dict = field(default_factory=dict)

    def as_dict(self) -> dict:
        return asdict(self)


def frame_psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over the frames of the PSNR, equal frames counting as 99 dB."""
    return mean(min(psnr(x, y), IDENTICAL_PSNR) for x, y in zip(a, b, strict=True))


def _mean(figures: Iterable[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return mean(known) if known else None


class Evaluation:
    """A checkpoint under several sets of options. All see a prompt before the next one, so that drift hits all alike."""

    def __init__(self, checkpoint: str, settings: Sequence[Setting], device: str = "cpu"):
        self.settings = [BASELINE, *settings]
        pipeline = Pipeline.from_checkpoint(checkpoint, device=device)
        opened, dtype = Checkpoint.open(checkpoint), default_dtype(torch.device(device))
        plain = [opened.load_dit(device, dtype, expert) for expert in range(len(opened.dit_folders))]
        self._pipelines = {
            loading: pipeline.with_dits([optimized(copy.deepcopy(dit), loading) for dit in plain])
            for loading in {s.loading for s in self.settings}
        }
        self._adapters = {s.name: bundled(pipeline.card, s.request.get("lora")) for s in self.settings}
        self._videos: dict[str, list[tuple[Case, Video]]] = {s.name: [] for s in self.settings}

    def run(self, cases: Sequence[Case], report: Callable[[str], None] = lambda text: None) -> list[Row]:
        """Generate every video; returns the baseline's row and one for each set of options."""
        for i, case in enumerate(cases, start=1):
            report(f"prompt {i} of {len(cases)}: {case.prompt}")
            for setting in self.settings:
                pipeline, adapters = self._pipelines[setting.loading], self._adapters[setting.name]
                video = pipeline(case.prompt, seed=case.seed, adapters=adapters, **setting.request)
                self._videos[setting.name].append((case, video))
        baseline = [video for _, video in self._videos[BASELINE.name]]
        rows = [self._row(setting, baseline) for setting in self.settings]
        for row in rows:
            row.speed_up = rows[0].seconds / row.seconds
        return rows

    def _row(self, setting: Setting, baseline: list[Video]) -> Row:
        made = self._videos[setting.name]
        videos = [video for _, video in made]
        pairs = [(a.frames, b.frames) for a, b in zip(baseline, videos, strict=True)]
        seen = [] if setting is BASELINE else [perceptual.compare(*pair) for pair in pairs]
        verdicts = [check(video.frames, case.scene).obeys for case, video in made if case.scene]
        return Row(
            setting.name,
            setting.method,
            psnr=mean(frame_psnr(a, b) for a, b in pairs),
            ssim=mean(ssim(a, b) for a, b in pairs),
            vmaf=_mean(scores.vmaf for scores in seen),
            ms_ssim=_mean(scores.ms_ssim for scores in seen),
            xpsnr=_mean(scores.xpsnr for scores in seen),
            obeyed=sum(verdicts),
            checked=len(verdicts),
            seconds=float(np.median([v.info["seconds"]["denoise"] for v in videos])),
            steps_computed=mean(v.info["steps_computed"] for v in videos),
            steps_skipped=mean(v.info["steps_skipped"] for v in videos),
            forwards=mean(v.info["forwards"] for v in videos),
            engine=videos[0].info["engine"],
        )
