"""`python -m loadtest checkpoint-cost`: what share of the denoise loop goes into checkpoints at the default interval.

Two measurements: a whole loop of the given checkpoint, long enough for several checkpoints, with the stage's own code; and the
write alone at the size of a real model's state, set against its published step time. Where writing is slow the stage itself waits longer, four intervals at most. Exit code 1 if
a share exceeds 1 %.
"""

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import cast

import torch

from contract.parameters import LOSSLESS
from loadtest.base.inputs import ProfileError
from service.stack import ROOT
from stages.metrics import DenoiseMetrics
from stages.run_directory import RunDirectory, StepCheckpoint
from stages.settings import StageSettings
from stages.step_hook import CHECKPOINT_SHARE, LONGEST_PAUSE, Intervals, StepHook
from wan.pipeline import Pipeline
from wan.samplers import SamplerState

LATENT = (16, 21, 60, 104)  # 832x480, 81 frames
STEP_SECONDS = 0.96  # Wan 2.1 1.3B at that size on one GPU: deployment cookbook of SGLang, 50 steps in 47.8 s


class TimedDirectory(RunDirectory):
    """Adds up what its checkpoints cost."""

    def __init__(self, root: Path, request_id: str):
        super().__init__(root, request_id)
        self.seconds: list[float] = []

    def save_checkpoint(self, checkpoint: StepCheckpoint, fingerprint: str) -> None:
        began = time.perf_counter()
        super().save_checkpoint(checkpoint, fingerprint)
        self.seconds.append(time.perf_counter() - began)


class NoMetrics:
    """The loop is measured here, not by Triton."""

    def __getattr__(self, name):
        return lambda *_: None


def loop_share(pipeline: Pipeline, folder: Path, steps: int, interval: float) -> tuple[float, float, list[float]]:
    """(share of the loop, seconds of the loop, seconds of each checkpoint)."""
    request = pipeline.card.request(prompt="a red circle moves left", seed=1, steps=steps, **LOSSLESS)
    conditioning, plan = pipeline.condition(request), pipeline.denoiser.plan(request)
    directory = TimedDirectory(folder, "loop").open()
    run = StepHook(
        request, plan, "model", directory, Intervals(interval, interval), cast("DenoiseMetrics", NoMetrics())
    )
    began = time.perf_counter()
    pipeline.denoise(conditioning, request, on_step=run)
    seconds = time.perf_counter() - began
    return sum(directory.seconds) / seconds, seconds, directory.seconds


def write_seconds(folder: Path, latent: tuple[int, ...], times: int = 20) -> tuple[float, int]:
    """(median seconds of a write, its bytes) for the full state of the default solver: latents, two predictions, anchor."""
    tensors = [torch.randn(latent) for _ in range(4)]
    state = SamplerState(tensors[0], (tensors[1], tensors[2]), tensors[3])
    directory = TimedDirectory(folder, "write").open()
    for step in range(times):
        directory.save_checkpoint(StepCheckpoint(step, 1, state.tensors()), "fingerprint")
    return statistics.median(directory.seconds), directory.checkpoint_path.stat().st_size


def report(name: str, share: float, details: str) -> bool:
    met = share <= CHECKPOINT_SHARE
    print(f"{'ok  ' if met else 'FAIL'} {name}: {share * 100:.2f} % ({details})", flush=True)
    return met


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "models/tiny")
    parser.add_argument("--steps", type=int, default=1000, help="of the loop")
    parser.add_argument("--interval", type=float, default=StageSettings.model_fields["checkpoint_seconds"].default)
    parser.add_argument("--latent", type=int, nargs=4, default=LATENT, help="shape for the write alone")
    parser.add_argument("--step-seconds", type=float, default=STEP_SECONDS, help="of the model with that shape")
    parser.add_argument("--folder", type=Path, help="where run directories would be; default: a temporary folder")


def handle(given: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="wan-checkpoint-", dir=given.folder) as folder:
        share, seconds, each = loop_share(
            Pipeline.from_checkpoint(given.checkpoint), Path(folder), given.steps, given.interval
        )
        if not each:
            raise ProfileError(
                f"--steps is {given.steps}; allowed: enough for a checkpoint; the loop took {seconds:.1f} s"
            )
        details = f"{len(each)} checkpoints took {sum(each) * 1e3:.1f} ms of {seconds:.1f} s"
        verdicts = [report(f"loop of {given.checkpoint.name}, {given.steps} steps", share, details)]
        write, size = write_seconds(Path(folder), tuple(given.latent))
    pause = min(max(given.interval, write / CHECKPOINT_SHARE), LONGEST_PAUSE * given.interval)
    steps = math.ceil(pause / given.step_seconds)  # a checkpoint comes at the first step after the pause
    details = f"{size / 2**20:.0f} MiB in {write * 1e3:.0f} ms, every {steps} steps of {given.step_seconds:g} s"
    share = write / (steps * given.step_seconds)
    verdicts.append(report(f"write of latents {'x'.join(map(str, given.latent))}", share, details))
    return 0 if all(verdicts) else 1
